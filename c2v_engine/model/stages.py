"""Names for the parts of a batch's way, for ``torch.profiler``.

Outside of a profile they cost nothing.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

_NO_STAGE: AbstractContextManager[Any] = nullcontext()


def stage(name: str) -> AbstractContextManager[Any]:
    """A context that a profile shows as ``c2v::name``, with the work that is launched in it."""
    if not torch.autograd.profiler._is_profiler_enabled:
        return _NO_STAGE
    return torch.profiler.record_function(f"c2v::{name}")
