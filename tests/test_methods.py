"""Checkpoints made by a method's name, against the reference one text at a time.

Tolerances are those of ``test_parity.py``: rounding alone differs by about 3e-7 in float32.
"""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from checkpoints import Recipe
from recipes import TEXTS

from c2v_engine import Causal2Vec
from c2v_engine.errors import CheckpointError, ConfigError, TextError, UnsupportedError
from c2v_engine.integrations.contextual import describe_causal
from c2v_engine.model.config import Causal2VecConfig
from c2v_engine.model.methods import METHODS, in_context_prompt
from c2v_engine.reference import Causal2VecReference

FLOAT32_TOLERANCE = 1e-5
BFLOAT16_COSINE = 0.999
DECODERS = ("llama", "qwen2", "mistral")  # the last one has a sliding window of 12 rows
EXAMPLES = [("Find it.", "who?", "nobody"), ("Find it.", "where?", "nowhere")]
# Every method, and what distinguishes the checkpoints of one.
PRESETS = {
    "causal2vec": {},
    "last-token": {},
    "echo": {},
    "in-context": {"examples": EXAMPLES, "max_length": 160},
    "bidirectional-mean": {},
    "summary-tokens": {},
    "summary-tokens-1": {"summary_tokens": 1},
}
SUMMARY = Recipe(
    template=("{prompt}{text}", "<summary>"),
    pooling=("<summary>",),
    encoder=None,
    summary_tokens=4,
)
LONG_PROMPT = "Represent this text so that others of its kind are found: "


@pytest.fixture(autouse=True)
def one_thread():
    """More threads than these tiny models can use only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def created(checkpoint, tmp_path_factory):
    """``created(decoder, preset)`` gives the directory of a checkpoint made by a method's name."""
    made = {}

    def create(decoder, preset):
        if (decoder, preset) not in made:
            parts = checkpoint(Recipe(decoder=decoder))
            method = preset.removesuffix("-1")
            options = {"max_length": 48, "prompts": {"short": "Find: "}, **PRESETS[preset]}
            if method == "causal2vec":
                options |= {"encoder": parts / "encoder", "encoder_options": {"max_length": 40}}
            output = tmp_path_factory.mktemp(preset) / "model"
            Causal2Vec.create(output, parts / "decoder", method=method, **options)
            made[decoder, preset] = output
        return made[decoder, preset]

    return create


def opened(path, **options):
    return Causal2Vec.from_pretrained(path, device="cpu", **{"dtype": "float32", **options})


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("preset", PRESETS)
def test_every_method_computes_what_the_reference_does(created, preset, decoder):
    path = created(decoder, preset)
    engine, reference = opened(path), Causal2VecReference.from_pretrained(path)
    prompts = ["query" if preset == "in-context" else "short"]
    prompts += [] if preset == "bidirectional-mean" else [None]  # it has no row for an empty text
    for name in prompts:
        expected = reference.encode(TEXTS, prompt_name=name).numpy()
        for batch_tokens in (None, 100):
            actual = engine.encode(TEXTS, prompt_name=name, batch_tokens=batch_tokens)
            np.testing.assert_allclose(actual, expected, rtol=0, atol=FLOAT32_TOLERANCE)
    half = opened(path, dtype="bfloat16").encode(TEXTS, prompt_name=prompts[-1])
    assert (half * expected).sum(axis=1).min() >= BFLOAT16_COSINE
    assert engine.info()["method"] == preset.removesuffix("-1")


@pytest.mark.parametrize("preset", PRESETS)
def test_deterministic_mode_has_one_vector_for_a_text(created, preset):
    engine = opened(created("mistral", preset), deterministic=True)
    name = "query" if preset == "in-context" else "short"
    texts = TEXTS[::2]
    alone = np.stack([engine.encode(text, prompt_name=name) for text in texts])
    for batch_tokens in (90, 5000):
        together = engine.encode(texts[::-1], prompt_name=name, batch_tokens=batch_tokens)
        np.testing.assert_array_equal(together[::-1], alone)


def test_a_text_without_rows_is_refused_by_its_number(created):
    with pytest.raises(TextError, match="no rows at all"):
        opened(created("llama", "bidirectional-mean")).encode(["a", ""])


@pytest.mark.parametrize("pooling", [3, "<eos>"])
def test_echos_own_wording_can_be_expressed(checkpoint, reference, pooling):
    template = ("<bos>", "{prompt}{text}", "\nQuery again:", "{text}", "<eos>")
    recipe = Recipe(decoder="mistral", encoder=None, template=template, pooling=(pooling,))
    prompt = "Instruct:Find it,\nQuery:"
    expected = reference(recipe).encode(TEXTS, prompt=prompt).numpy()
    actual = opened(checkpoint(recipe)).encode(TEXTS, prompt=prompt)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=FLOAT32_TOLERANCE)


