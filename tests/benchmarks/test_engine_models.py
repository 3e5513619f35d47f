"""The engine benchmark's models: their shapes, their random weights, the stock modules of these."""

import pytest
import torch
from engine_sessions import attend_one_by_one, open_session

from c2v_engine.bench.corpus import Corpus
from c2v_engine.bench.measure import compare
from c2v_engine.bench.models.shapes import MODELS
from c2v_engine.bench.models.synthetic import INSTRUCTION_FIRST, RandomWeights, SyntheticCheckpoint
from c2v_engine.bench.providers import registry
from c2v_engine.bench.providers.base import Spec, UnusableError
from c2v_engine.bench.providers.stock import StockModel, packed_kernel, pad
from c2v_engine.bench.workloads import Lengths, Workload, make_workload
from c2v_engine.errors import CheckpointError

CPU = torch.device("cpu")
TINY = ("tiny-mistral", "tiny-qwen2")


@pytest.fixture(scope="module")
def corpus():
    return Corpus()


@pytest.mark.parametrize(
    ("name", "parameters"),
    # As their authors count them, without the tables of tokens.
    [
        ("mistral-7b", 7_241_732_096 - 2 * 32000 * 4096),
        ("s-llama-1.3b", 1_345_423_360 - 2 * 32000 * 2048),
        ("qwen2.5-0.5b", 494_032_768 - 151936 * 896),
    ],
)
def test_the_shapes_have_the_parameters_of_the_models_they_are_named_for(
    name, parameters, tmp_path
):
    source = SyntheticCheckpoint.write(tmp_path / name, MODELS[name], CPU)
    assert source.multiplied_parameters("decoder") == parameters
    assert source.multiplied_parameters("encoder") == 85_054_464  # BERT-base's twelve layers


@pytest.mark.parametrize("name", TINY)
def test_the_engine_multiplies_as_many_parameters_as_are_counted(name, tmp_path):
    session = open_session(tmp_path / name, name)
    model = session.provider(Spec("engine", "float32")).engine._runner.checkpoint.model
    count = session.source.multiplied_parameters
    assert model.decoder.num_parameters() == count("decoder")
    assert model.context.encoder.num_parameters() == count("encoder")


def test_no_weights_are_written(tmp_path):
    SyntheticCheckpoint.write(tmp_path / "model", MODELS["tiny-mistral"], CPU)
    files = [path for path in (tmp_path / "model").rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix in (".safetensors", ".bin")]
    assert sum(path.stat().st_size for path in files) < 2**20


def test_a_weight_is_the_same_whenever_it_is_taken_and_unlike_any_other():
    shapes = {"a.weight": (64, 32), "b.weight": (64, 32), "c.bias": (64,)}

    def take(name, part="decoder", seed=0):
        return RandomWeights(part, shapes, CPU, seed).take(name, shapes[name])

    first = take("a.weight")
    assert torch.equal(first, take("a.weight"))
    for other in (take("b.weight"), take("a.weight", "encoder"), take("a.weight", seed=1)):
        assert not torch.equal(first, other)
    assert first.dtype == torch.bfloat16


def test_weights_have_the_size_that_keeps_activations():
    shapes = {
        "layers.0.mlp.up_proj.weight": (512, 256),
        "layers.0.mlp.down_proj.weight": (256, 512),
        "layers.0.input_layernorm.weight": (4096,),
        "layers.0.self_attn.q_proj.bias": (4096,),
    }
    weights = RandomWeights("decoder", shapes, CPU, residual_layers=64)
    up, down, norm, bias = (weights.take(name, shape).float() for name, shape in shapes.items())
    assert up.std().item() == pytest.approx(256**-0.5, rel=0.02)
    assert down.std().item() == pytest.approx((512 * 64) ** -0.5, rel=0.02)
    assert norm.mean().item() == pytest.approx(1.0, abs=0.01)
    assert 0 < bias.abs().max().item() < 0.2


def test_weights_that_are_missing_misshapen_or_left_over_are_refused():
    weights = RandomWeights("decoder", {"a.weight": (2, 2), "lm_head.weight": (2, 2)}, CPU)
    assert "a.weight" in weights
    assert "b.weight" not in weights
    with pytest.raises(CheckpointError, match=r"b\.weight is missing"):
        weights.take("b.weight", (2, 2))
    with pytest.raises(CheckpointError, match=r"a\.weight is \(2, 2\), asked for \(3, 2\)"):
        weights.take("a.weight", (3, 2))
    with pytest.raises(CheckpointError, match=r"a\.weight was not taken"):
        weights.refuse_extra(("lm_head.weight",))
    weights.take("a.weight", (2, 2))
    weights.refuse_extra(("lm_head.weight",))


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize(
    ("dtype", "least"),
    # Float32 differs by the order of sums; bfloat16 by 2^-9 an operation, twice the two models.
    [("float32", 1 - 1e-6), ("bfloat16", 0.9995)],
)
def test_the_stock_model_and_the_engine_give_the_same_vectors(
    name, dtype, least, tmp_path, corpus, monkeypatch
):
    monkeypatch.setattr(registry, "packed_kernel", lambda device: ("s", attend_one_by_one))
    monkeypatch.setattr(registry, "default_batch_tokens", lambda model: 300)
    session = open_session(tmp_path / name, name)
    workload = make_workload(corpus, session.tokenizer, Lengths(), 1500)
    expected = session.provider(Spec("engine", dtype)).embed(workload)
    for kind in ("device", "padded", "packed"):
        vectors = session.provider(Spec(kind, dtype)).embed(workload)
        assert vectors.dtype == torch.float32
        cosines = (vectors.double() * expected.double()).sum(dim=1)
        assert cosines.min() > least, kind
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)))


