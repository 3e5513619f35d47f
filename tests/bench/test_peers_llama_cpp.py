"""llama.cpp as a peer: our decoders in its file give the engine's vectors, at every setting."""

import tempfile

import numpy as np
import pytest
import torch
from peer_sessions import assert_measured, entries_of, open_written

from c2v_engine.bench.measure import compare
from c2v_engine.bench.providers.base import Spec, UnusableError
from c2v_engine.bench.providers.llama_cpp import export, provider
from c2v_engine.bench.providers.registry import OPENERS
from c2v_engine.bench.workloads import Lengths, make_workload

pytest.importorskip("llama_cpp", exc_type=ImportError)
pytest.importorskip("gguf")

FLOAT32 = Spec("llama.cpp", "float32")
SPECS = [Spec("llama.cpp", dtype) for dtype in ("float32", "float16", "bfloat16", "q8_0")]


@pytest.fixture(autouse=True)
def few_settings(monkeypatch):
    """One of each kind: all of them are tried elsewhere."""
    monkeypatch.setattr(provider, "CANDIDATES", provider.CANDIDATES[:2])


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_every_dtype_agrees_and_leaves_no_file(tmp_path, monkeypatch, architecture):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    session = open_written(tmp_path / "model", architecture)
    entries = entries_of(session, *SPECS, prompt_tokens=4)
    for spec in SPECS:
        assert_measured(entries[spec.name])
        assert "no LM head, 512 rows" in entries[spec.name]["note"]
    session.keep([])
    assert not list(temporary.glob("c2v-*"))


def test_every_setting_gives_the_same_vectors(tmp_path):
    session = open_written(tmp_path / "model")
    # More texts than one call takes at any setting, and more rows.
    workload = make_workload(session.corpus, session.tokenizer, Lengths(24), 2400)
    assert len(workload.texts) > 64
    expected = session.provider(Spec("engine", "float32")).embed(workload)
    peer = session.provider(FLOAT32)
    settings = [
        *provider.CANDIDATES,
        provider.Settings(batch_rows=1),
        provider.Settings(batch_rows=128, sequences=3),
        provider.Settings(batch_rows=128, sequences=3, unified=False),
        provider.Settings(flash_attention=False),
    ]
    for one in settings:
        peer._use(one)
        assert compare(peer.embed(workload), expected).min() > 0.99999
    session.keep([])


def test_texts_one_by_one_and_empty_ones_agree(tmp_path):
    session = open_written(tmp_path / "model")
    texts = ("", "a", "a cat", "a cat and a dog " * 60)
    assert_measured(entries_of(session, FLOAT32, texts=texts, texts_per_call=1)[FLOAT32.name])


def test_batches_hold_the_texts_not_what_the_model_could_take(tmp_path, monkeypatch):
    opened = []

    class Watched(provider.Context):
        def __init__(self, model, settings, longest, *others):
            opened.append(longest)
            super().__init__(model, settings, longest, *others)

    monkeypatch.setattr(provider, "Context", Watched)
    session = open_written(tmp_path / "model", max_length=4096)
    assert_measured(entries_of(session, FLOAT32, texts=("a cat", "a cat and a dog"))[FLOAT32.name])
    assert max(opened) < 16
    session.keep([])


def test_settings_that_do_not_open_are_passed_over(tmp_path, monkeypatch):
    class Small(provider.Context):
        def __init__(self, model, settings, *others):
            if not settings.unified or settings.batch_rows > refused_from:
                raise UnusableError("no memory for it")
            super().__init__(model, settings, *others)

    refused_from = 512
    monkeypatch.setattr(provider, "Context", Small)
    monkeypatch.setattr(
        provider, "CANDIDATES", (provider.Settings(), provider.Settings(unified=False))
    )
    session = open_written(tmp_path / "model")
    assert_measured(entries_of(session, FLOAT32)[FLOAT32.name])
    refused_from = 0
    for _ in range(2):  # the second time it meets what the first one left
        entry = entries_of(session, Spec("llama.cpp", "float32"), texts=("a cat " * 90,))
        assert entry[FLOAT32.name]["status"] == "unusable"
        assert "no memory" in entry[FLOAT32.name]["reason"]
    session.keep([])


def test_a_changed_weight_is_found(tmp_path, monkeypatch):
    written = provider.write_gguf

    def sabotaged(path, decoder, *others):
        with torch.no_grad():
            decoder.layers[0].mlp.up_proj.weight.neg_()
        written(path, decoder, *others)

    monkeypatch.setattr(provider, "write_gguf", sabotaged)
    entry = entries_of(open_written(tmp_path / "model"), FLOAT32)[FLOAT32.name]
    assert entry["status"] == "wrong"
    assert "seconds" not in entry


def test_queries_and_keys_in_transformers_order_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "interleave", lambda rows, heads: rows)
    entry = entries_of(open_written(tmp_path / "model"), FLOAT32)[FLOAT32.name]
    assert entry["status"] == "wrong"


def test_rows_of_a_head_are_interleaved_by_its_halves():
    rows = np.arange(16).reshape(8, 2)
    firsts = export.interleave(rows, 2)[:, 0] // 2
    assert firsts.tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("attention_bias", True, "without biases"),
        ("mlp_bias", True, "without biases"),
        ("hidden_act", "gelu", "SiLU, not for gelu"),
        ("rope_parameters", {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}, "linear"),
    ],
)
def test_decoders_that_are_not_written_are_refused(tmp_path, field, value, reason):
    session = open_written(tmp_path / "model")
    config = session.description.decoder_config
    setattr(config, field, value)
    shape = type(session.description.decoder_shape).from_transformers(config, "here")
    assert reason in export.not_exportable(config, shape, "float32")


def test_widths_that_do_not_divide_are_refused_by_q8_0(tmp_path):
    session = open_written(tmp_path / "model")
    config = session.description.decoder_config
    config.intermediate_size = 100
    shape = type(session.description.decoder_shape).from_transformers(config, "here")
    assert "multiples of 32" in export.not_exportable(config, shape, "q8_0")
    assert not export.not_exportable(config, shape, "bfloat16")


def test_a_gpu_is_not_given_to_it(tmp_path):
    session = open_written(tmp_path / "model")
    session.device = torch.device("cuda")
    with pytest.raises(UnusableError, match="measured on the CPU"):
        OPENERS["llama.cpp"](session, FLOAT32)
