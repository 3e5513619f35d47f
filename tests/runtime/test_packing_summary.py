"""Packing of summary tokens: which rows each sequence's keys are, written out by hand."""

from __future__ import annotations

from itertools import chain

import numpy as np
import torch

from c2v_engine.model.rounding import NoRounding
from c2v_engine.model.template import Template
from c2v_engine.runtime.packing import PackingRules, lay_out
from c2v_engine.runtime.tokenization import TokenizedText


def text(length, summary):
    ids = np.array([*range(100, 100 + length), *[0] * summary], dtype=np.int32)
    return TokenizedText(ids, (0, length, length + summary), ())


def packed(lengths, summary, prompt=()):
    template = Template(("{prompt}{text}", "<summary>"), ("<summary>",), summary)
    rules = PackingRules.from_template(template, "mean")
    texts = [text(length, summary) for length in lengths]
    batch = lay_out(texts, rules, 1000, NoRounding(), prompt)
    return batch.on(torch.from_numpy(batch.buffer))


def test_each_summary_token_is_a_sequence_that_sees_its_text():
    batch = packed([3, 1], summary=2)
    assert batch.num_texts == 2
    assert batch.decoder.token_ids.tolist() == [100, 101, 102, -1, -2, 100, -1, -2]
    assert batch.decoder.position_ids.tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert batch.decoder.lengths.tolist() == [3, 1, 1, 1, 1, 1]
    assert batch.decoder.cu_seqlens.tolist() == [0, 3, 4, 5, 6, 7, 8]
    keys = batch.decoder.keys
    assert keys.lengths.tolist() == [3, 4, 4, 1, 2, 2]
    expected = [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 4], [5], [5, 6], [5, 7]
    assert keys.rows.tolist() == list(chain(*expected))
    assert batch.pooled_rows.tolist() == [3, 4, 6, 7]
    assert batch.pooled_offsets.tolist() == [0, 2, 4]


def test_a_shared_prompt_stands_before_what_they_see():
    batch = packed([4, 2], summary=2, prompt=(100, 101))
    assert batch.decoder.token_ids.tolist() == [102, 103, -1, -2, -1, -2]
    assert batch.decoder.position_ids.tolist() == [2, 3, 4, 5, 2, 3]
    assert batch.decoder.lengths.tolist() == [2, 1, 1, 1, 1]  # nothing is left of the second text
    expected = [0, 1], [0, 1, 2], [0, 1, 3], [4], [5]
    with_prompt = chain(*([-1, -2, *rows] for rows in expected))
    assert batch.decoder.keys.rows.tolist() == list(with_prompt)
    assert batch.pooled_rows.tolist() == [2, 3, 4, 5]


def test_an_empty_text_leaves_its_summary_tokens_alone():
    batch = packed([0, 1], summary=2)
    assert batch.decoder.lengths.tolist() == [1, 1, 1, 1, 1]
    assert batch.decoder.keys.rows.tolist() == [0, 1, 2, 2, 3, 2, 4]


def test_one_summary_token_is_like_any_last_row():
    batch = packed([3, 1], summary=1)
    assert batch.decoder.keys is None
    assert batch.decoder.lengths.tolist() == [4, 2]
    assert batch.decoder.token_ids.tolist() == [100, 101, 102, -1, 100, -1]
