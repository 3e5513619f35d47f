"""What has gone wrong, and whether the device can go on."""

from __future__ import annotations

import torch

__all__ = ["device_answers", "one_line"]


def device_answers(device: torch.device) -> bool:
    """Whether the device still works for this process."""
    try:
        return bool((torch.ones(8, device=device).sum() == 8).item())
    except RuntimeError:
        return False


def one_line(error: BaseException) -> str:
    """An error as one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