@pytest.mark.parametrize("part", ["decoder", "encoder"])
def test_buffers_of_a_module_without_storage_are_those_of_one_made_in_memory(part, tmp_path):
    from transformers import AutoModel

    synthetic = SyntheticCheckpoint.write(tmp_path / "model", MODELS["tiny-qwen2"], CPU)
    stock = getattr(StockModel.load(synthetic, torch.bfloat16), part)
    usual = AutoModel.from_config(stock.config)
    buffers = dict(stock.named_buffers())
    assert buffers
    for name, value in usual.named_buffers():
        assert torch.equal(buffers[name], value), name
        assert buffers[name].dtype == value.dtype
    assert {value.dtype for value in stock.parameters()} == {torch.bfloat16}


def test_packed_kernels_are_for_gpus(tmp_path):
    with pytest.raises(UnusableError, match="no attention kernel for packed sequences serves"):
        packed_kernel(CPU)
    with pytest.raises(UnusableError, match="no attention kernel"):
        open_session(tmp_path / "model").provider(Spec("packed", "float32"))


def test_stock_modules_refuse_what_they_were_not_written_for(tmp_path):
    session = open_session(tmp_path / "first", template=INSTRUCTION_FIRST)
    with pytest.raises(UnusableError, match="template"):
        session.provider(Spec("padded", "float32"))


def test_a_prompt_stands_before_the_text_in_the_decoder_alone(tmp_path):
    session = open_session(tmp_path / "model")
    workload = Workload(["what is it", "a"], prompt="find: ")
    ours, stock = (session.provider(Spec(kind, "float32")) for kind in ("engine", "padded"))
    assert compare(stock.embed(workload), ours.embed(workload)).min() > 1 - 1e-6


def test_padding_stands_behind_the_rows():
    numpy = pytest.importorskip("numpy")
    filled, real = pad([numpy.array([5, 6, 7]), numpy.array([8])])
    assert filled.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert real.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_engines_of_one_dtype_share_weights_until_nobody_asks_for_them(tmp_path):
    session = open_session(tmp_path / "model")
    plain, unshared = Spec("engine", "float32"), Spec("engine", "float32", share_prompts=False)
    other = Spec("engine", "float32", deterministic=True)
    models = [session.provider(s).engine._runner.checkpoint for s in (plain, unshared, other)]
    assert models[0] is models[1]
    assert models[0] is not models[2]
    assert session.provider(plain) is session.provider(plain)
    session.keep([other])
    assert session.provider(other).engine._runner.checkpoint is models[2]
    assert session.provider(plain).engine._runner.checkpoint is not models[0]


def test_texts_are_distinct_and_as_long_as_asked(tmp_path, corpus):
    session = open_session(tmp_path / "model")
    workload = make_workload(corpus, session.tokenizer, Lengths(32), 3200)
    assert len(workload.texts) == len(set(workload.texts)) == 100
    # Cut in the middle of a word, a text may give a token more or less than it did in its corpus.
    assert workload.decoder_tokens == pytest.approx(3200, rel=0.03)
    assert workload.encoder_tokens > 0
    again = make_workload(corpus, session.tokenizer, Lengths(32), 3200)
    assert again.texts == workload.texts


def test_log_normal_texts_fit_the_models(tmp_path, corpus):
    session = open_session(tmp_path / "model")
    workload = make_workload(corpus, session.tokenizer, Lengths(), 20000)
    rows = [len(text.token_ids) for text in workload.tokenized]
    assert max(rows) > 4 * min(rows)
    assert max(rows) <= 512


def test_calls_and_parts_of_a_workload_keep_its_texts(tmp_path, corpus):
    session = open_session(tmp_path / "model")
    workload = make_workload(corpus, session.tokenizer, Lengths(), 1000, texts_per_call=3)
    assert [text for call in workload.calls() for text in call] == workload.texts
    assert max(map(len, workload.calls())) == 3
    part = workload.some(2)
    lengths = sorted(map(len, workload.texts))
    assert sorted(map(len, part.texts)) == [lengths[0], lengths[-1]]
    assert part.decoder_tokens == sum(len(text.token_ids) for text in part.tokenized)
    assert len(workload.some(10**6).texts) == len(workload.texts)


def test_a_prompt_is_counted_with_every_text(tmp_path, corpus):
    session = open_session(tmp_path / "model", template=INSTRUCTION_FIRST)
    workload = make_workload(corpus, session.tokenizer, Lengths(18), 500, prompt_tokens=32)
    assert len(workload.texts) == 10
    assert workload.decoder_tokens == pytest.approx(10 * (32 + 18), rel=0.05)
