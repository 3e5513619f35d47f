"""The memory-bound passes over rows: norms, rotation, activations.

In what follows ``e`` is the bytes of an element. Addends are small, so that an op that writes in
place can be repeated: a 16-bit sum stops growing at some hundred times the addend.

The engine leaves biases to the matrix products, so the ops are measured without. ``BIASED_OPS`` are
the same for products that leave their bias out.
"""

from __future__ import annotations

from c2v_engine.kernels.add_layer_norm import (
    add_layer_norm,
    add_layer_norm_fp8,
    add_layer_norm_fp8_reference,
    add_layer_norm_reference,
)
from c2v_engine.kernels.add_rms_norm import (
    add_rms_norm,
    add_rms_norm_fp8,
    add_rms_norm_fp8_reference,
    add_rms_norm_reference,
)
from c2v_engine.kernels.bias_act import bias_act_, bias_act_reference_
from c2v_engine.kernels.qk_norm_rope import qk_norm_rope_, qk_norm_rope_reference_
from c2v_engine.kernels.quantize_rows import quantize_rows_fp8, quantize_rows_fp8_reference
from c2v_engine.kernels.silu_and_mul import (
    silu_and_mul,
    silu_and_mul_fp8,
    silu_and_mul_fp8_reference,
    silu_and_mul_reference,
)
from kernel_benchmark.case import Arguments, Draw, KernelOp, Sizes

__all__ = ["BIASED_OPS", "ROWWISE_OPS"]

EPS = 1e-6
SMALL = 0.1
SCALE = 4  # bytes of a float8 row's scale


def make_rms_norm(sizes: Sizes, draw: Draw) -> Arguments:
    tokens, hidden = sizes["tokens"], sizes["hidden"]
    return {
        "residual": draw.normal(tokens, hidden),
        "x": draw.normal(tokens, hidden, scale=SMALL),
        "weight": draw.normal(hidden, scale=SMALL, mean=1.0),
        "eps": EPS,
    }


def rms_norm_bytes(sizes: Sizes, e: int) -> int:
    """Residual and x read, residual and normed rows written; the weight read."""
    tokens, hidden = sizes["tokens"], sizes["hidden"]
    return 4 * tokens * hidden * e + hidden * e


def rms_norm_fp8_bytes(sizes: Sizes, e: int) -> int:
    """The same with the normed rows in one byte a value and a scale a row."""
    tokens, hidden = sizes["tokens"], sizes["hidden"]
    return tokens * hidden * (3 * e + 1) + tokens * SCALE + hidden * e


def make_layer_norm(sizes: Sizes, draw: Draw) -> Arguments:
    tokens, hidden = sizes["tokens"], sizes["hidden"]
    return {
        "x": draw.normal(tokens, hidden),
        "residual": draw.normal(tokens, hidden),
        "weight": draw.normal(hidden, scale=SMALL, mean=1.0),
        "bias": draw.normal(hidden, scale=SMALL),
        "eps": EPS,
    }


def make_biased_layer_norm(sizes: Sizes, draw: Draw) -> Arguments:
    bias = draw.normal(sizes["hidden"], scale=SMALL)
    return {**make_layer_norm(sizes, draw), "x_bias": bias}


def layer_norm_bytes(sizes: Sizes, e: int) -> int:
    """X and residual read, normed rows written; weight and bias read."""
    tokens, hidden = sizes["tokens"], sizes["hidden"]
    return 3 * tokens * hidden * e + 2 * hidden * e


def layer_norm_fp8_bytes(sizes: Sizes, e: int) -> int:
    """The same with the normed rows in one byte a value and a scale a row."""
    tokens, hidden = sizes["tokens"], sizes["hidden"]
    return tokens * hidden * (2 * e + 1) + tokens * SCALE + 2 * hidden * e


def biased_layer_norm_bytes(sizes: Sizes, e: int) -> int:
    """The bias of x read too."""
    return layer_norm_bytes(sizes, e) + sizes["hidden"] * e


def biased_layer_norm_fp8_bytes(sizes: Sizes, e: int) -> int:
    """Likewise."""
    return layer_norm_fp8_bytes(sizes, e) + sizes["hidden"] * e


