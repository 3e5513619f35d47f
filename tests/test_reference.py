"""The reference against things independent of it: stock modules by hand, gradients, itself padded.

Tolerance: the same float32 sums in another order differ by about 1e-7 on a unit vector.
"""

import shutil
import sys

import pytest
import torch
from checkpoints import INSTRUCTION_FIRST, Recipe, corpus
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer

from c2v_engine.errors import CheckpointError, InputError, TextError
from c2v_engine.reference import Causal2VecReference, Token, shorten

LAST_TOKEN = {"template": ("{prompt}{text}", "<eos>"), "pooling": ("<eos>",), "encoder": None}
TEXTS = ["", "a", "Grüße, 日本語 🙂", *corpus()[4:12], corpus()[0]]


@pytest.fixture(autouse=True)
def one_thread():
    """More threads than these tiny models can use only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@torch.inference_mode()
def test_dual_embedding_equals_stock_modules_put_together_by_hand(checkpoint, reference):
    path, text = checkpoint(), "Compare two sequences of lines."
    read = AutoTokenizer.from_pretrained(path / "encoder")(text, return_tensors="pt")
    states = AutoModel.from_pretrained(path / "encoder")(**read).last_hidden_state[0]
    weights = load_file(path / "projector.safetensors")
    hidden = weights["linear_1.weight"] @ states.mean(0) + weights["linear_1.bias"]
    hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
    context = weights["linear_2.weight"] @ hidden + weights["linear_2.bias"]

    tokenizer = AutoTokenizer.from_pretrained(path / "decoder")
    prompt = "Represent this question, please: "
    ids = tokenizer(prompt + text, add_special_tokens=False)["input_ids"]
    decoder = AutoModel.from_pretrained(path / "decoder")
    rows = decoder.embed_tokens(torch.tensor([*ids, tokenizer.eos_token_id]))
    states = decoder(inputs_embeds=torch.cat([context[None], rows])[None]).last_hidden_state[0]
    expected = torch.cat([states[0], states[-1]])
    expected = expected / expected.norm()

    actual = reference().encode([text], prompt_name="query")[0]
    assert (actual - expected).abs().max() < 1e-6


@torch.inference_mode()
def test_mean_embedding_equals_stock_modules_put_together_by_hand(checkpoint, reference):
    recipe = Recipe(
        decoder="mistral", template=("<bos>", "{text}"), pooling=("{text}",), encoder=None
    )
    tokenizer = AutoTokenizer.from_pretrained(checkpoint(recipe) / "decoder")
    ids = tokenizer("Compare two sequences.", add_special_tokens=False)["input_ids"]
    decoder = AutoModel.from_pretrained(checkpoint(recipe) / "decoder")
    states = decoder(torch.tensor([[tokenizer.bos_token_id, *ids]])).last_hidden_state[0]
    expected = torch.nn.functional.normalize(states[1:].mean(0), dim=0)
    assert (reference(recipe).encode(["Compare two sequences."])[0] - expected).abs().max() < 1e-6


RECIPES = {
    "llama": Recipe(),
    "instruction-first": Recipe(template=INSTRUCTION_FIRST),
    "mistral": Recipe(decoder="mistral"),
    "mixed-windows": Recipe(decoder="qwen2_sliding"),
    "bidirectional": Recipe(decoder="mistral", attention="bidirectional"),
    "bidirectional-mixed": Recipe(decoder="qwen2_sliding", attention="bidirectional"),
    "encoder-windows": Recipe(overflow="windows", encoder_max_length=12),
    "roberta": Recipe(encoder="roberta"),
    "mean": Recipe(template=("<bos>", "{text}"), pooling=("{text}",), encoder=None),
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_padding_does_not_change_an_embedding(reference, recipe):
    model = reference(recipe)
    alone = model.encode(TEXTS, prompt_name="query")
    assert torch.isfinite(alone).all()
    assert (model.encode(TEXTS, prompt_name="query", batch_size=5) - alone).abs().max() < 2e-6


def test_rows_come_back_in_the_order_of_the_texts(reference):
    backwards = reference().encode(TEXTS[::-1], batch_size=4)
    assert (reference().encode(TEXTS, batch_size=4) - backwards.flip(0)).abs().max() < 2e-6


@pytest.mark.parametrize("decoder", ["llama_odd", "mistral", "qwen2", "qwen3"])
def test_every_weight_takes_part_and_gets_a_gradient(checkpoint, decoder):
    model = Causal2VecReference.from_pretrained(checkpoint(Recipe(decoder=decoder)))
    output = model(model.tokenize(TEXTS, "find "))
    assert output.shape == (len(TEXTS), model.dimension)
    output.square().sum(dim=0).sqrt().sum().backward()
    # A key's bias moves all scores of a query alike, so softmax drops it; the pooler is unused.
    without = ("key.bias", "pooler.dense.weight", "pooler.dense.bias")
    for name, parameter in model.named_parameters():
        if not name.endswith(without):
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 1e-6, name


def test_order_of_the_words_matters(reference):
    words = corpus()[1].split()[:20]
    one, other = reference().encode([" ".join(words), " ".join(sorted(words))])
    assert one @ other < 0.999


def test_embeddings_are_unit_vectors_unless_asked_otherwise(reference):
    assert torch.allclose(reference().encode(TEXTS).norm(dim=1), torch.ones(len(TEXTS)))
    raw = reference().encode(TEXTS, normalize_embeddings=False)
    assert (raw.norm(dim=1) > 2).all()


def test_truncation_keeps_the_leading_dimensions_of_each_part(reference):
    whole = reference().encode(TEXTS, normalize_embeddings=False)
    kept = torch.cat([whole[:, :8], whole[:, 64:72]], dim=1)
    assert torch.equal(reference().encode(TEXTS, truncate_dim=16, normalize_embeddings=False), kept)
    assert torch.allclose(reference().encode(TEXTS, truncate_dim=16).norm(dim=1), torch.ones(1))


@pytest.mark.parametrize("truncate_dim", [0, 7, 130, -2])
def test_an_impossible_truncation_is_refused(reference, truncate_dim):
    with pytest.raises(InputError, match=f"truncate_dim is {truncate_dim}"):
        reference().encode(["a"], truncate_dim=truncate_dim)


def test_prompts_are_found_by_name_and_the_prompt_itself_wins(checkpoint, reference):
    model = reference()
    named = model.encode(TEXTS, prompt_name="query")
    prompt = model.config.prompts["query"]
    assert torch.equal(named, model.encode(TEXTS, prompt=prompt, prompt_name="document"))
    default = reference(Recipe(default_prompt_name="query"))
    assert torch.equal(named, default.encode(TEXTS))
    assert torch.equal(model.encode(TEXTS), default.encode(TEXTS, prompt=""))
    with pytest.raises(InputError, match="prompt_name is 'title', expected one of the prompts"):
        model.encode(TEXTS, prompt_name="title")


def rows(*occurrences):
    return [Token(number, 0, occurrence) for number, occurrence in enumerate(occurrences)]


def test_only_text_is_shortened_from_its_right():
    sequence = rows(None, None, (0, 0), (0, 0), (0, 0), None)
    assert [token.id for token in shorten(sequence, 6, 0)] == [0, 1, 2, 3, 4, 5]
    assert [token.id for token in shorten(sequence, 5, 0)] == [0, 1, 2, 3, 5]
    assert [token.id for token in shorten(sequence, 4, 0)] == [0, 1, 2, 5]


def test_copies_of_the_text_are_shortened_alike():
    sequence = rows((0, 0), (0, 0), (0, 0), (1, 0), (1, 0), (1, 0), None)
    assert [token.id for token in shorten(sequence, 6, 0)] == [0, 1, 3, 4, 6]
    assert [token.id for token in shorten(sequence, 5, 0)] == [0, 1, 3, 4, 6]
    assert [token.id for token in shorten(sequence, 4, 0)] == [0, 3, 6]


def test_a_prompt_that_leaves_no_room_names_the_text():
    model_rows = rows(None, None, None, (0, 0))
    with pytest.raises(
        TextError, match=r"text 7: .* take 3 tokens and leave too few of max_length 3"
    ):
        shorten(model_rows, 3, 7)
    assert len(shorten(model_rows[:3], 3, 7)) == 3
    with pytest.raises(TextError, match=r"text 7: .* leave too few of max_length 2"):
        shorten(rows((0, 0), (1, 0), None), 2, 7)


def test_a_long_prompt_and_a_wrong_type_name_their_row(reference):
    with pytest.raises(TextError, match=r"text 0: .*leave too few of max_length 48"):
        reference().encode(["short"], prompt="very long " * 60)
    with pytest.raises(TextError, match="text 1: expected a string, got int"):
        reference().encode(["short", 3], batch_size=2)


def test_a_text_that_gives_no_row_at_all_is_refused(reference):
    recipe = Recipe(template=("{text}",), pooling=("{text}",), encoder=None)
    with pytest.raises(TextError, match="text 1"):
        reference(recipe).encode(["one", ""])


def test_an_adapter_without_peft_is_refused_with_what_to_do(checkpoint, monkeypatch):
    path = checkpoint(Recipe(adapter="lora"))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(CheckpointError, match="pip install peft"):
        Causal2VecReference.from_pretrained(path)


@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
def test_an_adapter_of_another_model_is_refused(checkpoint, tmp_path):
    path = shutil.copytree(checkpoint(Recipe(adapter="lora")), tmp_path / "model")
    file = path / "adapter" / "adapter_model.safetensors"
    state = load_file(file)
    state = {name.replace("layers.1.", "layers.7."): value for name, value in state.items()}
    save_file(state, file)
    with pytest.raises(CheckpointError, match="does not fit the decoder"):
        Causal2VecReference.from_pretrained(path)


def test_eos_is_the_tokenizers_or_else_the_first_of_the_decoders(checkpoint):
    model = Causal2VecReference.from_pretrained(checkpoint(Recipe(**LAST_TOKEN)))
    assert model.tokenize(["a"])["input_ids"][0, -1] == model.decoder_tokenizer.eos_token_id
    model.decoder_tokenizer.eos_token = None
    model.decoder.config.eos_token_id = [9, 7]
    assert model.tokenize(["a"])["input_ids"][0, -1] == 9
    model.decoder.config.eos_token_id = None
    with pytest.raises(CheckpointError, match="defines no eos_token_id"):
        model.tokenize(["a"])
