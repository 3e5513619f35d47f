"""Peers of stock modules: they agree with the engine, leave nothing, and say why not."""

import sys
import tempfile
from types import SimpleNamespace

import pytest
import torch
from peer_sessions import assert_measured, entries_of, open_written

from c2v_engine.bench.providers import compiled
from c2v_engine.bench.providers.base import Spec, UnusableError
from c2v_engine.bench.providers.libraries import library
from c2v_engine.bench.providers.registry import OPENERS
from c2v_engine.bench.providers.sentence_transformers import tried_part
from c2v_engine.bench.providers.stock import Padded
from c2v_engine.bench.workloads import Workload

ST, ST_16 = Spec("sentence-transformers", "float32"), Spec("sentence-transformers", "bfloat16")
COMPILED = Spec("compiled", "float32")
MEAN = {"template": ["{prompt}{text}"], "pooling": ["{prompt}{text}"]}


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """Where peers put what they write."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def quick_compiler(monkeypatch):
    """Graphs are captured and run as they are: what a compiler makes of them is its own."""
    torch._dynamo.reset()
    real = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda part, **options: real(part, backend="eager", **options)
    )
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_stock_modules_of_sentence_transformers_agree(tmp_path, temporary, architecture):
    session = open_written(tmp_path / "model", architecture)
    entries = entries_of(session, ST, ST_16, prompt_tokens=5)
    for spec in (ST, ST_16):
        assert_measured(entries[spec.name])
        assert "Transformer, Pooling, Normalize, batches of" in entries[spec.name]["note"]
    session.keep([])
    assert not list(temporary.glob("c2v-*"))


def test_mean_pooling_has_stock_modules_too(tmp_path):
    session = open_written(tmp_path / "model", **MEAN)
    entry = entries_of(session, ST, prompt_tokens=3)[ST.name]
    assert_measured(entry)
    assert "Transformer, Pooling, Normalize" in entry["note"]


@pytest.mark.parametrize("method", ["causal2vec", "echo", "bidirectional-mean"])
def test_other_methods_are_one_module_over_stock_ones(tmp_path, method):
    session = open_written(tmp_path / "model", method=method)
    entries = entries_of(session, ST, ST_16)
    for spec in (ST, ST_16):
        assert_measured(entries[spec.name])
        assert "one module over stock transformers" in entries[spec.name]["note"]


def test_batch_sizes_are_tried_on_neighbours_by_length():
    texts = ["a" * (1 + row) for row in range(640)]
    rows = [SimpleNamespace(token_ids=range(100)) for _ in texts]
    tried = tried_part(Workload(texts, tokenized=rows)).texts
    lengths = [len(text) for text in tried]
    assert len(texts) > len(lengths) >= 128
    # The longest, the shortest, and no batch with other texts than it has among all of them.
    assert (lengths[0], lengths[-1]) == (640, 1)
    for begin in range(0, len(lengths), 64):
        batch = lengths[begin : begin + 64]
        assert batch == list(range(batch[0], batch[0] - 64, -1))
    few = Workload(texts[:100], tokenized=rows[:100])
    assert len(tried_part(few).texts) == 100


def test_a_call_of_one_text_tries_no_batch_size(tmp_path):
    session = open_written(tmp_path / "model")
    entry = entries_of(session, ST, tokens=200, texts_per_call=1)[ST.name]
    assert_measured(entry)
    assert "batches of 8" in entry["note"]


def test_compiled_modules_agree_and_serve_all_shapes(tmp_path, quick_compiler):
    session = open_written(tmp_path / "model", method="causal2vec")
    entries = entries_of(session, COMPILED, Spec("padded", "float32"), tokens=2000)
    assert_measured(entries[COMPILED.name])
    assert_measured(entries["padded float32"])
    assert "graphs: 2," in entries[COMPILED.name]["note"]


def test_compiling_leaves_the_shared_modules_alone(tmp_path, quick_compiler):
    session = open_written(tmp_path / "model")
    before = session.stock_model("float32").decoder
    session.provider(COMPILED)
    padded = session.provider(Spec("padded", "float32"))
    assert isinstance(padded, Padded)
    assert padded._model.decoder is before


def test_without_a_compiler_there_is_no_compiled_form(tmp_path, monkeypatch):
    def refuse(part, **options):
        raise RuntimeError("no C++ compiler")

    session = open_written(tmp_path / "model")
    monkeypatch.setattr(torch, "compile", refuse)
    entry = entries_of(session, COMPILED)[COMPILED.name]
    assert entry["status"] == "unusable"
    assert "torch.compile does not work here: RuntimeError: no C++ compiler" in entry["reason"]


def test_a_changed_weight_is_found(tmp_path):
    session = open_written(tmp_path / "model")
    decoder = session.provider(ST)._model[0].model
    with torch.no_grad():
        decoder.layers[1].mlp.down_proj.weight *= 2
    entry = entries_of(session, ST)[ST.name]
    assert entry["status"] == "wrong"
    assert "seconds" not in entry


REFUSED = [
    ("sentence-transformers", "float8", "last-token", "not in float8"),
    ("compiled", "int8", "last-token", "not in int8"),
    ("padded", "q8_0", "last-token", "not in q8_0"),
    ("packed", "float8", "last-token", "not in float8"),
    ("compiled", "float32", "echo", "template"),
    ("vllm", "float32", "last-token", "on a GPU"),
    ("infinity", "float32", "last-token", "no address of a server is given"),
    ("tei", "float32", "last-token", "address of a server"),
    ("llama.cpp", "float8", "last-token", "not in float8"),
    ("llama.cpp", "float32", "causal2vec", "no contextual token"),
    ("llama.cpp", "float32", "echo", "the last token of"),
]


@pytest.mark.parametrize(("kind", "dtype", "method", "reason"), REFUSED)
def test_what_can_not_be_had_says_why(tmp_path, monkeypatch, kind, dtype, method, reason):
    monkeypatch.setitem(sys.modules, "infinity_emb", None)
    session = open_written(tmp_path / "model", method=method)
    with pytest.raises(UnusableError, match=reason):
        OPENERS[kind](session, Spec(kind, dtype))


def test_every_peer_is_opened_without_its_library_by_refusing(tmp_path, monkeypatch):
    for name in ("llama_cpp", "gguf", "sentence_transformers", "infinity_emb"):
        monkeypatch.setitem(sys.modules, name, None)
    session = open_written(tmp_path / "model")
    for kind in ("llama.cpp", "sentence-transformers", "infinity"):
        with pytest.raises(UnusableError, match="is not installed"):
            OPENERS[kind](session, Spec(kind, "float32"))


def test_a_library_that_lacks_another_names_that_one(tmp_path, monkeypatch):
    (tmp_path / "half_installed.py").write_text("import what_it_needs_to_run\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UnusableError, match="needs what_it_needs_to_run, which is not installed"):
        library("half_installed")


def test_peers_are_refused_where_weights_are_not_stored(tmp_path):
    from c2v_engine.bench.models.shapes import MODELS
    from c2v_engine.bench.models.synthetic import SyntheticCheckpoint
    from c2v_engine.bench.session import Session

    source = SyntheticCheckpoint.write(
        tmp_path / "model", MODELS["tiny-mistral"], torch.device("cpu")
    )
    with pytest.raises(UnusableError, match="made on the device, not stored"):
        Session(source).provider(ST)


def test_more_graphs_are_compiled_than_torch_does_by_itself():
    assert torch._dynamo.config.recompile_limit < compiled.MOST_GRAPHS
