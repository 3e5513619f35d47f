"""Reading weight files, and what weights that are not finite do to texts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from checkpoints import Recipe, corpus, tokenizer
from damage import assert_refused, copy, edit_weights, open_engine
from safetensors.torch import save_file

from c2v_engine.errors import CheckpointError, TextError
from c2v_engine.model.weights import WeightFolder

TEXTS = [" ".join(text.split()[:12]) for text in corpus()[20:32]]
PRECISIONS = ("float32", "float16", "bfloat16", "int8", "uint8", "binary", "ubinary")


@pytest.fixture(autouse=True)
def one_thread():
    """More threads than these tiny models can use only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def folder(tmp_path):
    tensors = {
        "a": torch.arange(6.0).view(2, 3),
        "b": torch.ones(2, dtype=torch.bfloat16),
        "c": torch.ones(2, dtype=torch.float64),
        "d": torch.ones(2, dtype=torch.float16),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    return WeightFolder(tmp_path)


def test_a_weight_is_read_in_its_stored_dtype(folder):
    assert torch.equal(folder.take("a", (2, 3)), torch.arange(6.0).view(2, 3))
    dtypes = {name: folder.take(name, (2,)).dtype for name in "bcd"}
    assert dtypes == {"b": torch.bfloat16, "c": torch.float64, "d": torch.float16}
    assert folder.stored_dtype("b") == torch.bfloat16
    assert folder.stored_dtype("a") == torch.float32


def test_names_are_known_without_reading(folder):
    assert set(folder.names) == set("abcd")
    assert "a" in folder
    assert "e" not in folder


def test_only_what_nobody_took_is_extra(folder):
    folder.take("a", (2, 3))
    folder.take("b", (2,))
    assert_refused(folder.refuse_extra, "weight c and 1 more", "model.safetensors")
    folder.refuse_extra(["c", "d"])
    folder.take("c", (2,))
    assert_refused(folder.refuse_extra, "weight d is not part")


def test_an_ignorable_ending_does_not_excuse_other_names(folder):
    for name in "abc":
        folder.take(name, (2, 3) if name == "a" else (2,))
    assert_refused(lambda: folder.refuse_extra(["c"]), "weight d ")


@pytest.mark.parametrize("shape", [(3, 2), (6,), (2, 3, 1), (2,), ()])
def test_another_shape_of_as_many_numbers_is_refused(folder, shape):
    assert_refused(lambda: folder.take("a", shape), "weight a", "[2, 3]", str(list(shape)))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.float8_e4m3fn])
def test_a_dtype_that_holds_no_plain_numbers_is_refused(tmp_path, dtype):
    save_file({"a": torch.zeros(3).to(dtype)}, tmp_path / "model.safetensors")
    assert_refused(lambda: WeightFolder(tmp_path).take("a", (3,)), "weight a", str(dtype))


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    assert_refused(lambda: WeightFolder(tmp_path / "none"), tmp_path / "none", "no such folder")


