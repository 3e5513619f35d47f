"""Dual-token gather pooling: from the decoder's packed hidden states to finished embeddings.

A text has ``S`` segments, one for each entry of the checkpoint's ``pooling``: a single row for
``<context>`` or ``<eos>``, many rows for a pooled text entry. In float32, for every text:

1. every row ``x_i`` of a segment is normalised by the decoder's final RMSNorm:
   ``n_i = x_i * rsqrt(mean(x_i^2) + eps) * w``
2. a segment is the mean of its rows, of which the first ``keep`` dimensions stay:
   ``v_s = mean_i(n_i)[:keep]``
3. the segments stand end to end: ``v = [v_1 ; ... ; v_S]``, and ``norm = ||v||_2``
4. where asked for, ``v = v / max(norm, 1e-12)``
5. ``v`` is written in the output's precision. int8 and uint8 take fixed ranges for each dimension:
   ``step = (max - min) / 255`` (1 where that is 0), ``clip(floor((v - min) / step), 0, 255)``, and
   int8 subtracts 128. ubinary packs ``v > 0`` eight to a byte, the first dimension in the highest
   bit; binary is the same less 128. This is what ``sentence_transformers.quantize_embeddings``
   computes.

A row whose mean square is NaN or infinite becomes NaN as a whole, so a text that can not be
embedded always has a norm that is not finite, whatever the precision and ``keep``.

The op is ``torch.ops.c2v.dual_token_pool``, for inference only: it has no gradient. Its compiled
CPU and CUDA kernels stand in ``csrc/``; everywhere else the PyTorch form below serves under the
same name.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Literal, get_args

import torch
from torch import Tensor

from c2v_engine.errors import InputError
from c2v_engine.kernels._extension import ExtensionStatus, load_extension
from c2v_engine.kernels._ops import as_the_compiled_op, can_validate, complete_op, refuse

__all__ = [
    "ExtensionStatus",
    "Precision",
    "PrecisionCode",
    "dual_token_pool",
    "dual_token_pool_reference",
    "extension_status",
    "output_dtype",
    "output_width",
]

Precision = Literal["float32", "float16", "bfloat16", "int8", "uint8", "binary", "ubinary"]


class PrecisionCode(IntEnum):
    """The op's ``precision`` argument; the members are named as in ``Precision``."""

    float32 = 0
    float16 = 1
    bfloat16 = 2
    int8 = 3
    uint8 = 4
    binary = 5
    ubinary = 6


_OUTPUT_DTYPES = {
    PrecisionCode.float32: torch.float32,
    PrecisionCode.float16: torch.float16,
    PrecisionCode.bfloat16: torch.bfloat16,
    PrecisionCode.int8: torch.int8,
    PrecisionCode.uint8: torch.uint8,
    PrecisionCode.binary: torch.int8,
    PrecisionCode.ubinary: torch.uint8,
}
_BITS = (PrecisionCode.binary, PrecisionCode.ubinary)
_BYTES = (PrecisionCode.int8, PrecisionCode.uint8)
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_SCHEMA = (
    "(Tensor hidden_states, Tensor rows, Tensor offsets, Tensor norm_weight, "
    "float eps, int segments, int keep, bool normalize, int precision, Tensor? ranges) "
    "-> (Tensor embeddings, Tensor norms)"
)


def output_dtype(precision: Precision) -> torch.dtype:
    """The dtype of ``embeddings`` in a precision.

    Raises:
        InputError: ``precision`` is unknown.
    """
    return _OUTPUT_DTYPES[_precision_code(precision)]


def output_width(width: int, precision: Precision) -> int:
    """The columns of ``embeddings`` for ``width`` dimensions: one each, or eight to a byte.

    Raises:
        InputError: ``precision`` is unknown.
    """
    return _output_width(width, _precision_code(precision))


def extension_status() -> ExtensionStatus:
    """Whether the compiled ops serve on this machine, and why not where they do not."""
    return load_extension()


