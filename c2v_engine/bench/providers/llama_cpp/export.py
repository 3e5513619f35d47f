"""A decoder's weights in a GGUF file, as llama.cpp reads its Llama and Qwen2 families.

llama.cpp rotates neighbouring elements of a head in Llama's family, transformers its two halves, so
the rows of Q and K are reordered within every head. In Qwen2's it rotates halves too.

The file has a vocabulary of one token. llama.cpp multiplies every row with the LM head, or with the
token embeddings in its place, although nobody asks for logits: for the shape llama-130m a quarter
more operations. So rows are given as embeddings.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from c2v_engine.bench.providers.base import UnusableError
from c2v_engine.bench.providers.libraries import library
from c2v_engine.model.decoder_shape import DecoderShape

__all__ = ["FILE_TYPES", "Q8_BLOCK", "not_exportable", "write_gguf"]

FAMILIES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2"}
"""llama.cpp's architecture of a transformers one."""
FILE_TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}
"""GGUF's types of the linear layers' weights, by our dtypes."""
Q8_BLOCK = 32
"""Weights that share a scale in Q8_0: along a row, so its length is a multiple."""
PARTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
ROTATED = ("attn_q", "attn_k")
EMBEDDINGS = "token_embd"


def not_exportable(config: Any, shape: DecoderShape, dtype: str) -> str:
    """Why a decoder can not be written for llama.cpp here; empty where it can.

    Args:
        config: the decoder's, of transformers.
        shape: of the decoder.
        dtype: of the file.
    """
    if config.model_type not in FAMILIES:
        return f"is written here for {', '.join(FAMILIES)}, not for {config.model_type}"
    if dtype not in FILE_TYPES:
        return f"computes in {', '.join(FILE_TYPES)} here, not in {dtype}"
    if any(window is not None for window in shape.windows):
        return "is written here for decoders without a sliding window"
    if shape.output_bias or shape.mlp_bias or (shape.qkv_bias and config.model_type != "qwen2"):
        return "is written here for Llama without biases and Qwen2 with those of Q, K and V"
    if shape.activation != "silu":
        return f"is written here for SiLU, not for {shape.activation}"
    rope_type = rope_parameters(config).get("rope_type", "default")
    if rope_type != "default":
        return f"is written here for plain rotary positions, not for {rope_type}"
    inner = (shape.hidden_size, shape.intermediate_size, shape.query_size)
    if dtype == "q8_0" and any(size % Q8_BLOCK for size in inner):
        return f"q8_0 takes widths that are multiples of {Q8_BLOCK}, not {inner}"
    return ""


def rope_parameters(config: Any) -> dict[str, Any]:
    """Of a transformers config."""
    return dict(getattr(config, "rope_parameters", None) or {})


def write_gguf(path: Path, decoder: Any, shape: DecoderShape, length: int, dtype: str) -> None:
    """Write a decoder to a file that is given rows of embeddings in place of token ids.

    Args:
        path: of the file.
        decoder: the transformers module, float32, without LM head.
        shape: of the decoder.
        length: most rows of a sequence.
        dtype: of the linear layers, a name in ``FILE_TYPES``.

    Raises:
        UnusableError: gguf is not installed, or the decoder does not fit llama.cpp.
    """
    why_not = not_exportable(decoder.config, shape, dtype)
    if why_not:
        raise UnusableError(f"llama.cpp {why_not}")
    gguf = library("gguf", "peers")
    family = FAMILIES[decoder.config.model_type]
    writer = gguf.GGUFWriter(path, family)
    describe(writer, gguf, decoder.config, shape, length, dtype)
    wide = gguf.GGMLQuantizationType[FILE_TYPES[dtype]]
    for name, parameter in decoder.named_parameters():
        target, kind = translate(name)
        values = parameter.detach()[: 1 if target == EMBEDDINGS else None].cpu().float().numpy()
        if family == "llama" and target in ROTATED:
            heads = values.shape[0] // shape.head_dim
            values = interleave(values, heads)
        if kind == "weight" and values.ndim == 2:
            values = gguf.quants.quantize(np.ascontiguousarray(values), wide)
            writer.add_tensor(tensor_name(name, target, kind), values, raw_dtype=wide)
        else:
            writer.add_tensor(tensor_name(name, target, kind), values)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def describe(
    writer: Any, gguf: Any, config: Any, shape: DecoderShape, length: int, dtype: str
) -> None:
    """Write the keys by which llama.cpp knows a model."""
    writer.add_vocab_size(1)
    writer.add_context_length(length)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_block_count(shape.num_layers)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(shape.num_attention_heads)
    writer.add_head_count_kv(shape.num_key_value_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(float(rope_parameters(config).get("rope_theta", 10000.0)))
    writer.add_layer_norm_rms_eps(shape.rms_norm_eps)
    writer.add_tokenizer_model("none")
    names = {"float32": "ALL_F32", "q8_0": "MOSTLY_Q8_0"}
    file_type = names.get(dtype, f"MOSTLY_{FILE_TYPES[dtype]}")
    writer.add_file_type(gguf.LlamaFileType[file_type])


def translate(name: str) -> tuple[str, str]:
    """llama.cpp's name of a module in transformers, and ``weight`` or ``bias``."""
    module, _, kind = name.rpartition(".")
    if module.startswith("layers."):
        return PARTS[module.split(".", 2)[2]], kind
    return {"embed_tokens": EMBEDDINGS, "norm": "output_norm"}[module], kind


def tensor_name(name: str, target: str, kind: str) -> str:
    """A tensor's whole name in the file."""
    block = f"blk.{name.split('.')[1]}." if name.startswith("layers.") else ""
    return f"{block}{target}.{kind}"


def interleave(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows ``[heads * D, ...]``, the halves of every head one by one: 0, D/2, 1, D/2 + 1, ..."""
    halves = rows.reshape(heads, 2, -1, *rows.shape[1:])
    joined: np.ndarray = halves.swapaxes(1, 2).reshape(rows.shape)
    return joined
