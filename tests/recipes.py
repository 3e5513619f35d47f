"""Recipes of checkpoints that together reach every path of the model, and texts to try them on."""

from __future__ import annotations

from dataclasses import replace

from checkpoints import CONTEXT_FIRST, INSTRUCTION_FIRST, Recipe, corpus

WORDS = " ".join(corpus()[0].split())
LENGTHS = (1, 2, 5, 11, 12, 13, 23, 24, 31, 38, 39, 40, 41, 47, 48, 49, 60, 200)
TEXTS = [
    "",
    " ",
    "\n\n",
    "a",
    "Grüße, naïve café – 日本語のテキスト 🙂🙂🙂",
    "<s> [CLS] </s> <|end_of_text|> are only characters",
    "x" * 150,
    *corpus()[5:9],
    *(" ".join(WORDS.split()[:length]) for length in LENGTHS),
]

LAST_TOKEN = Recipe(template=("{prompt}{text}", "<eos>"), pooling=("<eos>",), encoder=None)
MEAN = Recipe(template=("<bos>", "{text}"), pooling=("{text}",), encoder=None)
ECHO = Recipe(template=("{text}", "{text}", "<eos>"), pooling=(1,), encoder=None)
WITH_BOS = ("<bos>", *CONTEXT_FIRST)
INSTRUCTION_BOS = ("<bos>", *INSTRUCTION_FIRST)

ARCHITECTURES = {
    "llama": Recipe(decoder="llama"),
    "llama-lora": Recipe(decoder="llama", adapter="lora", template=INSTRUCTION_FIRST),
    "llama-bos": Recipe(decoder="llama_2", template=WITH_BOS),
    "llama-head-dim": Recipe(decoder="llama_odd", template=INSTRUCTION_BOS, adapter="rslora"),
    "mistral": Recipe(decoder="mistral"),
    "mistral-lora": Recipe(decoder="mistral", template=INSTRUCTION_BOS, adapter="head"),
    "qwen2": Recipe(decoder="qwen2", adapter="lora"),
    "qwen2-instruction": Recipe(decoder="qwen2", template=INSTRUCTION_FIRST),
    "qwen2-window": Recipe(decoder="qwen2_sliding", template=INSTRUCTION_FIRST),
    "qwen3": Recipe(decoder="qwen3", template=INSTRUCTION_FIRST),
    "qwen3-lora": Recipe(decoder="qwen3", adapter="lora"),
    "qwen3-bias": Recipe(decoder="qwen3_bias"),
}
TEMPLATES = {
    "last-token": LAST_TOKEN,
    "last-token-qwen3": replace(LAST_TOKEN, decoder="qwen3"),
    "mean": MEAN,
    "mean-mistral": replace(MEAN, decoder="mistral"),
    "mean-of-prompt-and-text": replace(
        MEAN, template=("<bos>", "{prompt}{text}", "<eos>"), pooling=("{prompt}{text}",)
    ),
    "mean-of-all-rows": replace(
        MEAN, template=("<bos>", "{prompt}{text}", "<eos>"), pooling=("<all>", "<eos>")
    ),
    "echo": ECHO,
    "echo-mistral": replace(ECHO, decoder="mistral"),
    "echo-last-token": replace(ECHO, pooling=("<eos>",)),
    "echo-in-one-entry": replace(
        LAST_TOKEN, template=("{prompt}{text}\nAgain: {text}", "<eos>"), pooling=(0,)
    ),
    "prompt-pooled": replace(LAST_TOKEN, template=("{prompt}", "{text}", "<eos>"), pooling=(0, -1)),
    "text-in-the-middle": replace(
        LAST_TOKEN, template=('This sentence: "{text}" means in one word: "',), pooling=(0,)
    ),
    "three-parts": Recipe(
        template=("{prompt}", "<context>", "{text}", "<eos>"), pooling=("<context>", 2, "<eos>")
    ),
    "context-last": Recipe(template=("{prompt}{text}", "<context>"), pooling=("<context>",)),
    "two-contexts": Recipe(
        template=("<context>", "{prompt}{text}", "<context>", "<eos>"), pooling=(0, 2)
    ),
    "text-in-the-encoder-only": Recipe(template=("{prompt}", "<context>", "<eos>")),
    "bidirectional": Recipe(attention="bidirectional"),
    "bidirectional-mean-mistral": replace(MEAN, decoder="mistral", attention="bidirectional"),
    "bidirectional-window": Recipe(decoder="qwen2_sliding", attention="bidirectional"),
}
ENCODERS = {
    "roberta": Recipe(encoder="roberta"),
    "roberta-windows": Recipe(encoder="roberta", overflow="windows", encoder_max_length=16),
    "xlm-roberta": Recipe(encoder="xlm_roberta"),
    "windows": Recipe(overflow="windows", encoder_max_length=16),
    "windows-cls": Recipe(overflow="windows", encoder_max_length=11, encoder_pooling="cls"),
    "cls": Recipe(encoder_pooling="cls"),
    "prompt-in-the-encoder": Recipe(encoder_text="{prompt}{text} (in short)"),
    "gelu-tanh": Recipe(activation="gelu_tanh", projector_bias=False),
    "relu": Recipe(activation="relu"),
    "silu": Recipe(activation="silu"),
    "tanh": Recipe(activation="tanh"),
    "identity": Recipe(activation="identity", projector_bias=False),
}
STORED = {
    "llama3-rope": Recipe(rope="llama3"),
    "llama3-rope-legacy": Recipe(rope="llama3", legacy_rope=True),
    "linear-rope": Recipe(decoder="qwen3", rope="linear"),
    "linear-rope-legacy": Recipe(decoder="mistral", rope="linear", legacy_rope=True),
    "yarn-rope": Recipe(decoder="qwen2", rope="yarn"),
    "yarn-rope-legacy": Recipe(rope="yarn", legacy_rope=True),
    "legacy-rope": Recipe(legacy_rope=True),
    "tied-with-head": Recipe(decoder="qwen2", tied=True, head=True),
    "untied-with-head-in-shards": Recipe(head=True, sharded=True),
    "shards-with-lora": Recipe(decoder="mistral", sharded=True, adapter="head"),
    "bfloat16": Recipe(decoder="qwen3", storage="bfloat16"),
    "bfloat16-with-lora": Recipe(storage="bfloat16", adapter="lora", head=True),
}
