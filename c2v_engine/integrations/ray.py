"""The engine on a Ray Data dataset: a column of texts becomes a column of embeddings.

``encode_dataset(ds, "my-model")`` is the short way. ``Embedder`` is the class behind it, for
``Dataset.map_batches``; Ray makes one of it in each actor, which loads the model once.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from c2v_engine.errors import InputError, MissingPackageError, TextError

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

    from c2v_engine.kernels.dual_token_pool import Precision

ON_ERROR = ("fail", "skip", "null")
_FLOATS = ("float32", "float16")
# The engine sorts and packs so many texts at a time.
_BATCH_SIZE = 8192
# More threads than these tokenise no faster than a GPU computes.
_CPUS_PER_GPU = 4


class Embedder:
    """Embeds the texts of a batch: what ``map_batches`` is given.

    Batches come as ``batch_format="pyarrow"`` or ``"numpy"``. The embeddings of a table are a
    column of fixed-size lists, those of arrays an array [rows, columns].

    Args:
        model: a checkpoint's folder, which every machine must see, or a Hub name; None for the
            small model that ships with the package.
        column: with the texts.
        output_column: for the embeddings.
        on_error: what happens to a row whose text is null or can not be embedded: ``fail`` raises,
            ``skip`` leaves the row out, ``null`` keeps it with a null embedding (in arrays NaN,
            which only float32 and float16 have).
        prompt_name: as in ``Causal2Vec.encode``, and so are the next six.
        prompt: as there.
        precision: as there, without ``bfloat16``.
        truncate_dim: as there.
        normalize_embeddings: as there.
        batch_tokens: as there.
        ranges: as there.
        device: as in ``Causal2Vec.from_pretrained``, and so are the next three.
        dtype: as there.
        attention: as there.
        deterministic: as there. A text then has the same bits in whatever batch Ray puts it.
        threads: of the processor; None for as many as Ray has given the actor CPUs.

    Raises:
        InputError: options that can not be.
        CheckpointError: the model can not be loaded.
        BackendError: not on this device.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        column: str = "text",
        output_column: str = "embedding",
        on_error: str = "fail",
        prompt_name: str | None = None,
        prompt: str | None = None,
        precision: Precision = "float32",
        truncate_dim: int | None = None,
        normalize_embeddings: bool | None = None,
        batch_tokens: int | None = None,
        ranges: np.ndarray | None = None,
        device: str = "auto",
        dtype: str = "auto",
        attention: str = "auto",
        deterministic: bool = False,
        threads: int | None = None,
    ) -> None:
        _check_options(on_error, precision)
        limit_threads(threads)
        from c2v_engine import Causal2Vec

        self._engine = Causal2Vec.from_pretrained(
            None if model is None else os.fspath(model),
            device=device,
            dtype=dtype,
            attention=attention,
            deterministic=deterministic,
        )
        self._column = column
        self._output_column = output_column
        self._on_error = on_error
        self._width = self._engine.output_dimension(truncate_dim, precision)
        self._type = self._engine.output_dtype(precision)
        self._options: dict[str, Any] = {
            "prompt_name": prompt_name,
            "prompt": prompt,
            "precision": precision,
            "truncate_dim": truncate_dim,
            "normalize_embeddings": normalize_embeddings,
            "batch_tokens": batch_tokens,
            "ranges": ranges,
        }

    def __call__(self, batch: Any) -> Any:
        """Embed a batch.

        Args:
            batch: a pyarrow ``Table``, or a dict of arrays.

        Returns:
            The same with one more column, without the rows that are skipped.

        Raises:
            InputError: there is no such column, the output's column is there already, or a row can
                not be embedded and ``on_error`` is ``fail``.
        """
        if isinstance(batch, Mapping):
            return self._embed_arrays(dict(batch))
        import pyarrow as pa

        if isinstance(batch, pa.Table):
            return self._embed_table(batch)
        raise InputError(
            f"the batch is {type(batch).__name__}: give map_batches batch_format='pyarrow' or "
            "'numpy'"
        )

    def _embed_table(self, batch: pa.Table) -> pa.Table:
        import pyarrow as pa

        self._check_columns(batch.column_names)
        vectors, kept = self._embed(batch.column(self._column).to_pylist())
        mask = None
        if len(kept) < len(batch) and self._on_error == "skip":
            batch = batch.take(pa.array(kept))
        elif len(kept) < len(batch):
            vectors, valid = self._spread(vectors, kept, len(batch))
            mask = pa.array(~valid)
        kind = pa.list_(pa.from_numpy_dtype(self._type), self._width)
        flat = pa.array(vectors.reshape(-1))
        embeddings = pa.FixedSizeListArray.from_arrays(flat, type=kind, mask=mask)
        return batch.append_column(pa.field(self._output_column, kind), embeddings)

    def _embed_arrays(self, batch: dict[str, Any]) -> dict[str, Any]:
        self._check_columns(list(batch))
        texts = np.asarray(batch[self._column]).tolist()
        vectors, kept = self._embed(texts)
        if len(kept) < len(texts) and self._on_error == "skip":
            batch = {name: np.asarray(values)[kept] for name, values in batch.items()}
        elif len(kept) < len(texts):
            if self._type.name not in _FLOATS:
                raise InputError(
                    f"column {self._column!r}, row {_missing(kept)} of the batch: has no embedding,"
                    f" and an array of {self._type.name} has no nulls: use batch_format='pyarrow'"
                )
            vectors, _ = self._spread(vectors, kept, len(texts))
        return {**batch, self._output_column: vectors}

    def _embed(self, texts: list[Any]) -> tuple[np.ndarray, np.ndarray]:
        """Embed what can be; returns [kept rows, columns] and the numbers of those rows."""
        kept = [row for row, text in enumerate(texts) if isinstance(text, str)]
        if self._on_error == "fail" and len(kept) < len(texts):
            row = _missing(kept)
            text = texts[row]
            is_null = text is None or text != text
            self._fail(row, f"is {'null' if is_null else type(text).__name__}, expected a string")
        while kept:
            try:
                vectors = self._engine.encode(
                    [texts[row] for row in kept], show_progress_bar=False, **self._options
                )
                return vectors, np.array(kept)
            except TextError as error:
                if self._on_error == "fail":
                    self._fail(kept[error.row], error.reason)
                del kept[error.row]
        return np.empty((0, self._width), self._type), np.empty(0, np.int64)

    def _fail(self, row: int, reason: str) -> None:
        raise InputError(f"column {self._column!r}, row {row} of the batch: {reason}")

    def _spread(
        self, vectors: np.ndarray, kept: np.ndarray, rows: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Put vectors into their rows; of the others NaN, or 0 where there is none."""
        rest = np.nan if self._type.name in _FLOATS else 0
        spread = np.full((rows, self._width), rest, self._type)
        spread[kept] = vectors
        valid = np.zeros(rows, bool)
        valid[kept] = True
        return spread, valid

    def _check_columns(self, names: list[str]) -> None:
        if self._column not in names:
            raise InputError(f"there is no column {self._column!r}, only {', '.join(names)}")
        if self._output_column in names:
            raise InputError(
                f"there is a column {self._output_column!r} already: choose another output_column"
            )


def encode_dataset(
    ds: Dataset,
    model: str | os.PathLike[str] | None = None,
    *,
    column: str = "text",
    output_column: str = "embedding",
    concurrency: int | tuple[int, int] | None = None,
    num_gpus: float | None = None,
    num_cpus: float | None = None,
    batch_size: int = _BATCH_SIZE,
    ray_remote_args: Mapping[str, Any] | None = None,
    **options: Any,
) -> Dataset:
    """Add embeddings to a dataset, computed by actors when the dataset is read.

    An actor that dies is started anew by Ray, and its batches are computed again: no row is lost or
    doubled. Rows keep their columns; their order is kept only if
    ``ray.data.DataContext.get_current().execution_options.preserve_order`` is True.

    Args:
        ds: has a column of strings.
        model: as for ``Embedder``, and so are the next two.
        column: with the texts.
        output_column: for the embeddings, fixed-size lists.
        concurrency: how many actors, or the fewest and the most; None has Ray start with one and
            add more while there is work for them and room in the cluster.
        num_gpus: of each actor; None for one where the cluster has GPUs, unless ``device`` is
            ``cpu``. A part of 1 puts several actors on a GPU.
        num_cpus: of each actor, which computes and tokenises with as many threads; None for one, or
            beside a GPU for up to four.
        batch_size: rows of a batch; texts are packed by length inside it.
        ray_remote_args: more of ``map_batches``, as ``resources`` or ``runtime_env``.
        options: more of ``Embedder``, as ``prompt_name``, ``precision`` or ``deterministic``.

    Returns:
        The dataset with one more column, lazily as all in Ray Data.

    Raises:
        MissingPackageError: Ray is not installed.
        InputError: options that can not be.
    """
    try:
        import ray
        from ray.data import ActorPoolStrategy
    except ImportError as error:
        raise MissingPackageError("ray[data]", "ray") from error

    known = set(inspect.signature(Embedder).parameters)
    for name in options:
        if name not in known:
            raise InputError(f"there is no option {name!r}, only {', '.join(sorted(known))}")
    _check_options(options.get("on_error", "fail"), options.get("precision", "float32"))
    if not ray.is_initialized():
        ray.init()
    gpus, cpus = _resources(ray.cluster_resources(), options.get("device", "auto"), num_gpus)
    if isinstance(concurrency, int):
        pool = ActorPoolStrategy(size=concurrency)
    else:
        least, most = concurrency or (1, None)
        pool = ActorPoolStrategy(min_size=least, max_size=most)
    return ds.map_batches(
        Embedder,
        fn_constructor_args=(None if model is None else os.fspath(model),),
        fn_constructor_kwargs={"column": column, "output_column": output_column, **options},
        batch_format="pyarrow",
        batch_size=batch_size,
        compute=pool,
        num_gpus=gpus,
        num_cpus=cpus if num_cpus is None else num_cpus,
        **(ray_remote_args or {}),
    )


def _resources(
    cluster: Mapping[str, float], device: str, num_gpus: float | None
) -> tuple[float, float]:
    """GPUs and CPUs of an actor."""
    there = cluster.get("GPU", 0.0)
    if num_gpus is None:
        num_gpus = 1.0 if there and device != "cpu" else 0.0
    if not num_gpus or not there:
        return num_gpus, 1.0
    share = cluster.get("CPU", 1.0) * num_gpus / there
    return num_gpus, max(1.0, min(_CPUS_PER_GPU, share // 2))  # the rest is for reading


def _check_options(on_error: str, precision: str) -> None:
    if on_error not in ON_ERROR:
        raise InputError(f"on_error is {on_error!r}, expected one of: {', '.join(ON_ERROR)}")
    if precision == "bfloat16":
        raise InputError("precision is 'bfloat16', which Arrow has not: use float16 or float32")


def limit_threads(threads: int | None) -> None:
    """Use the threads that Ray has set OMP_NUM_THREADS to, the CPUs of the actor, or as given.

    The tokenizers' own threads have no other limit than this variable, which they read once.
    """
    if threads is None:
        stated = os.environ.get("OMP_NUM_THREADS", "")
        threads = int(stated) if stated.isdecimal() else None
    if threads is not None:
        os.environ["RAYON_NUM_THREADS"] = str(threads)
        import torch

        torch.set_num_threads(threads)


def _missing(kept: Any) -> int:
    """The first row that is not among those kept."""
    return next((row for row, number in enumerate(kept) if row != number), len(kept))
