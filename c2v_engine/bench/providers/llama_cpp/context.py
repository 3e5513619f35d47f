"""llama.cpp's model and context through its C functions: rows in, pooled vectors out."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from c2v_engine.bench.providers.base import UnusableError
from c2v_engine.bench.providers.libraries import library

__all__ = ["Context", "Model", "Settings"]

ERROR_LEVEL = 4  # GGML_LOG_LEVEL_ERROR; 5 goes on with the line before
F32 = 0  # GGML_TYPE_F32
_kept: list[Any] = []
"""The function that llama.cpp logs with: called until the process ends."""


@dataclass(frozen=True)
class Settings:
    """How batches are made and attended.

    Attributes:
        batch_rows: most rows of a call.
        sequences: most texts of a call.
        unified: whether they share one cache, masked, or each has a part of it.
        flash_attention: whether attention is fused.
    """

    batch_rows: int = 512
    sequences: int = 64
    unified: bool = True
    flash_attention: bool = True

    def __str__(self) -> str:
        cache = "one cache" if self.unified else "a cache for each sequence"
        flash = "flash attention" if self.flash_attention else "plain attention"
        return f"{self.batch_rows} rows and {self.sequences} sequences a call, {cache}, {flash}"


class Model:
    """A GGUF file's model on the CPU.

    Args:
        path: of the file.

    Raises:
        UnusableError: llama.cpp is not installed, or does not take the file.
    """

    def __init__(self, path: Path) -> None:
        self.library = library("llama_cpp.llama_cpp", "peers")
        self.library.llama_backend_init()
        _log_errors_alone(self.library)
        parameters = self.library.llama_model_default_params()
        parameters.n_gpu_layers = 0
        self.pointer = self.library.llama_model_load_from_file(str(path).encode(), parameters)
        if not self.pointer:
            raise UnusableError("llama.cpp does not take the file that was written for it")
        self.width = int(self.library.llama_model_n_embd(self.pointer))

    def close(self) -> None:
        """Frees the weights."""
        if self.pointer:
            self.library.llama_model_free(self.pointer)
            self.pointer = None


class Context:
    """A model's cache and buffers.

    Args:
        model: stays open as long.
        settings: of batches; texts longer than one make it larger.
        longest: most rows of a text.
        threads: of every operation.
        exact: whether keys and values are kept in float32, else in float16.
    """

    def __init__(
        self, model: Model, settings: Settings, longest: int, threads: int, exact: bool
    ) -> None:
        self._library = model.library
        self._width = model.width
        # llama.cpp ends the process where a batch can not hold a row of every sequence.
        self._rows = max(settings.batch_rows, longest, settings.sequences)
        self._sequences = settings.sequences
        parameters = self._library.llama_context_default_params()
        parameters.n_batch = parameters.n_ubatch = self._rows
        parameters.n_seq_max = settings.sequences
        parameters.n_ctx = self._rows if settings.unified else longest * settings.sequences
        parameters.kv_unified = settings.unified
        parameters.flash_attn_type = int(settings.flash_attention)
        parameters.embeddings = True
        parameters.pooling_type = self._library.LLAMA_POOLING_TYPE_LAST
        parameters.n_threads = parameters.n_threads_batch = threads
        parameters.offload_kqv = parameters.op_offload = False
        parameters.no_perf = True
        if exact:
            parameters.type_k = parameters.type_v = F32
        self._pointer = self._library.llama_init_from_model(model.pointer, parameters)
        if not self._pointer:
            raise UnusableError(f"llama.cpp does not open a context of {settings}")
        self._memory = self._library.llama_get_memory(self._pointer)
        self._batch = self._library.llama_batch_init(self._rows, self._width, 1)

        def view(field: Any, *shape: int) -> np.ndarray:
            return np.ctypeslib.as_array(field, shape)

        self._embeddings = view(self._batch.embd, self._rows, self._width)
        self._positions = view(self._batch.pos, self._rows)
        self._counts = view(self._batch.n_seq_id, self._rows)
        self._outputs = view(self._batch.logits, self._rows)
        self._counts[:] = self._outputs[:] = 1

    def embed(self, sequences: Sequence[np.ndarray], table: np.ndarray) -> np.ndarray:
        """Last hidden states, normed, of the sequences' last rows.

        Args:
            sequences: token ids; best in the order of their lengths.
            table: the token embeddings, float32 ``[vocabulary, width]``.

        Returns:
            float32 ``[sequences, width]``.
        """
        result = np.empty((len(sequences), self._width), dtype=np.float32)
        begin = 0
        while begin < len(sequences):
            end, rows = begin, 0
            while (
                end < len(sequences)
                and end - begin < self._sequences
                and rows + len(sequences[end]) <= self._rows
            ):
                self._lay(sequences[end], rows, end - begin, table)
                rows += len(sequences[end])
                end += 1
            self._decode(rows)
            for number in range(end - begin):
                pooled = self._library.llama_get_embeddings_seq(self._pointer, number)
                result[begin + number] = np.ctypeslib.as_array(pooled, (self._width,))
            begin = end
        return result

    def _lay(self, ids: np.ndarray, start: int, number: int, table: np.ndarray) -> None:
        end = start + len(ids)
        np.take(table, ids, axis=0, out=self._embeddings[start:end])
        self._positions[start:end] = np.arange(len(ids))
        for row in range(start, end):
            self._batch.seq_id[row][0] = number

    def _decode(self, rows: int) -> None:
        self._batch.n_tokens = rows
        self._library.llama_memory_clear(self._memory, False)
        code = self._library.llama_decode(self._pointer, self._batch)
        if code:
            raise RuntimeError(f"llama_decode returned {code} for {rows} rows")

    def close(self) -> None:
        """Frees the cache and the buffers."""
        if self._pointer:
            self._library.llama_batch_free(self._batch)
            self._library.llama_free(self._pointer)
            self._pointer = None


def _log_errors_alone(library: Any) -> None:
    if _kept:
        return

    def log(level: int, text: bytes, data: Any) -> None:
        if level == ERROR_LEVEL:
            sys.stderr.write(text.decode(errors="replace"))

    _kept.append(library.llama_log_callback(log))
    library.llama_log_set(_kept[0], None)
