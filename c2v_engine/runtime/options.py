"""The options of a call, checked: each from what was asked for to what the pipeline needs."""

from __future__ import annotations

import warnings
from typing import Literal

import numpy as np
import torch

from c2v_engine.errors import InputError
from c2v_engine.kernels.dual_token_pool import Precision, output_dtype
from c2v_engine.model.causal2vec import PackedCausal2Vec
from c2v_engine.model.config import Causal2VecConfig
from c2v_engine.runtime.ranges import Ranges

# On a CPU the widest activation of a batch should stay under the 32 MiB from which allocators map
# fresh memory each time (clearing it cost more than the arithmetic), and a small model wants long
# batches, whose threads meet less often.
_CPU_ACTIVATION_BYTES = 24 * 2**20
_CPU_BATCH_TOKENS = (1024, 8192)
# A GPU wants enough rows to fill its matrix units many times over; more only wait longer for
# tokenizers. Of its free memory a part stays for libraries, graphs and results.
_CUDA_BATCH_TOKENS = (1024, 32768)
_CUDA_MEMORY_SHARE = 0.8
_CUDA_MEMORY_KEPT = 512 * 2**20
_RANGED = ("int8", "uint8")


def resolve_batch_tokens(batch_tokens: int | Literal["auto"] | None) -> int | None:
    """Most decoder rows of a batch as asked for; None where the engine chooses.

    Raises:
        InputError: neither ``auto`` nor a whole number of at least 1.
    """
    if batch_tokens is None or batch_tokens == "auto":
        return None
    if not _is_whole(batch_tokens) or batch_tokens < 1:
        raise InputError(
            f"batch_tokens is {batch_tokens!r}, expected 'auto' or a number of at least 1"
        )
    return int(batch_tokens)


def default_batch_tokens(model: PackedCausal2Vec) -> int:
    """Most decoder rows of a batch, by the memory that a model's rows take and that is there."""
    device = model.decoder.norm.device
    if device.type != "cuda":
        return cpu_batch_tokens(model.bytes_per_token)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = torch.cuda.mem_get_info(device)[0] + unused
    return cuda_batch_tokens(free, model.peak_bytes_per_token)


def cpu_batch_tokens(bytes_per_token: int) -> int:
    """Most decoder rows of a batch on a CPU.

    Args:
        bytes_per_token: of one row of the widest activation.
    """
    least, most = _CPU_BATCH_TOKENS
    return max(least, min(most, _CPU_ACTIVATION_BYTES // bytes_per_token))


def cuda_batch_tokens(free_bytes: int, bytes_per_token: int) -> int:
    """Most decoder rows of a batch whose activations fit into a GPU's free memory.

    Args:
        free_bytes: of the device, weights being there already.
        bytes_per_token: of all activations of one row that are alive together.
    """
    least, most = _CUDA_BATCH_TOKENS
    usable = max(0, int(_CUDA_MEMORY_SHARE * free_bytes) - _CUDA_MEMORY_KEPT)
    return max(least, min(most, usable // bytes_per_token // 256 * 256))


def resolve_normalize(normalize: bool | None, default: bool) -> bool:
    """Whether embeddings are normalised; None gives the checkpoint's setting.

    Raises:
        InputError: not a truth value.
    """
    if normalize is None:
        return default
    if not isinstance(normalize, bool):
        raise InputError(f"normalize_embeddings is {normalize!r}, expected True or False")
    return normalize


def resolve_keep(truncate_dim: int | None, segments: int, width: int) -> int:
    """Dimensions kept of each of ``segments`` pooled parts, ``width`` wide; None keeps all.

    Raises:
        InputError: not a multiple of ``segments`` up to the whole embedding's width.
    """
    if truncate_dim is None:
        return width
    if (
        not _is_whole(truncate_dim)
        or not 1 <= truncate_dim <= segments * width
        or truncate_dim % segments
    ):
        raise InputError(
            f"truncate_dim is {truncate_dim!r}, expected a multiple of {segments} "
            f"between {segments} and {segments * width}"
        )
    return int(truncate_dim) // segments


def _is_whole(number: object) -> bool:
    return isinstance(number, (int, np.integer)) and not isinstance(number, bool)


def resolve_prompt(config: Causal2VecConfig, name: str | None, prompt: str | None) -> str:
    """The prompt of a call: given as it is, by its name, the default one, or none.

    Raises:
        InputError: an unknown name, or a prompt that is not text.

    Warns:
        UserWarning: nothing reads the prompt.
    """
    if prompt is None:
        name = config.default_prompt_name if name is None else name
        if name is None:
            return ""
        if name not in config.prompts:
            known = ", ".join(map(repr, config.prompts)) or "there are none"
            raise InputError(f"prompt_name is {name!r}, expected one of: {known}")
        prompt = config.prompts[name]
    if not isinstance(prompt, str):
        raise InputError(f"prompt is {type(prompt).__name__}, expected text (str)")
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"prompt is not valid Unicode at {error.start}") from None
    if prompt and not config.reads_prompt:
        warnings.warn(
            "a prompt was given, but neither the checkpoint's template nor its encoder.text has "
            "{prompt}: it changes nothing",
            UserWarning,
            stacklevel=4,
        )
    return prompt


def resolve_ranges(
    ranges: Ranges | None, precision: Precision, dimensions: int, normalize: bool
) -> torch.Tensor | None:
    """The ranges that a precision needs, float32 ``[2, dimensions]``; None where it needs none.

    Raises:
        InputError: an unknown precision, or ranges that are missing or of another output.
    """
    output_dtype(precision)  # refuses an unknown one
    if precision not in _RANGED:
        return None
    if ranges is None:
        raise InputError(
            f"precision {precision} needs fixed ranges: pass ranges=, or store them in the "
            "checkpoint with c2v calibrate"
        )
    return ranges.for_output(dimensions, normalize)
