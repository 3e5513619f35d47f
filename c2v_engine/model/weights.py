"""Reading a transformers checkpoint folder: safetensors only, lazily, every name accounted for."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from c2v_engine.errors import CheckpointError

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


class WeightFolder:
    """The tensors of one folder, memory-mapped and read one at a time.

    Args:
        folder: holds ``model.safetensors``, or shards and their index.
        filename: another single file to read instead.

    Raises:
        CheckpointError: no weights, pickled weights, a missing or damaged shard.
    """

    def __init__(self, folder: Path, filename: str | None = None) -> None:
        self.folder = folder
        self._handles: dict[str, Any] = {}
        self._file_of = self._find_files(filename)
        self._taken: set[str] = set()
        self._left = Counter(self._file_of.values())

    def _find_files(self, filename: str | None) -> dict[str, str]:
        if not self.folder.is_dir():
            raise CheckpointError(f"{self.folder}: no such folder")
        name = filename or WEIGHTS_NAME
        if (self.folder / name).is_file():
            return dict.fromkeys(self._open(name).keys(), name)
        index = self.folder / INDEX_NAME
        if filename is None and index.is_file():
            return self._read_index(index)
        pickles = sorted(p.name for p in self.folder.iterdir() if p.suffix in _PICKLE_SUFFIXES)
        if pickles:
            raise CheckpointError(
                f"{self.folder / pickles[0]}: pickled weights are refused, they can run code; "
                f"convert them to {name} (save_pretrained does)"
            )
        raise CheckpointError(f"{self.folder}: no {name}")

    def _read_index(self, index: Path) -> dict[str, str]:
        try:
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            file_of = {str(name): str(shard) for name, shard in weight_map.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{index}: not a safetensors index: {error!r}") from None
        for shard in sorted(set(file_of.values())):
            if Path(shard).name != shard or not shard.endswith(".safetensors"):
                raise CheckpointError(
                    f"{index}: shard {shard!r} is not a safetensors file beside it"
                )
            stored = set(self._open(shard).keys())
            absent = sorted(n for n, file in file_of.items() if file == shard and n not in stored)
            if absent:
                raise CheckpointError(f"{self.folder / shard}: weight {absent[0]} is missing")
            # What the index does not name is read too, as transformers does, or refused as extra.
            for name in stored - set(file_of):
                file_of[name] = shard
        return file_of

    def _open(self, name: str) -> Any:
        if name not in self._handles:
            path = self.folder / name
            try:
                self._handles[name] = safe_open(str(path), framework="pt")
            except FileNotFoundError:
                raise CheckpointError(f"{path}: no such file") from None
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{path}: not a safetensors file: {error}") from None
        return self._handles[name]

    @property
    def names(self) -> Iterable[str]:
        """The names of all tensors."""
        return self._file_of.keys()

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def take(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """Map one weight in its stored dtype, on the CPU; its pages are read when it is.

        Raises:
            CheckpointError: it is missing, has another shape or is not floating point.
        """
        if name not in self._file_of:
            near = f" ({len(self._file_of)} others are there)" if self._file_of else ""
            raise CheckpointError(f"{self.folder}: weight {name} is missing{near}")
        file = self._file_of[name]
        path = self.folder / file
        try:
            tensor: torch.Tensor = self._open(file).get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: weight {name} can not be read: {error}") from None
        if name not in self._taken:
            self._taken.add(name)
            self._left[file] -= 1
        if not self._left[file]:
            # What is mapped counts as this process's memory until it is unmapped: with the last
            # of its tensors the shard is.
            self._handles.pop(file, None)
        if tuple(tensor.shape) != shape:
            raise CheckpointError(
                f"{path}: weight {name} has shape {list(tensor.shape)}, "
                f"the config says {list(shape)}"
            )
        if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
            raise CheckpointError(
                f"{path}: weight {name} is {tensor.dtype}, expected floating point"
            )
        return tensor

    def refuse_extra(self, ignorable: Iterable[str] = ()) -> None:
        """Refuse weights that nobody took.

        Args:
            ignorable: name endings that may stand there unused, such as an LM head's.

        Raises:
            CheckpointError: naming the first such weight and how many there are.
        """
        extra = sorted(
            name
            for name in set(self._file_of) - self._taken
            if not any(name.endswith(ending) for ending in ignorable)
        )
        if extra:
            more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
            raise CheckpointError(
                f"{self.folder / self._file_of[extra[0]]}: weight {extra[0]}{more} "
                "is not part of this architecture"
            )

    def stored_dtype(self, name: str) -> torch.dtype:
        """The dtype one tensor is stored in."""
        # A slice reads the header only; get_tensor would read the whole weight.
        dtype: str = self._open(self._file_of[name]).get_slice(name).get_dtype()
        names = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
        return names.get(dtype, torch.float32)