# --- summary tokens -----------------------------------------------------------------------------


@pytest.mark.parametrize("summary_tokens", [1, 4])
@pytest.mark.parametrize("attention", ["auto", "sdpa"])
@pytest.mark.parametrize(
    "recipe",
    [
        replace(SUMMARY, decoder="qwen2_sliding"),
        replace(SUMMARY, decoder="mistral", template=("<bos>", "{prompt}", "{text}", "<summary>")),
        replace(
            SUMMARY,
            encoder="bert",
            template=("{prompt}", "<context>", "{text}", "<summary>"),
            pooling=("<context>", "<summary>", 2),
        ),
    ],
    ids=["one-layer-with-a-window", "prompt-first", "with-context"],
)
def test_summary_tokens_in_other_templates(
    checkpoint, reference, recipe, attention, summary_tokens
):
    recipe = replace(recipe, summary_tokens=summary_tokens)
    for share in (True, False):
        engine = opened(checkpoint(recipe), attention=attention, share_prompts=share)
        for prompt in ("", LONG_PROMPT):
            expected = reference(recipe).encode(TEXTS, prompt=prompt).numpy()
            actual = engine.encode(TEXTS, prompt=prompt)
            np.testing.assert_allclose(actual, expected, rtol=0, atol=FLOAT32_TOLERANCE)


def states_of(model, run, module):
    """Every row's last hidden state, of the decoder of either implementation."""
    found = []
    original = module.forward

    def recording(*arguments, **options):
        result = original(*arguments, **options)
        found.append(getattr(result, "last_hidden_state", result).detach().clone())
        return result

    module.forward = recording
    try:
        run(model)
    finally:
        module.forward = original
    return found[0].flatten(0, -2)


@pytest.mark.parametrize("decoder", ["llama", "mistral"])
@pytest.mark.parametrize("kind", ["reference", "engine"])
def test_no_row_sees_another_summary_token(checkpoint, kind, decoder):
    path = checkpoint(replace(SUMMARY, decoder=decoder))
    if kind == "reference":
        model = Causal2VecReference.from_pretrained(path)
        module, rows = model.decoder, model.summary
    else:
        model = opened(path)
        inner = model._runner.checkpoint.model
        module, rows = inner.decoder, inner.summary

    def run(model):
        model.encode(["one two three four five six seven eight nine ten eleven twelve"])

    before = states_of(model, run, module)
    with torch.no_grad():
        rows[1] += 1.0
    after = states_of(model, run, module)
    changed = (before != after).any(dim=1).nonzero().flatten().tolist()
    assert changed == [len(before) - 3]  # the second of four, which are the last rows


def test_every_summary_token_sees_the_text(checkpoint):
    model = opened(checkpoint(SUMMARY))
    first, second = (
        states_of(
            model,
            lambda model, text=text: model.encode([text]),
            model._runner.checkpoint.model.decoder,
        )
        for text in ("the very same words", "for very same words")
    )
    assert (first[-4:] != second[-4:]).any(dim=1).all()


def test_summary_embeddings_have_gradients_and_are_saved(checkpoint, tmp_path):
    from c2v_engine.training.saving import save_checkpoint

    path = checkpoint(SUMMARY)
    model = Causal2VecReference.from_pretrained(path)
    model(model.tokenize(["one text", "another text, which is longer"])).square().sum().backward()
    assert (model.summary.grad.abs().sum(dim=1) > 0).all()
    with torch.no_grad():
        model.summary -= 0.1 * model.summary.grad
    save_checkpoint(model, path, tmp_path / "trained", torch.float32)
    expected = model.encode(TEXTS).numpy()
    actual = opened(tmp_path / "trained").encode(TEXTS)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=FLOAT32_TOLERANCE)


