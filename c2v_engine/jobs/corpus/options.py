"""What a corpus job is asked for, what of it decides its output, and what it comes to."""

from __future__ import annotations

import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from c2v_engine._version import __version__
from c2v_engine.jobs.corpus.folder.shards import default_shard_rows
from c2v_engine.jobs.corpus.work.facts import EngineFacts
from c2v_engine.jobs.encode import EncodeOptions
from c2v_engine.jobs.maker import stored_name
from c2v_engine.jobs.readers.base import DEFAULT_COLUMN
from c2v_engine.jobs.writers import pack_ranges

ON_ERROR = ("fail", "skip", "null")


@dataclass(frozen=True)
class CorpusOptions:
    """What a job is to do; what of it decides the output is kept in the folder and compared.

    Attributes:
        column: with the texts; None for ``text``.
        id_column: with the ids; None for the row's number in the whole input.
        keep: columns that are passed through.
        format: of the shards: parquet, arrow, safetensors or npy.
        shard_rows: rows of a shard; None for as many as make a shard of a handy size.
        on_error: ``fail``, ``skip`` or ``null``, for rows that can not be embedded.
        cache: file of embeddings that were computed before, and of those that will be.
        overwrite: begin anew, whatever job the folder holds.
        redo_changed: do the units again that hold rows of input files which have changed since the
            job began, rather than refuse these.
        deterministic: whether the engine gives a text the same bits in any batch.
        encode: how texts are embedded.
    """

    column: str | None = None
    id_column: str | None = None
    keep: tuple[str, ...] = ()
    format: str = "parquet"
    shard_rows: int | None = None
    on_error: str = "fail"
    cache: Path | None = None
    overwrite: bool = False
    redo_changed: bool = False
    deterministic: bool = False
    encode: EncodeOptions = field(default_factory=EncodeOptions)


@dataclass(frozen=True)
class CorpusSummary:
    """What a finished job has in its folder.

    Attributes:
        folder: the output.
        rows: of the input.
        written: rows of the shards.
        rejects: rows that were not embedded.
        shards: how many.
        size: of their files, in bytes.
        done_before: rows that earlier starts of the job had done.
        seconds: of this start, from the first text on.
        tokens: decoder rows computed by this start.
        deaths: of workers, in this start.
        precision: of the output.
        facts: of the engine.
    """

    folder: Path
    rows: int
    written: int
    rejects: int
    shards: int
    size: int
    done_before: int
    seconds: float
    tokens: int
    deaths: int
    precision: str
    facts: EngineFacts


def make_identity(options: CorpusOptions, facts: EngineFacts) -> dict[str, Any]:
    """What decides a job's output, apart from its input."""
    info, encode = facts.info, options.encode
    prompt_name = encode.prompt_name
    if prompt_name is None and encode.prompt is None:
        prompt_name = info["default prompt"]
    rows = options.shard_rows or default_shard_rows(facts.dimension, encode.precision)
    ranges = facts.ranges_digest(encode.precision)
    # Bits are promised on one kind of device alone, by one way of computing.
    where = {
        "device": str(info.get("device", "")).partition(":")[0],
        "attention": [info.get("attention backend"), info.get("encoder attention backend")],
    }
    return {
        "model": stored_name(info),
        "fingerprint": info.get("fingerprint"),
        "prompt_name": prompt_name,
        "prompt": encode.prompt,
        "precision": encode.precision,
        "dimension": facts.dimension,
        "truncate_dim": encode.truncate_dim,
        "normalize": info["normalize"],
        "dtype": info.get("dtype"),
        "deterministic": options.deterministic,
        "format": options.format,
        "shard_rows": rows,
        "column": options.column or DEFAULT_COLUMN,
        "id_column": options.id_column,
        "keep": list(options.keep),
        "on_error": options.on_error,
        **({} if ranges is None else {"ranges": ranges}),
        **(where if options.deterministic else {}),
    }


def shard_metadata(options: CorpusOptions, facts: EngineFacts) -> dict[str, Any]:
    """What each shard says of its making, as a single file of ``c2v encode`` does."""
    identity = make_identity(options, facts)
    kept = facts.ranges if options.encode.precision in ("int8", "uint8") else None
    names = (
        "model fingerprint id_column prompt_name prompt precision dimension truncate_dim normalize"
    )
    about = {name: identity[name] for name in names.split()}
    return {**about, "ranges": None if kept is None else pack_ranges(kept)}


def versions() -> dict[str, str]:
    """What a job is made with, for people."""
    return {"c2v-engine": __version__, "python": platform.python_version()}