def dual_token_pool(
    hidden_states: Tensor,
    rows: Tensor,
    offsets: Tensor,
    norm_weight: Tensor,
    *,
    eps: float,
    segments: int,
    keep: int,
    normalize: bool = True,
    precision: Precision = "float32",
    ranges: Tensor | None = None,
    validate: bool = True,
) -> tuple[Tensor, Tensor]:
    """Pools the packed hidden states of a batch into its embeddings.

    All tensors are on one device. Checking the *values* of ``rows`` and ``offsets`` waits for the
    device; without it nothing does. Then, on CUDA, the compiled kernel reads nothing out of range
    and gives that text, or one with an empty segment, a norm that is not finite, and the PyTorch
    form fails at a row out of range as indexing does.

    Args:
        hidden_states: ``[tokens, hidden]`` float32, float16 or bfloat16, before the final norm.
        rows: ``[R]`` int32, the rows of ``hidden_states`` to pool, segment after segment.
        offsets: ``[batch * segments + 1]`` int32, from 0 to R. Segment ``s`` of text ``b`` reads
            ``rows[offsets[b * segments + s] : offsets[b * segments + s + 1]]``; none is empty.
        norm_weight: ``[hidden]`` float32, float16 or bfloat16, the weight of the final RMSNorm.
        eps: its epsilon.
        segments: the pooled entries of a text.
        keep: the leading dimensions kept of each segment.
        normalize: whether to scale each embedding to unit length.
        precision: of the output.
        ranges: ``[2, segments * keep]`` float32, the smallest and the largest value of each
            dimension; needed by int8 and uint8, and read by them alone.
        validate: whether to check the values of ``rows`` and ``offsets``; not while torch traces.

    Returns:
        ``embeddings``, ``[batch, segments * keep]`` in the precision's dtype, or
        ``[batch, ceil(segments * keep / 8)]`` for binary (int8) and ubinary (uint8); and ``norms``,
        ``[batch]`` float32, the length of each embedding before it was scaled, not finite where the
        text has NaN or infinite hidden states.

    Raises:
        InputError: a shape, dtype, device or option is not as described; or, where checked, a row
            or an offset is out of range, or a segment is empty.
        RuntimeError: the same without the check, on the CPU.
    """
    code = _precision_code(precision)
    _check(hidden_states, rows, offsets, norm_weight, segments, keep, code, ranges)
    if validate and can_validate(rows, offsets):
        _check_values(hidden_states, rows, offsets)
    embeddings, norms = torch.ops.c2v.dual_token_pool(
        hidden_states, rows, offsets, norm_weight, eps, segments, keep, normalize, int(code), ranges
    )
    return embeddings, norms


def dual_token_pool_reference(
    hidden_states: Tensor,
    rows: Tensor,
    offsets: Tensor,
    norm_weight: Tensor,
    *,
    eps: float,
    segments: int,
    keep: int,
    normalize: bool = True,
    precision: Precision = "float32",
    ranges: Tensor | None = None,
    validate: bool = True,
) -> tuple[Tensor, Tensor]:
    """The same in plain PyTorch, on any device: the op's one reference.

    See ``dual_token_pool`` for arguments, results and errors.
    """
    code = _precision_code(precision)
    _check(hidden_states, rows, offsets, norm_weight, segments, keep, code, ranges)
    if validate and can_validate(rows, offsets):
        _check_values(hidden_states, rows, offsets)
    return _pytorch_form(
        hidden_states, rows, offsets, norm_weight, eps, segments, keep, normalize, code, ranges
    )


def _pytorch_form(
    hidden_states: Tensor,
    rows: Tensor,
    offsets: Tensor,
    norm_weight: Tensor,
    eps: float,
    segments: int,
    keep: int,
    normalize: bool,
    precision: int,
    ranges: Tensor | None,
) -> tuple[Tensor, Tensor]:
    if offsets.device.type == "cpu":
        with as_the_compiled_op("dual_token_pool"):
            _check_values(hidden_states, rows, offsets)
    x = hidden_states[rows.long()].float()
    mean_square = x.square().mean(dim=-1, keepdim=True)
    inverse = torch.rsqrt(mean_square + eps).masked_fill(~mean_square.isfinite(), torch.nan)
    normed = x[:, :keep] * inverse * norm_weight[:keep].float()
    v = torch.segment_reduce(normed, "mean", offsets=offsets, axis=0)
    v = v.reshape(-1, segments * keep)
    norms = torch.linalg.vector_norm(v, dim=-1)
    if normalize:
        v = v / norms.clamp(min=1e-12).unsqueeze(-1)
    return _quantize(v, PrecisionCode(precision), ranges), norms