def test_one_file_is_read_rather_than_an_index_beside_it(folder, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text("not read", encoding="utf-8")
    assert set(WeightFolder(tmp_path).names) == set("abcd")


def test_weights_stored_in_float64_and_float32_give_one_embedding(checkpoint, engine, tmp_path):
    path = copy(checkpoint(Recipe()), tmp_path)
    for file in ("decoder/model.safetensors", "encoder/model.safetensors", "projector.safetensors"):
        edit_weights(path / file, lambda tensors: {k: v.double() for k, v in tensors.items()})
    assert np.array_equal(open_engine(path).encode(TEXTS), engine(Recipe()).encode(TEXTS))


# --- weights that are not finite ------------------------------------------------------------------

EMBEDDINGS = {
    "llama": ("decoder/model.safetensors", "embed_tokens.weight"),
    "bert": ("encoder/model.safetensors", "embeddings.word_embeddings.weight"),
}


def own_token(name):
    """A text's row, and a token id that it has and no other text."""
    ids = [set(row) for row in tokenizer(name)(TEXTS, add_special_tokens=False)["input_ids"]]
    for row in range(3, len(TEXTS)):
        others = set().union(*(ids[other] for other in range(len(TEXTS)) if other != row))
        if ids[row] - others:
            return row, min(ids[row] - others)
    raise AssertionError("every token is shared")


def spoil(path, file, name, index, value):
    def change(tensors):
        tensors[name][index] = value

    edit_weights(path / file, change)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", EMBEDDINGS)
def test_one_spoilt_embedding_row_is_an_error_of_the_texts_that_use_it_alone(
    checkpoint, engine, tmp_path, name, value
):
    path = copy(checkpoint(Recipe()), tmp_path)
    row, token = own_token(name)
    spoil(path, *EMBEDDINGS[name], token, value)
    spoilt = open_engine(path)
    for batch_tokens in (None, 1, 100):
        with pytest.raises(TextError, match=f"text {row}: .*not finite") as caught:
            spoilt.encode(TEXTS, batch_tokens=batch_tokens)
        assert caught.value.row == row
    with pytest.raises(TextError, match="text 0: "):
        spoilt.encode(TEXTS[row])
    others = TEXTS[:row] + TEXTS[row + 1 :]
    expected = engine(Recipe()).encode(others)
    np.testing.assert_allclose(spoilt.encode(others), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_text_that_is_not_finite_is_an_error_in_every_precision(checkpoint, tmp_path, precision):
    path = copy(checkpoint(Recipe()), tmp_path)
    row, token = own_token("llama")
    spoil(path, *EMBEDDINGS["llama"], token, float("nan"))
    options = {"precision": precision, "convert_to": "tensor", "truncate_dim": 2}
    options["ranges"] = np.array([[-1, -1], [1, 1]])
    with pytest.raises(TextError, match=f"text {row}: .*not finite"):
        open_engine(path).encode(TEXTS, **options)


def test_the_first_of_equal_texts_is_named(checkpoint, tmp_path):
    path = copy(checkpoint(Recipe()), tmp_path)
    row, token = own_token("llama")
    spoil(path, *EMBEDDINGS["llama"], token, float("nan"))
    texts = [TEXTS[0], TEXTS[row], TEXTS[1], TEXTS[row]]
    with pytest.raises(TextError, match="text 1: "):
        open_engine(path).encode(texts)


def test_spoilt_rows_of_tokens_that_no_text_has_do_nothing(checkpoint, engine, tmp_path):
    path = copy(checkpoint(Recipe()), tmp_path)
    # Row 0 is the id that contextual rows hold before the contextual token takes their place.
    for row in (0, 704):
        spoil(path, *EMBEDDINGS["llama"], row, float("nan"))
    spoil(path, *EMBEDDINGS["bert"], 0, float("nan"))
    assert np.array_equal(open_engine(path).encode(TEXTS), engine(Recipe()).encode(TEXTS))


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("decoder/model.safetensors", "layers.0.self_attn.v_proj.weight"),
        ("decoder/model.safetensors", "norm.weight"),
        ("encoder/model.safetensors", "encoder.layer.1.output.LayerNorm.bias"),
        ("projector.safetensors", "linear_1.weight"),
    ],
)
def test_a_spoilt_weight_of_every_text_is_never_embedded(checkpoint, tmp_path, file, name):
    path = copy(checkpoint(Recipe()), tmp_path)
    spoil(path, file, name, 0, float("nan"))
    spoilt = open_engine(path)
    for text in ("", TEXTS[0]):
        with pytest.raises(TextError, match=r"text 0: .*not finite"):
            spoilt.encode([text])


def test_weights_that_overflow_the_dtype_are_an_error_rather_than_a_vector(checkpoint, tmp_path):
    path = copy(checkpoint(Recipe()), tmp_path)
    row, token = own_token("llama")
    spoil(path, *EMBEDDINGS["llama"], token, 1e6)
    assert np.isfinite(open_engine(path).encode(TEXTS)).all()
    with pytest.raises(TextError, match=f"text {row}: .*not finite"):
        open_engine(path, dtype="float16").encode(TEXTS)


def test_loading_does_not_change_the_files(checkpoint, tmp_path):
    path = copy(checkpoint(Recipe(adapter="lora")), tmp_path)
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    open_engine(path).encode(TEXTS)
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before


def test_the_error_of_a_text_is_an_error_of_the_input():
    error = TextError(7, "is int")
    assert str(error) == "text 7: is int"
    assert not isinstance(error, CheckpointError)
