"""Fixed ranges of every dimension, by which int8 and uint8 embeddings are quantised."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from c2v_engine.errors import CheckpointError, InputError

RANGES_NAME = "ranges.safetensors"


@dataclass(frozen=True)
class Ranges:
    """Minimum and maximum of every output dimension.

    Attributes:
        values: float32 ``[2, dimensions]``.
        normalized: whether they are of normalised embeddings; None where nobody said.
    """

    values: torch.Tensor
    normalized: bool | None = None

    @classmethod
    def of_array(cls, array: np.ndarray | torch.Tensor) -> Ranges:
        """Ranges as a caller gives them.

        Raises:
            InputError: not two rows, not finite, or a minimum above its maximum.
        """
        try:
            values = torch.as_tensor(np.asarray(array, dtype=np.float32))
        except (TypeError, ValueError):
            raise InputError("ranges is not an array of numbers") from None
        if values.ndim != 2 or values.shape[0] != 2:
            raise InputError(f"ranges has shape {list(values.shape)}, expected [2, dimensions]")
        if not torch.isfinite(values).all() or (values[0] > values[1]).any():
            raise InputError("ranges must be finite, with no minimum above its maximum")
        return cls(values)

    @classmethod
    def of_blocks(cls, blocks: Iterable[np.ndarray], normalized: bool) -> Ranges:
        """Ranges of embeddings ``[texts, dimensions]``, block by block.

        Raises:
            InputError: fewer than two embeddings.
        """
        low = high = None
        count = 0
        for block in blocks:
            count += len(block)
            least, most = block.min(axis=0), block.max(axis=0)
            low = least if low is None else np.minimum(low, least)
            high = most if high is None else np.maximum(high, most)
        if low is None or high is None or count < 2:
            raise InputError(f"calibration was given {count} texts, expected at least two")
        return cls(torch.from_numpy(np.stack([low, high])), normalized)

    @classmethod
    def load(cls, directory: Path) -> Ranges | None:
        """The ranges stored in a checkpoint, or None where there are none.

        Raises:
            CheckpointError: the file is damaged.
        """
        path = directory / RANGES_NAME
        if not path.exists():
            return None
        try:
            with safe_open(str(path), framework="pt") as file:
                values, metadata = file.get_tensor("ranges"), file.metadata() or {}
            ranges = cls.of_array(values.float())
        except (SafetensorError, OSError, InputError) as error:
            raise CheckpointError(f"{path}: not calibrated ranges: {error}") from None
        normalized = {"True": True, "False": False}.get(metadata.get("normalized", ""))
        return cls(ranges.values, normalized)

    def save(self, directory: Path) -> Path:
        """Store them in a checkpoint directory.

        Returns:
            The file written.

        Raises:
            CheckpointError: no such checkpoint, or it can not be written.
        """
        path = directory / RANGES_NAME
        if not (directory / "config.json").exists():
            raise CheckpointError(f"{directory}: not a checkpoint directory")
        temporary = path.with_suffix(".tmp")
        try:
            save_file(
                {"ranges": self.values.contiguous()},
                temporary,
                {"normalized": str(self.normalized)},
            )
            temporary.replace(path)
        except (OSError, SafetensorError) as error:
            temporary.unlink(missing_ok=True)
            raise CheckpointError(f"{path}: can not be written: {error}") from None
        return path

    def for_output(self, dimensions: int, normalized: bool) -> torch.Tensor:
        """The values, checked against the output that they shall quantise.

        Raises:
            InputError: they are of another width or of another kind of embeddings.
        """
        if self.values.shape[1] != dimensions:
            raise InputError(
                f"the ranges are of {self.values.shape[1]} dimensions, the output has "
                f"{dimensions}: pass ranges=, or calibrate with this truncate_dim"
            )
        if self.normalized is not None and self.normalized != normalized:
            raise InputError(
                f"the ranges were calibrated with normalize={self.normalized}, "
                f"the output has {normalized}"
            )
        return self.values