def _quantize(v: Tensor, precision: PrecisionCode, ranges: Tensor | None) -> Tensor:
    if precision in _BITS:
        padded = torch.nn.functional.pad(v > 0, (0, -v.shape[-1] % 8))
        places = 2 ** torch.arange(7, -1, -1, dtype=torch.uint8, device=v.device)
        packed = padded.reshape(len(v), padded.shape[-1] // 8, 8) * places
        signed = packed.sum(dim=-1) - (128 if precision is PrecisionCode.binary else 0)
        return signed.to(_OUTPUT_DTYPES[precision])
    if precision in _BYTES:
        assert ranges is not None
        low, high = ranges.unbind(0)
        # By a number, torch on CUDA would multiply by the reciprocal, which rounds twice.
        step = (high - low) / torch.full_like(low, 255.0)
        step = torch.where(step == 0, 1.0, step)
        levels = ((v - low) / step).floor().nan_to_num(nan=0.0).clamp(0, 255)
        levels = levels - (128 if precision is PrecisionCode.int8 else 0)
        return levels.to(_OUTPUT_DTYPES[precision])
    return v.to(_OUTPUT_DTYPES[precision])


def _fake(
    hidden_states: Tensor,
    rows: Tensor,
    offsets: Tensor,
    norm_weight: Tensor,
    eps: float,
    segments: int,
    keep: int,
    normalize: bool,
    precision: int,
    ranges: Tensor | None,
) -> tuple[Tensor, Tensor]:
    code = PrecisionCode(precision)
    batch = (offsets.shape[0] - 1) // segments
    embeddings = hidden_states.new_empty(
        (batch, _output_width(segments * keep, code)), dtype=_OUTPUT_DTYPES[code]
    )
    return embeddings, hidden_states.new_empty((batch,), dtype=torch.float32)


def _output_width(width: int, code: PrecisionCode) -> int:
    return (width + 7) // 8 if code in _BITS else width


def _precision_code(precision: Precision) -> PrecisionCode:
    try:
        return PrecisionCode[precision]
    except KeyError:
        known = ", ".join(get_args(Precision))
        raise InputError(f"precision is {precision!r}; choose one of {known}") from None


def _check(
    hidden_states: Tensor,
    rows: Tensor,
    offsets: Tensor,
    norm_weight: Tensor,
    segments: int,
    keep: int,
    code: PrecisionCode,
    ranges: Tensor | None,
) -> None:
    """Checks what can be checked without reading the tensors."""
    if hidden_states.ndim != 2 or hidden_states.dtype not in _FLOATS:
        refuse("hidden_states", hidden_states, "[tokens, hidden] float32, float16 or bfloat16")
    hidden = hidden_states.shape[1]
    if norm_weight.shape != (hidden,) or norm_weight.dtype not in _FLOATS:
        refuse("norm_weight", norm_weight, f"[{hidden}] float32, float16 or bfloat16")
    if rows.ndim != 1 or rows.dtype != torch.int32:
        refuse("rows", rows, "[R] int32")
    if segments < 1:
        raise InputError(f"segments is {segments}; a text has at least one pooled segment")
    if not 1 <= keep <= hidden:
        raise InputError(f"keep is {keep}; choose from 1 to the hidden size, {hidden}")
    sized = offsets.ndim == 1 and offsets.shape[0] >= 1 and (offsets.shape[0] - 1) % segments == 0
    if not sized or offsets.dtype != torch.int32:
        refuse("offsets", offsets, f"[batch * {segments} + 1] int32")
    if code in _BYTES:
        shape = (2, segments * keep)
        if ranges is None:
            raise InputError(f"precision {code.name} needs ranges, {list(shape)} float32")
        if ranges.shape != shape or ranges.dtype != torch.float32:
            refuse("ranges", ranges, f"{list(shape)} float32")
    for name, tensor in (("rows", rows), ("offsets", offsets), ("norm_weight", norm_weight)):
        if tensor.device != hidden_states.device:
            refuse(name, tensor, f"a tensor on {hidden_states.device}, as hidden_states is")
    if code in _BYTES and ranges is not None and ranges.device != hidden_states.device:
        refuse("ranges", ranges, f"a tensor on {hidden_states.device}, as hidden_states is")


def _check_values(hidden_states: Tensor, rows: Tensor, offsets: Tensor) -> None:
    """Raises where a value is out of range; waits for the device."""
    lengths = offsets.diff()
    if int(offsets[0]) != 0 or int(offsets[-1]) != len(rows) or bool((lengths < 0).any()):
        raise InputError(f"offsets must rise from 0 to the number of rows, {len(rows)}")
    if bool((lengths == 0).any()):
        raise InputError("offsets name an empty segment; each must have at least one row")
    if bool(((rows < 0) | (rows >= len(hidden_states))).any()):
        raise InputError(
            f"rows names a row out of range; hidden_states has {len(hidden_states)} rows"
        )


complete_op("dual_token_pool", _SCHEMA, _pytorch_form, _fake)
