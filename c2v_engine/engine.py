"""``Causal2Vec``: the public face of the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch

from c2v_engine.errors import BackendError, CheckpointError, InputError
from c2v_engine.kernels.dual_token_pool import Precision, output_dtype, output_width
from c2v_engine.model.assemble import copy_checkpoint, create_checkpoint
from c2v_engine.model.checkpoint import CheckpointDescription, LoadOptions
from c2v_engine.model.config import Causal2VecConfig
from c2v_engine.model.fingerprint import checkpoint_fingerprint
from c2v_engine.model.loading import Placement
from c2v_engine.model.methods import method_of
from c2v_engine.model.pooling import OutputFormat
from c2v_engine.runtime.batch_runner import BatchRunner
from c2v_engine.runtime.convert.conversion import convert_checkpoint
from c2v_engine.runtime.hub import fetch_checkpoint
from c2v_engine.runtime.opening import PipelineOptions, open_pipeline
from c2v_engine.runtime.options import (
    resolve_batch_tokens,
    resolve_keep,
    resolve_normalize,
    resolve_prompt,
    resolve_ranges,
)
from c2v_engine.runtime.progress import ProgressReporter
from c2v_engine.runtime.ranges import Ranges
from c2v_engine.runtime.runner import Runner
from c2v_engine.runtime.stats import EncodeStats
from c2v_engine.runtime.workers import WorkerPool
from c2v_engine.similarity import cosine_similarity

Texts = Sequence[str] | np.ndarray
Embeddings = np.ndarray | torch.Tensor
BatchTokens = int | Literal["auto"] | None


def default_model_path() -> Path:
    """The directory of the small model that ships with the package."""
    return Path(str(files("c2v_engine") / "default_model"))


def checkpoint_directory(path_or_repo: str | Path | None) -> Path:
    """The directory of a checkpoint, fetched from the Hub where there is none of that name.

    Args:
        path_or_repo: a directory, or the id of a Hub repository; None for the small model that
            ships with the package.

    Raises:
        CheckpointError: there is no such model.
    """
    if path_or_repo is None:
        return default_model_path()
    directory = Path(path_or_repo)
    return directory if directory.is_dir() else fetch_checkpoint(str(path_or_repo))


class Causal2Vec:
    """A Causal2Vec checkpoint, ready to embed texts.

    Use ``Causal2Vec.from_pretrained``.

    Args:
        description: what its checkpoint says of itself.
        name: as it was asked for.
        runner: embeds texts with it, here or in other processes.
        placement: where and how it computes.
        fingerprint: of the files that were loaded; None where there were none.

    Attributes:
        config: the checkpoint's ``config.json``.
        device: where it runs; of several, the first.
        dtype: of the computation.
        name: as it was asked for.
    """

    def __init__(
        self,
        description: CheckpointDescription,
        name: str,
        runner: Runner,
        placement: Placement,
        fingerprint: str | None = None,
    ) -> None:
        self._fingerprint = fingerprint
        self._description = description
        self._runner = runner
        self.name = name
        self.config: Causal2VecConfig = description.config
        self.device = placement.device
        self.dtype = placement.dtype
        self._ranges = Ranges.load(description.directory)

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo: str | Path | None = None,
        device: str = "auto",
        dtype: str = "auto",
        attention: str = "auto",
        *,
        devices: Sequence[str | int] | None = None,
        deterministic: bool = False,
        share_prompts: bool = True,
        cuda_graphs: bool = True,
    ) -> Causal2Vec:
        """Open a checkpoint.

        Args:
            path_or_repo: a checkpoint directory, or the id of a Hub repository; None opens the
                small model that ships with the package.
            device: ``auto`` (CUDA where there is one), ``cpu``, ``cuda`` or ``cuda:N``.
            dtype: ``float32``, ``bfloat16``, ``float16``, or ``auto``: bfloat16 on CUDA, on a CPU
                bfloat16 only if the checkpoint is stored in it and the CPU has the instructions,
                else float32. ``float8`` (GPUs of compute capability 8.9) and ``int8`` (CPUs with
                products of bytes) have 8 bits in the decoder's linear layers: weights with a scale
                for every output, rows with one each.
            attention: ``auto`` or a backend's name; see ``c2v doctor``.
            devices: of worker processes that share the texts, in place of ``device``: numbers of
                GPUs, or names; ``["cpu", "cpu"]`` runs two processes on the CPU, which share its
                threads. Each process has a model of its own, also on a device that is named twice.
                They are started
                by the ``spawn`` method, so a script guards its own start with
                ``if __name__ == "__main__"``; ``close()`` ends them, and so does leaving the engine
                as a context manager.
            deterministic: whether a text's embedding is the same to the bit alone, in any batch and
                in any order, on one device and dtype.
            share_prompts: whether the rows of a prompt that stands first in every sequence are
                computed once, under the causal mask.
            cuda_graphs: whether small batches are captured as CUDA graphs and replayed.

        Raises:
            ConfigError: its ``config.json`` is missing or wrong.
            CheckpointError: its files do not fit together, or there is no such model.
            BackendError: a device, dtype or backend that can not be used here.
        """
        directory = checkpoint_directory(path_or_repo)
        name = "default" if path_or_repo is None else str(path_or_repo)
        options = PipelineOptions(
            LoadOptions(device, dtype, attention, deterministic), share_prompts, cuda_graphs
        )
        if devices is not None:
            if device != "auto":
                raise BackendError(
                    f"device is {device!r} and devices is {devices!r}, expected only one of them"
                )
            pool = WorkerPool(directory, options, devices)
            try:
                fingerprint = checkpoint_fingerprint(directory, pool.description.config)
            except BaseException:
                pool.close()
                raise
            return cls(pool.description, name, pool, pool.placement, fingerprint)
        pipeline = open_pipeline(directory, options)
        description = pipeline.checkpoint.description
        fingerprint = checkpoint_fingerprint(directory, description.config)
        return cls(description, name, pipeline, pipeline.checkpoint.placement, fingerprint)

    def warmup(
        self,
        prompt_name: str | None = None,
        prompt: str | None = None,
        *,
        normalize_embeddings: bool | None = None,
        truncate_dim: int | None = None,
        precision: Precision = "float32",
        ranges: np.ndarray | None = None,
    ) -> None:
        """Embed a few made-up texts of every size up to 4,096 rows.

        On a GPU kernels are then compiled and small batches captured as graphs, so that the first
        texts do not wait for that: once for each prompt and output format that will be used. Other
        counts of texts are captured when they come.

        Args:
            prompt_name: as in ``encode``, and so are the rest.
            prompt: as in ``encode``.
            normalize_embeddings: as in ``encode``.
            truncate_dim: as in ``encode``.
            precision: as in ``encode``.
            ranges: as in ``encode``.

        Raises:
            InputError: options that can not be.
            BackendError: the engine has worker processes.
        """
        output = self.output_format(normalize_embeddings, truncate_dim, precision, ranges)
        self._runner.warmup(resolve_prompt(self.config, prompt_name, prompt), output)

    def close(self) -> None:
        """End the worker processes of ``devices=``; an engine without them has nothing to end."""
        self._runner.close()

    def __enter__(self) -> Causal2Vec:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    create = staticmethod(create_checkpoint)
    convert = staticmethod(convert_checkpoint)

    @property
    def dimension(self) -> int:
        """Width of a whole embedding: one decoder width for each pooled entry."""
        return self.config.segments * self._description.decoder_shape.hidden_size

    @property
    def prompts(self) -> dict[str, str]:
        """The checkpoint's named prompts."""
        return dict(self.config.prompts)

    @property
    def ranges(self) -> np.ndarray | None:
        """Float32 ``[2, dimensions]`` by which int8 and uint8 output is quantised, where stored."""
        return None if self._ranges is None else self._ranges.values.numpy()

    @property
    def stats(self) -> EncodeStats:
        """What has gone through this engine so far."""
        return self._runner.stats

    def output_dimension(
        self, truncate_dim: int | None = None, precision: Precision = "float32"
    ) -> int:
        """Columns of an embedding array: dimensions, or bytes of packed bits.

        Raises:
            InputError: an impossible ``truncate_dim`` or precision.
        """
        return output_width(self._keep(truncate_dim) * self.config.segments, precision)

    def output_dtype(self, precision: Precision = "float32") -> np.dtype[Any]:
        """The NumPy dtype of an embedding array.

        Raises:
            InputError: an unknown precision, or bfloat16, which NumPy has not.
        """
        _refuse_bfloat16_array(precision)
        return torch.empty(0, dtype=output_dtype(precision)).numpy().dtype

    def output_format(
        self,
        normalize_embeddings: bool | None = None,
        truncate_dim: int | None = None,
        precision: Precision = "float32",
        ranges: np.ndarray | None = None,
    ) -> OutputFormat:
        """What options of ``encode`` make an embedding look like, as ``batch_runner`` takes it.

        Raises:
            InputError: options that can not be.
        """
        keep, config = self._keep(truncate_dim), self.config
        normalize = resolve_normalize(normalize_embeddings, config.normalize)
        chosen = self._ranges if ranges is None else Ranges.of_array(ranges)
        values = resolve_ranges(chosen, precision, keep * config.segments, normalize)
        return OutputFormat(keep, normalize, precision, values)

    def batch_runner(self) -> BatchRunner:
        """What runs single batches, for a server that joins texts of many requests.

        Raises:
            BackendError: the engine has worker processes.
        """
        return self._runner.batch_runner()

    @overload
    def encode(
        self,
        texts: str | Texts,
        prompt_name: str | None = ...,
        prompt: str | None = ...,
        batch_tokens: BatchTokens = ...,
        show_progress_bar: bool | None = ...,
        convert_to: Literal["numpy"] = ...,
        normalize_embeddings: bool | None = ...,
        truncate_dim: int | None = ...,
        precision: Precision = ...,
        ranges: np.ndarray | None = ...,
    ) -> np.ndarray: ...

    @overload
    def encode(
        self,
        texts: str | Texts,
        prompt_name: str | None = ...,
        prompt: str | None = ...,
        batch_tokens: BatchTokens = ...,
        show_progress_bar: bool | None = ...,
        *,
        convert_to: Literal["tensor"],
        normalize_embeddings: bool | None = ...,
        truncate_dim: int | None = ...,
        precision: Precision = ...,
        ranges: np.ndarray | None = ...,
    ) -> torch.Tensor: ...

    def encode(
        self,
        texts: str | Texts,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_tokens: BatchTokens = None,
        show_progress_bar: bool | None = None,
        convert_to: Literal["numpy", "tensor"] = "numpy",
        normalize_embeddings: bool | None = None,
        truncate_dim: int | None = None,
        precision: Precision = "float32",
        ranges: np.ndarray | None = None,
    ) -> Embeddings:
        """Embed texts.

        Args:
            texts: one string, or a sequence of them.
            prompt_name: one of the checkpoint's prompts.
            prompt: a prompt given as it is; wins over ``prompt_name``.
            batch_tokens: most decoder rows of a batch; ``auto`` or None for as many as suit the
                device and its free memory.
            show_progress_bar: None shows one where standard error is a terminal and there are
                many texts.
            convert_to: ``numpy`` or ``tensor`` (on the CPU).
            normalize_embeddings: None for the checkpoint's setting.
            truncate_dim: dimensions to keep, as many of the front of each pooled part; the vector
                is normalised after that.
            precision: ``float32``, ``float16``, ``bfloat16`` (tensors only), ``int8``, ``uint8``
                (fixed ranges), ``binary``, ``ubinary`` (sign bits, eight to a byte), as
                sentence-transformers means them.
            ranges: ``[2, dimensions]`` minimum and maximum for int8 and uint8; None for those
                stored in the checkpoint.

        Returns:
            ``[texts, columns]``, or ``[columns]`` for one string.

        Raises:
            TextError: a text that can not be embedded, named by its row.
            InputError: options that can not be.
        """
        single = isinstance(texts, str)
        if not single and not _holds_texts(texts, Sequence):
            raise InputError(
                f"texts is {type(texts).__name__}, expected a string or a sequence of strings; "
                "encode_stream takes any iterable"
            )
        if convert_to not in ("numpy", "tensor"):
            raise InputError(f"convert_to is {convert_to!r}, expected 'numpy' or 'tensor'")
        if convert_to == "numpy":
            _refuse_bfloat16_array(precision)
        items: Sequence[str] = [texts] if isinstance(texts, str) else _as_list(texts)
        with ProgressReporter.for_encode(show_progress_bar, len(items)) as progress:
            collected = list(
                self._blocks(
                    items,
                    prompt_name,
                    prompt,
                    batch_tokens,
                    normalize_embeddings,
                    truncate_dim,
                    precision,
                    ranges,
                    progress.advance,
                )
            )
        columns = self.output_dimension(truncate_dim, precision)
        result = (
            torch.cat(collected)
            if collected
            else torch.empty((0, columns), dtype=output_dtype(precision))
        )
        result = result[0] if single else result
        return result.numpy() if convert_to == "numpy" else result

    def encode_query(self, texts: str | Texts, **options: Any) -> Embeddings:
        """Embed queries: ``encode`` with the prompt named ``query`` where there is one.

        Takes the options of ``encode``; a ``prompt`` or ``prompt_name`` given there wins.
        """
        embeddings: Embeddings = self.encode(texts, **self._with_prompt(("query",), options))
        return embeddings

    def encode_document(self, texts: str | Texts, **options: Any) -> Embeddings:
        """Embed documents: ``encode`` with the first prompt of document, passage, corpus.

        Takes the options of ``encode``; a ``prompt`` or ``prompt_name`` given there wins.
        """
        names = ("document", "passage", "corpus")
        embeddings: Embeddings = self.encode(texts, **self._with_prompt(names, options))
        return embeddings

    def encode_stream(
        self,
        texts: Iterable[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_tokens: BatchTokens = None,
        normalize_embeddings: bool | None = None,
        truncate_dim: int | None = None,
        precision: Precision = "float32",
        ranges: np.ndarray | None = None,
    ) -> Iterator[np.ndarray]:
        """Embed any number of texts with bounded memory.

        Args:
            texts: any iterable; it is read some thousands of texts ahead.
            prompt_name: as in ``encode``, and so are the rest.
            prompt: as in ``encode``.
            batch_tokens: as in ``encode``.
            normalize_embeddings: as in ``encode``.
            truncate_dim: as in ``encode``.
            precision: as in ``encode``, without ``bfloat16``.
            ranges: as in ``encode``.

        Returns:
            An iterator over blocks ``[texts, columns]``, in the order of the input.

        Raises:
            TextError: a text that can not be embedded, named by its row; raised while iterating.
            InputError: options that can not be; raised at once.
        """
        if isinstance(texts, str):
            raise InputError(
                "texts is one string, expected an iterable of strings; encode takes it"
            )
        if not _holds_texts(texts, Iterable):
            raise InputError(f"texts is {type(texts).__name__}, expected an iterable of strings")
        _refuse_bfloat16_array(precision)
        blocks = self._blocks(
            texts,
            prompt_name,
            prompt,
            batch_tokens,
            normalize_embeddings,
            truncate_dim,
            precision,
            ranges,
        )
        return (block.numpy() for block in blocks)

    def similarity(self, first: Embeddings, second: Embeddings) -> torch.Tensor:
        """Cosine similarity ``[n, m]`` of embeddings ``[n, dimensions]`` and ``[m, dimensions]``.

        Raises:
            InputError: embeddings of different widths, or uint8 ones.
        """
        return cosine_similarity(first, second)

    def calibrate(
        self,
        texts: Iterable[str],
        *,
        truncate_dim: int | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
    ) -> np.ndarray:
        """Find every dimension's range over texts, for int8 and uint8.

        The ranges serve this engine from now on; ``save_ranges`` stores them.

        Args:
            texts: at least two, the more the better.
            truncate_dim: as the embeddings will be truncated.
            prompt_name: as in ``encode``.
            prompt: as in ``encode``.

        Returns:
            Float32 ``[2, dimensions]``: minimum and maximum.

        Raises:
            InputError: fewer than two texts.
        """
        blocks = self.encode_stream(
            texts, truncate_dim=truncate_dim, prompt_name=prompt_name, prompt=prompt
        )
        self._ranges = Ranges.of_blocks(blocks, self.config.normalize)
        return self._ranges.values.numpy()

    def save_ranges(self, directory: str | Path | None = None) -> Path:
        """Store the ranges in a checkpoint directory.

        Args:
            directory: None for the one this engine was loaded from.

        Returns:
            The file written.

        Raises:
            CheckpointError: there are no ranges, or no such checkpoint.
        """
        target = self._description.directory if directory is None else Path(directory)
        if self._ranges is None:
            raise CheckpointError(f"{target}: there are no ranges to store; calibrate first")
        return self._ranges.save(target)

    def save_pretrained(self, directory: str | Path) -> None:
        """Write the checkpoint to another directory, which must not hold anything yet.

        The weights are those that were loaded, in their stored dtype; an adapter stays one.

        Raises:
            CheckpointError: the directory is not empty or can not be written.
        """
        target = Path(directory)
        copy_checkpoint(self._description.directory, self.config, target)
        if self._ranges is not None:
            self.save_ranges(target)

    def info(self) -> dict[str, Any]:
        """What this model is, for people: names and plain values."""
        description = self._description
        lines: dict[str, Any] = {
            "model": self.name,
            "directory": str(description.directory),
            "fingerprint": self._fingerprint,
            "dimension": self.dimension,
            "method": method_of(self.config),
            "template": list(self.config.template),
            "pooling": list(self.config.pooling),
            "attention mask": self.config.attention,
            "summary tokens": self.config.summary_tokens,
            "normalize": self.config.normalize,
            "max length": self.config.max_length,
            "prompts": self.prompts,
            "default prompt": self.config.default_prompt_name,
            "adapter": self.config.decoder.adapter,
            "calibrated ranges": self._ranges is not None,
            "stored dtype": str(description.stored_dtype).removeprefix("torch."),
        }
        return {**lines, **self._runner.info()}

    def _blocks(
        self,
        texts: Iterable[str],
        prompt_name: str | None,
        prompt: str | None,
        batch_tokens: BatchTokens,
        normalize: bool | None,
        truncate_dim: int | None,
        precision: Precision,
        ranges: np.ndarray | None,
        report: Callable[[int], None] | None = None,
    ) -> Iterator[torch.Tensor]:
        """Check the options, then run."""
        output = self.output_format(normalize, truncate_dim, precision, ranges)
        text = resolve_prompt(self.config, prompt_name, prompt)
        return self._runner.run(texts, text, resolve_batch_tokens(batch_tokens), output, report)

    def _keep(self, truncate_dim: int | None) -> int:
        width = self._description.decoder_shape.hidden_size
        return resolve_keep(truncate_dim, self.config.segments, width)

    def _with_prompt(self, names: tuple[str, ...], options: dict[str, Any]) -> dict[str, Any]:
        if options.get("prompt") is None and options.get("prompt_name") is None:
            known = [name for name in names if name in self.config.prompts]
            if known:
                return {**options, "prompt_name": known[0]}
        return options


def _holds_texts(texts: object, kind: type) -> bool:
    """Whether texts can be read from it one by one: bytes would give numbers."""
    if isinstance(texts, np.ndarray):
        return texts.ndim > 0
    return isinstance(texts, kind) and not isinstance(texts, (bytes, bytearray, memoryview))


def _as_list(texts: Texts) -> Sequence[str]:
    return texts.tolist() if isinstance(texts, np.ndarray) else texts


def _refuse_bfloat16_array(precision: str) -> None:
    if precision == "bfloat16":
        raise InputError(
            "precision bfloat16 has no NumPy dtype: use convert_to='tensor', float16 or float32"
        )
