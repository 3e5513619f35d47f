"""Make the checkpoint that the training of ``c2v-mini`` starts from.

    python examples/c2v_mini/initialise.py DATA OUT [--random]

Both tokenizers are trained on the data's texts. Weights are drawn from a seed. Word embeddings are
learnt first, alone, as two bags of words (sentence-transformers' ``StaticEmbedding``), one for each
tokenizer, with the same contrastive loss on the same pairs: minutes on a CPU. The other weights
are then drawn so that the whole model computes about these bags of words, the contextual token the
encoder's and EOS the decoder's: training starts there, not from noise. ``--random`` leaves both
out: the untrained model of the figures.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer, WordPieceTrainer
from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel

from c2v_engine.model.config import Causal2VecConfig, EncoderConfig, ProjectorConfig
from c2v_engine.model.modules_json import save_modules_json

CONSTANT = 4.0
State = dict[str, torch.Tensor]

SEED = 20261
VOCABULARY = 8192
WIDTH = 256
STATIC_BATCH, STATIC_EPOCHS, STATIC_RATE = 1024, 2, 0.1

ENCODER_FILE, DECODER_FILE = "encoder/model.safetensors", "decoder/model.safetensors"
PROJECTOR_FILE = "projector.safetensors"

BERT_SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LLAMA_SPECIALS = ["<|begin_of_text|>", "<|end_of_text|>"]
LLAMA_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

ENCODER: dict[str, Any] = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
    "dtype": "bfloat16",
}
DECODER: dict[str, Any] = {
    "architectures": ["LlamaModel"],
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "intermediate_size": 704,
    "hidden_act": "silu",
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "dtype": "bfloat16",
}
PROMPTS = {"query": "query: ", "document": ""}
CONFIG = Causal2VecConfig(
    max_length=512,
    encoder=EncoderConfig(max_length=512),
    projector=ProjectorConfig(hidden_size=2 * WIDTH),
    prompts=PROMPTS,
)
LAST_TOKEN = Causal2VecConfig(
    template=("{prompt}{text}", "<eos>"), pooling=("<eos>",), max_length=512, prompts=PROMPTS
)


def word_piece(texts: list[str]) -> Tokenizer:
    """Train a lower-case WordPiece tokenizer as BERT has it."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    counts = Counter(
        character for text in texts for character in tokenizer.normalizer.normalize_str(text)
    )
    alphabet = sorted(
        character for character, count in counts.items() if count >= 20 and not character.isspace()
    )
    # The trainer numbers continuation characters in hash order, so they are named before it runs.
    named = [f"##{character}" for character in alphabet]
    trainer = WordPieceTrainer(
        vocab_size=VOCABULARY,
        special_tokens=BERT_SPECIALS + named,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    trained = Tokenizer(models.WordPiece(tokenizer.get_vocab(), unk_token="[UNK]"))
    trained.normalizer, trained.pre_tokenizer = tokenizer.normalizer, tokenizer.pre_tokenizer
    trained.add_special_tokens(BERT_SPECIALS)
    trained.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    trained.decoder = decoders.WordPiece()
    return trained


def byte_level(texts: list[str]) -> Tokenizer:
    """Train a byte-level BPE tokenizer as Llama 3 has it, but on lower-case letters.

    Eight thousand tokens are too few to spend them on ``Parse``, `` Parse`` and ``parse`` each.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=LLAMA_SPECIALS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    begin = LLAMA_SPECIALS[0]
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single=f"{begin} $A", special_tokens=[(begin, 0)]),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def read_pairs(path: Path) -> dict[str, list[str]]:
    """The training pairs' two columns."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {column: [row[column] for row in rows] for column in ("query", "positive")}


def static_embeddings(
    tokenizer: Tokenizer, pairs: dict[str, list[str]], folder: str
) -> torch.Tensor:
    """Learn a vector per token as a bag of words: ``[vocabulary, width - 2]`` float32."""
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    torch.manual_seed(SEED)
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=WIDTH - 2)])
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=STATIC_BATCH,
            num_train_epochs=STATIC_EPOCHS,
            learning_rate=STATIC_RATE,
            warmup_ratio=0.1,
            lr_scheduler_type="linear",
            weight_decay=0.0,
            logging_steps=20,
            save_strategy="no",
            report_to="none",
            seed=SEED,
            use_cpu=True,
        ),
        train_dataset=Dataset.from_dict(pairs),
        loss=MultipleNegativesRankingLoss(model),
    )
    trainer.train()
    weight: torch.Tensor = model[0].embedding.weight.detach()
    return weight.clone()


def draw(shapes: dict[str, tuple[int, ...]], generator: torch.Generator) -> State:
    """Draw every parameter: normal, of variance 1 / inputs; biases 0, norms 1."""
    state = {}
    for name, shape in shapes.items():
        if name.endswith("bias"):
            state[name] = torch.zeros(shape)
        elif "norm" in name.lower():
            state[name] = torch.ones(shape)
        else:
            scale = 0.02 if "embed" in name else 1 / math.sqrt(shape[-1])
            state[name] = torch.randn(shape, generator=generator) * scale
    return state