def make_rope(sizes: Sizes, draw: Draw) -> Arguments:
    heads, kv_heads, head_dim = (sizes[key] for key in ("heads", "kv_heads", "head_dim"))
    tokens, length = sizes["tokens"], sizes["length"]
    angles = draw.normal(length, head_dim // 2).float()
    arguments: Arguments = {
        "qkv": draw.normal(tokens, (heads + 2 * kv_heads) * head_dim),
        "positions": draw.cycle(tokens // length, length),
        "cos": angles.cos().to(draw.dtype),
        "sin": angles.sin().to(draw.dtype),
        "num_query_heads": heads,
        "num_key_heads": kv_heads,
        "head_dim": head_dim,
        "eps": EPS,
    }
    if sizes["qk_norm"]:
        for name in ("query_norm", "key_norm"):
            arguments[name] = draw.normal(head_dim, scale=SMALL, mean=1.0)
    return arguments


def rope_bytes(sizes: Sizes, e: int) -> int:
    """Q and K read and written; positions, tables and norms read."""
    heads, kv_heads, head_dim = (sizes[key] for key in ("heads", "kv_heads", "head_dim"))
    vectors = (sizes["length"] + 2 * sizes["qk_norm"]) * head_dim
    return sizes["tokens"] * (2 * (heads + kv_heads) * head_dim * e + 4) + vectors * e


def make_biased_rope(sizes: Sizes, draw: Draw) -> Arguments:
    width = (sizes["heads"] + 2 * sizes["kv_heads"]) * sizes["head_dim"]
    return {**make_rope(sizes, draw), "bias": draw.normal(width, scale=SMALL)}


def biased_rope_bytes(sizes: Sizes, e: int) -> int:
    """V read and written too, and the bias read."""
    heads, kv_heads, head_dim = (sizes[key] for key in ("heads", "kv_heads", "head_dim"))
    values, width = kv_heads * head_dim, (heads + 2 * kv_heads) * head_dim
    return rope_bytes(sizes, e) + (2 * sizes["tokens"] * values + width) * e


def make_silu(sizes: Sizes, draw: Draw) -> Arguments:
    return {"gate_up": draw.normal(sizes["tokens"], 2 * sizes["intermediate"])}


def silu_bytes(sizes: Sizes, e: int) -> int:
    """Gate and up read, their product written."""
    return 3 * sizes["tokens"] * sizes["intermediate"] * e


def silu_fp8_bytes(sizes: Sizes, e: int) -> int:
    """The same with the product in one byte a value and a scale a row."""
    return sizes["tokens"] * (sizes["intermediate"] * (2 * e + 1) + SCALE)


def make_quantize(sizes: Sizes, draw: Draw) -> Arguments:
    return {"x": draw.normal(sizes["tokens"], sizes["hidden"])}


def quantize_fp8_bytes(sizes: Sizes, e: int) -> int:
    """X read, one byte a value and a scale a row written."""
    return sizes["tokens"] * (sizes["hidden"] * (e + 1) + SCALE)


def make_bias_act(sizes: Sizes, draw: Draw) -> Arguments:
    # Every call in place halves what is near 0, until only zeros are left of it: most values are
    # large enough to stay what they are.
    x = draw.normal(sizes["tokens"], sizes["intermediate"], scale=3.0, mean=4.0)
    return {"x": x, "bias": None, "activation": "gelu"}


def bias_act_bytes(sizes: Sizes, e: int) -> int:
    """X read and written."""
    return 2 * sizes["tokens"] * sizes["intermediate"] * e


def make_biased_act(sizes: Sizes, draw: Draw) -> Arguments:
    tokens, columns = sizes["tokens"], sizes["intermediate"]
    bias = draw.normal(columns, scale=SMALL)
    return {"x": draw.normal(tokens, columns), "bias": bias, "activation": "gelu"}


def biased_act_bytes(sizes: Sizes, e: int) -> int:
    """The bias read too."""
    return bias_act_bytes(sizes, e) + sizes["intermediate"] * e


ROWWISE_OPS = (
    KernelOp(
        "add_rms_norm",
        add_rms_norm,
        add_rms_norm_reference,
        make_rms_norm,
        rms_norm_bytes,
        written=("residual",),
    ),
    KernelOp(
        "add_rms_norm_fp8",
        add_rms_norm_fp8,
        add_rms_norm_fp8_reference,
        make_rms_norm,
        rms_norm_fp8_bytes,
        written=("residual",),
        float8=True,
    ),
    KernelOp(
        "add_layer_norm",
        add_layer_norm,
        add_layer_norm_reference,
        make_layer_norm,
        layer_norm_bytes,
    ),
    KernelOp(
        "add_layer_norm_fp8",
        add_layer_norm_fp8,
        add_layer_norm_fp8_reference,
        make_layer_norm,
        layer_norm_fp8_bytes,
        float8=True,
    ),
    KernelOp(
        "qk_norm_rope_",
        qk_norm_rope_,
        qk_norm_rope_reference_,
        make_rope,
        rope_bytes,
        written=("qkv",),
    ),
    KernelOp("silu_and_mul", silu_and_mul, silu_and_mul_reference, make_silu, silu_bytes),
    KernelOp(
        "silu_and_mul_fp8",
        silu_and_mul_fp8,
        silu_and_mul_fp8_reference,
        make_silu,
        silu_fp8_bytes,
        float8=True,
    ),
    KernelOp(
        "quantize_rows_fp8",
        quantize_rows_fp8,
        quantize_rows_fp8_reference,
        make_quantize,
        quantize_fp8_bytes,
        float8=True,
    ),
    KernelOp(
        "bias_act_",
        bias_act_,
        bias_act_reference_,
        make_bias_act,
        bias_act_bytes,
        written=("x",),
    ),
)

BIASED_OPS = (
    KernelOp(
        "add_layer_norm",
        add_layer_norm,
        add_layer_norm_reference,
        make_biased_layer_norm,
        biased_layer_norm_bytes,
        variant="bias",
    ),
    KernelOp(
        "add_layer_norm_fp8",
        add_layer_norm_fp8,
        add_layer_norm_fp8_reference,
        make_biased_layer_norm,
        biased_layer_norm_fp8_bytes,
        float8=True,
        variant="bias",
    ),
    KernelOp(
        "qk_norm_rope_",
        qk_norm_rope_,
        qk_norm_rope_reference_,
        make_biased_rope,
        biased_rope_bytes,
        written=("qkv",),
        variant="bias",
    ),
    KernelOp(
        "bias_act_",
        bias_act_,
        bias_act_reference_,
        make_biased_act,
        biased_act_bytes,
        written=("x",),
        variant="bias",
    ),
)
