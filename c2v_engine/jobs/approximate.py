"""Approximate search in millions of rows: an HNSW graph of usearch over the encode output.

Beside ``FILE.usearch`` stands ``FILE.usearch.json``: what made the embeddings, and where the file
with their ids is. The graph's keys are row numbers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from c2v_engine.errors import BackendError, InputError, OutputError
from c2v_engine.jobs.corpus.folder.layout import MANIFEST_NAME
from c2v_engine.jobs.decoding import RANGED
from c2v_engine.jobs.output import AtomicFile, check_place
from c2v_engine.jobs.search import APPROXIMATE, EmbeddingIndex, ExactIndex
from c2v_engine.jobs.vectors import VectorFile, open_vectors

FORMAT_VERSION = 1
_STAMP_BYTES = 64 * 1024


def sidecar(path: Path) -> Path:
    """The JSON file beside a graph."""
    return path.with_name(path.name + ".json")


class ApproximateIndex(EmbeddingIndex):
    """A graph, memory-mapped. Its scores are cosines of half-precision vectors.

    Raises:
        InputError: the graph or its JSON file is missing or damaged, or the file with the ids is.
        BackendError: usearch is not installed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        index_class = _usearch()
        about = _read_sidecar(path)
        if _stamp(path) != about["graph"]:  # before a library maps what may be damaged
            raise InputError(f"{path}: does not fit {sidecar(path).name}: run c2v index again")
        try:
            self._graph = index_class.restore(path, view=True)
        except (RuntimeError, ValueError, OSError) as error:
            raise InputError(f"{path}: not a readable index: {error}") from error
        if self._graph is None:
            raise InputError(f"{path}: not a readable index")
        self.rows = about["rows"]
        self.about = about["about"]
        folder = os.path.dirname(os.path.realpath(path))
        self._source = Path(os.path.normpath(os.path.join(folder, about["source"])))
        self._stamp = about["stamp"]
        self._vectors: VectorFile | None = None

    def check_dimension(self, dimension: int) -> None:
        """Check that vectors of a dimension can be compared; see ``EmbeddingIndex``."""
        if dimension != self._graph.ndim:
            raise InputError(
                f"{self.path}: holds embeddings of {self._graph.ndim} dimensions, the question's "
                f"vector has {dimension} dimensions: it is of another model or truncate_dim"
            )

    def truncate_dim(self, dimension: int) -> int | None:
        """What a model cuts its questions to; see ``EmbeddingIndex``."""
        if self.about:
            kept: int | None = self.about.get("truncate_dim")
            return kept
        return self._graph.ndim if self._graph.ndim < dimension else None

    def _nearest(
        self, units: NDArray[np.float32], k: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        scores = np.full((len(units), k), -np.inf, dtype=np.float32)
        rows = np.full((len(units), k), -1, dtype=np.int64)
        for number, unit in enumerate(units):
            found = self._graph.search(unit, k)
            count = len(found.keys)
            scores[number, :count] = 1 - np.asarray(found.distances, dtype=np.float32)
            rows[number, :count] = np.asarray(found.keys).astype(np.int64)
        return scores, rows

    def _ids(self, rows: list[int]) -> list[str | int]:
        if self._vectors is None:
            source = _stamped(self._source)
            if not source.is_file() or _stamp(source) != self._stamp:
                state = "has changed" if source.is_file() else "is gone"
                raise InputError(
                    f"{self.path}: the file with its ids, {self._source}, {state}: put it back or "
                    "run c2v index again"
                )
            self._vectors = open_vectors(self._source)
        return self._vectors.ids(rows)


class IndexJob:
    """Builds a graph from a file of embeddings; leaving it removes what is unfinished.

    Args:
        source: what ``c2v encode`` wrote, a file or a folder, in any precision but packed bits.
        output: ``.usearch``.
        precision: as ``EmbeddingIndex.open`` takes it.
        overwrite: replace an output that exists.

    Raises:
        InputError: the source can not be indexed.
        OutputError: the output can not be written.
        BackendError: usearch is not installed.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        output: str | os.PathLike[str],
        *,
        precision: str | None = None,
        overwrite: bool = False,
    ) -> None:
        self._class = _usearch()
        self.output = Path(output)
        if self.output.suffix.lower() != APPROXIMATE:
            raise OutputError(f"{self.output}: expected a name that ends in {APPROXIMATE}")
        self._vectors = open_vectors(Path(source))
        self._exact = ExactIndex(self._vectors, precision)
        if self._exact.packed:
            raise InputError(
                f"{source}: {self._exact.precision} embeddings are not indexed: they are searched "
                "exactly, by c2v search, or embed with float16 or int8 instead"
            )
        if self._exact.precision in RANGED and self._exact.ranges is None:
            raise InputError(
                f"{source}: holds no ranges, by which {self._exact.precision} embeddings are read: "
                "embed to .parquet, which keeps them"
            )
        if not self._exact.rows:
            raise InputError(f"{source}: no rows: there is nothing to index")
        self._overwrite = overwrite
        check_place(sidecar(self.output), overwrite=overwrite)
        self._target = AtomicFile(self.output, overwrite=overwrite)

    def __enter__(self) -> IndexJob:
        return self

    def __exit__(self, *exception: object) -> None:
        self._target.abandon()

    def interrupt(self) -> str:
        """Drop the output from another thread, just before the process ends; say what there is."""
        whole = not self._target.give_up()
        return f"interrupted: {self.output} was {'already' if whole else 'not'} written"

    def run(
        self, connectivity: int = 16, report: Callable[[int, int], None] | None = None
    ) -> tuple[int, int]:
        """Build the graph and put it in its place.

        Args:
            connectivity: neighbours of a node; more find more and take more memory.
            report: called with the rows done and all rows, after every block.

        Returns:
            Its rows and its size in bytes.

        Raises:
            InputError: the source is damaged.
            OutputError: the output can not be written.
        """
        dimension = self._vectors.columns
        graph = self._class(ndim=dimension, metric="cos", dtype="f16", connectivity=connectivity)
        for first, units in self._exact.unit_blocks(dimension):
            graph.add(np.arange(first, first + len(units), dtype=np.uint64), units)
            if report is not None:
                report(first + len(units), self._exact.rows)
        try:
            graph.save(self._target.temporary)
        except (RuntimeError, OSError) as error:
            raise OutputError(f"{self.output}: can not be written: {error}") from error
        source = self._vectors.path
        about = {
            "format_version": FORMAT_VERSION,
            "graph": _stamp(self._target.temporary),
            "source": os.path.relpath(source, self._target.path.parent),
            "stamp": _stamp(_stamped(source)),
            "rows": self._exact.rows,
            "about": self._exact.about,
        }
        with_json = AtomicFile(sidecar(self.output), overwrite=self._overwrite)
        try:
            with_json.file.write(json.dumps(about, indent=2).encode() + b"\n")
            with_json.commit()
        finally:
            with_json.abandon()
        return self._exact.rows, self._target.commit()


def _usearch() -> Any:
    try:
        from usearch.index import Index
    except ImportError:
        raise BackendError(
            "an approximate index needs usearch, which is not installed: "
            "pip install 'c2v-engine[ann]'"
        ) from None
    return Index


def _read_sidecar(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    beside = sidecar(path)
    try:
        about = json.loads(beside.read_text(encoding="utf-8"))
        kinds = {"graph": str, "source": str, "stamp": str, "rows": int, "about": dict}
        fits = about["format_version"] == FORMAT_VERSION and all(
            isinstance(about[name], kind) for name, kind in kinds.items()
        )
    except OSError:
        raise InputError(f"{beside}: is missing; c2v index writes it beside the index") from None
    except (ValueError, KeyError, TypeError):
        fits = False
    if not fits:
        raise InputError(f"{beside}: not as c2v index writes it: run c2v index again")
    result: dict[str, Any] = about
    return result


def _stamped(source: Path) -> Path:
    """The file that says whether a source was written anew: of a folder, what records its files."""
    return source / MANIFEST_NAME if source.is_dir() else source


def _stamp(path: Path) -> str:
    """Hash a file's size, beginning and end: enough to see that it was written anew."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest = blake2b(f"{size}".encode(), digest_size=8)
        digest.update(file.read(_STAMP_BYTES))
        file.seek(max(0, size - _STAMP_BYTES))
        digest.update(file.read(_STAMP_BYTES))
    return digest.hexdigest()