def test_summary_tokens_belong_to_the_checkpoint(created, checkpoint, tmp_path):
    path = created("llama", "summary-tokens")
    engine = opened(path)
    engine.save_pretrained(tmp_path / "copy")
    copy = opened(tmp_path / "copy")
    assert copy.info()["fingerprint"] == engine.info()["fingerprint"]
    assert copy.info()["summary tokens"] == 4
    np.testing.assert_array_equal(copy.encode(TEXTS), engine.encode(TEXTS))
    shutil.copyfile(
        checkpoint(SUMMARY) / "summary.safetensors", tmp_path / "copy" / "summary.safetensors"
    )
    assert opened(tmp_path / "copy").info()["fingerprint"] != engine.info()["fingerprint"]
    (tmp_path / "copy" / "summary.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"summary\.safetensors"):
        opened(tmp_path / "copy")
    with pytest.raises(UnsupportedError, match="<summary>"):
        describe_causal(path)


def test_new_summary_tokens_look_like_the_decoders_own(created, checkpoint, tmp_path):
    from safetensors.torch import load_file

    parts = checkpoint(Recipe(decoder="llama"))
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        options = {"method": "summary-tokens", "summary_tokens": 64, "max_length": 200}
        Causal2Vec.create(tmp_path / name, parts / "decoder", seed=seed, **options)
    a, b, c = (load_file(tmp_path / name / "summary.safetensors")["weight"] for name in "abc")
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    table = load_file(parts / "decoder" / "model.safetensors")["embed_tokens.weight"]
    # Of 64 x 64 numbers the deviation is known to about a hundredth of itself.
    assert abs(float(a.std() / table.std()) - 1) < 0.05


def test_a_config_without_summary_tokens_is_written_as_before():
    assert (
        "summary_tokens"
        not in Causal2VecConfig(template=("{text}", "<eos>"), pooling=("<eos>",)).to_dict()
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"template": ("{text}", "<eos>"), "pooling": (1,)}, "template has no <summary>"),
        ({"summary_tokens": 0}, "must be at least 1"),
        ({"summary_tokens": -1}, "whole number"),
        ({"summary_tokens": True}, "whole number"),
        ({"template": ("<summary>", "{text}", "<summary>"), "pooling": (0,)}, "2 times"),
        ({"template": ("{text}", "<summary>", "<eos>")}, "'<eos>' after <summary>"),
        ({"attention": "bidirectional"}, "attention is 'bidirectional'"),
        ({"max_length": 4}, "single rows alone take 4"),
    ],
)
def test_summary_tokens_that_can_not_be_are_refused(changes, reason):
    fields = {"template": ("{text}", "<summary>"), "pooling": ("<summary>",), "summary_tokens": 4}
    with pytest.raises(ConfigError, match=reason):
        Causal2VecConfig(**{**fields, **changes})


# --- creating -----------------------------------------------------------------------------------


def test_examples_are_rendered_as_bge_en_icl_does():
    examples = [("Do a.", "q1", "r1"), ("Do a.", "q2\nmore", "r2")]
    first = "<instruct>Do a.\n<query>q1\n<response>r1\n\n"
    second = "<instruct>Do a.\n<query>q2\nmore\n<response>r2\n\n"
    assert in_context_prompt(examples) == first + second + "<instruct>Do a.\n<query>"
    assert in_context_prompt(examples[:1], "Do b.") == first + "<instruct>Do b.\n<query>"
    assert in_context_prompt([], "Do b.") == "<instruct>Do b.\n<query>"


def test_the_examples_rows_are_shared(created):
    engine = opened(created("llama", "in-context"))
    prompt = engine.prompts["query"]
    assert len(engine._runner._shared_prompt(prompt).token_ids) > 20


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"method": "lasttoken"}, "method is 'lasttoken', expected one of causal2vec, last-token"),
        ({"method": "echo", "template": ["{text}"]}, "both method and template"),
        ({"method": "echo", "pooling": [0]}, "both method and pooling"),
        ({"method": "echo", "attention": "causal"}, "both method and attention"),
        ({"method": "echo", "summary_tokens": 2}, "template has no <summary>"),
        ({"method": "echo", "examples": EXAMPLES}, "examples can be given with method"),
        ({"method": "echo", "instruction": "Find."}, "instruction can be given with method"),
        ({"method": "in-context", "examples": []}, "0 different instructions"),
        (
            {"method": "in-context", "examples": [("a", "b", "c"), ("d", "e", "f")]},
            "2 different instructions",
        ),
        ({"method": "in-context", "examples": [("a", "b")]}, r"examples\[0\] is"),
        (
            {"method": "in-context", "examples": EXAMPLES, "prompts": {"query": "x"}},
            "prompts has 'query'",
        ),
        ({"method": "causal2vec"}, "an encoder must be given"),
        ({"method": "last-token", "encoder": "encoder"}, "no encoder can be given"),
    ],
)
def test_options_that_do_not_go_together_are_refused(checkpoint, tmp_path, options, reason):
    parts = checkpoint(Recipe(decoder="llama"))
    if "encoder" in options:
        options = {**options, "encoder": parts / options["encoder"]}
    with pytest.raises(ConfigError, match=reason):
        Causal2Vec.create(tmp_path / "new", parts / "decoder", **options)
    assert not (tmp_path / "new").exists()


def test_every_preset_names_its_paper():
    assert all(method.paper.startswith("arXiv ") for method in METHODS.values())
    assert {preset.removesuffix("-1") for preset in PRESETS} == set(METHODS)
