"""The running top-k is the full sort's beginning, whatever the blocks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from c2v_engine.jobs.topk import TopK


def full_sort(scores, k):
    """Best first; of equal scores the lowest row first."""
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(scores, rows, axis=1)
    rows = np.where(np.isneginf(best), -1, rows)
    short = k - rows.shape[1]
    return (
        np.pad(best, ((0, 0), (0, max(0, short))), constant_values=-np.inf),
        np.pad(rows, ((0, 0), (0, max(0, short))), constant_values=-1),
    )


def blockwise(scores, k, cuts):
    best = TopK(len(scores), k)
    for first, after in zip([0, *cuts], [*cuts, scores.shape[1]], strict=True):
        best.update(scores[:, first:after], first)
    return best.result()


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_blocks_give_what_a_full_sort_gives(data):
    questions = data.draw(st.integers(0, 4))
    rows = data.draw(st.integers(0, 60))
    k = data.draw(st.integers(1, 70))
    # Few different values: most scores have equals, and some rows are shut out.
    values = st.sampled_from([-np.inf, -1.0, 0.0, 0.25, 0.5, 1.0])
    flat = data.draw(st.lists(values, min_size=questions * rows, max_size=questions * rows))
    scores = np.array(flat, dtype=np.float32).reshape(questions, rows)
    cuts = sorted(data.draw(st.lists(st.integers(0, rows), max_size=6)))
    found = blockwise(scores, k, cuts)
    for got, expected in zip(found, full_sort(scores, k), strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("order", ["random", "rising", "falling", "equal"])
def test_many_rows_in_any_order(order):
    scores = np.random.default_rng(0).standard_normal((3, 20_000)).astype(np.float32)
    if order != "random":
        scores.sort(axis=1)
        scores = {"rising": scores, "falling": scores[:, ::-1], "equal": scores * 0}[order]
    found = blockwise(scores, 7, range(1000, 20_000, 1000))
    for got, expected in zip(found, full_sort(scores, 7), strict=True):
        np.testing.assert_array_equal(got, expected)