def start_as_words(states: dict[str, State], tables: dict[str, torch.Tensor]) -> None:
    """Let the model compute bags of words at first.

    The norms would take from every word the length that says how much it matters; so all words
    share one large constant in their first dimensions, which keeps the rest in proportion, and
    which the last norm takes out. The projector passes its input on: gelu(x) - gelu(-x) = x. The
    decoder's first layer gives every row the mean of the rows up to it.
    """
    encoder, decoder = states[ENCODER_FILE], states[DECODER_FILE]
    encoder["embeddings.word_embeddings.weight"] = with_constant(tables["encoder"])
    decoder["embed_tokens.weight"] = with_constant(tables["decoder"])
    # What a layer adds starts at zero: a constant would outweigh the words, of which long texts
    # have small means.
    outputs = ("o_proj", "down_proj", "output.dense", "position_emb", "token_type_emb")
    for state in (encoder, decoder):
        for name in state:
            if any(part in name for part in outputs):
                state[name] *= 0.0
            if "q_proj" in name or "k_proj" in name:
                state[name] *= 0.2  # nearly uniform attention
    eye = torch.eye(WIDTH)
    for name in ("v_proj", "o_proj"):
        decoder[f"layers.0.self_attn.{name}.weight"] = eye.clone()
    # Special tokens, the vocabularies' first, stand in every text and say nothing at first.
    encoder["embeddings.word_embeddings.weight"][: len(BERT_SPECIALS), 2:] = 0.0
    decoder["embed_tokens.weight"][: len(LLAMA_SPECIALS), 2:] = 0.0
    # No layer reads the constant: its weights would learn it before anything else. What a norm
    # gives to a layer has an RMS near 1 without it.
    for name in decoder:
        if name.endswith("layernorm.weight"):
            decoder[name] *= CONSTANT
        if "norm" in name:
            decoder[name][:2] = 0.0
    for name in encoder:
        if any(part in name for part in ("query.w", "key.w", "value.w", "intermediate.dense.w")):
            encoder[name][:, :2] = 0.0
    projector = states[PROJECTOR_FILE]
    projector["linear_1.weight"] = torch.cat([eye, -eye])
    projector["linear_2.weight"] = torch.cat([eye, -eye], dim=1)


def with_constant(table: torch.Tensor) -> torch.Tensor:
    """Put a constant of four usual words' length before each word; rows get an RMS near 1.

    It is two numbers of opposite signs, which a LayerNorm's mean does not see.
    """
    length = float(table.norm(dim=1).mean())
    size = CONSTANT * length / math.sqrt(2)
    constant = torch.tensor([size, -size]).expand(len(table), 2)
    return torch.cat([constant, table], dim=1) * math.sqrt(WIDTH) / (CONSTANT * length)


def random_weights() -> dict[str, State]:
    """Draw every weight file of the model, by its path, from the seed."""
    with torch.device("meta"):
        encoder = BertModel(BertConfig(**ENCODER), add_pooling_layer=False)
        decoder = LlamaModel(LlamaConfig(**DECODER))
    hidden = 2 * WIDTH
    projector = {
        "linear_1.weight": (hidden, WIDTH),
        "linear_1.bias": (hidden,),
        "linear_2.weight": (WIDTH, hidden),
        "linear_2.bias": (WIDTH,),
    }
    generator = torch.Generator().manual_seed(SEED)
    return {
        ENCODER_FILE: draw(_shapes(encoder), generator),
        DECODER_FILE: draw(_shapes(decoder), generator),
        PROJECTOR_FILE: draw(projector, generator),
    }


def _shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def write(directory: Path, pairs: dict[str, list[str]], learn_words: bool) -> None:
    """Write the checkpoint, and beside it the last-token one of the comparison.

    ``<directory>-last-token`` has the same decoder, and neither encoder nor contextual token.
    """
    texts = pairs["query"] + pairs["positive"]
    tokenizers = {"encoder": word_piece(texts), "decoder": byte_level(texts)}
    states = random_weights()
    if learn_words:
        with tempfile.TemporaryDirectory() as folder:
            tables = {
                part: static_embeddings(tokenizer, pairs, folder)
                for part, tokenizer in tokenizers.items()
            }
        start_as_words(states, tables)
    specials = {
        "encoder": {f"{name[1:-1].lower()}_token": name for name in BERT_SPECIALS},
        "decoder": {"bos_token": LLAMA_SPECIALS[0], "eos_token": LLAMA_SPECIALS[1]},
    }
    last_token = directory.with_name(directory.name + "-last-token")
    for target, config in ((directory, CONFIG), (last_token, LAST_TOKEN)):
        for part in ("encoder", "decoder") if config.encoder else ("decoder",):
            folder = target / part
            folder.mkdir(parents=True, exist_ok=True)
            tokenizers[part].save(str(folder / "tokenizer.json"), pretty=False)
            _write_json(folder / "config.json", ENCODER if part == "encoder" else DECODER)
            settings = {"tokenizer_class": "PreTrainedTokenizerFast", **specials[part]}
            _write_json(folder / "tokenizer_config.json", settings)
        for path, values in states.items():
            if (target / path).parent.is_dir() and (config.encoder or "projector" not in path):
                save_file(values, target / path, metadata={"format": "pt"})
        config.save(target)
        save_modules_json(config, target)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def main() -> int:
    """Write the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path, help="the pairs, as mine_pairs.py writes them")
    parser.add_argument("output", type=Path)
    parser.add_argument("--random", action="store_true", help="learn no word embeddings first")
    arguments = parser.parse_args()
    write(arguments.output, read_pairs(arguments.data), learn_words=not arguments.random)
    return 0


if __name__ == "__main__":
    sys.exit(main())
