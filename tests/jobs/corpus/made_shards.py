"""A job's folder of made-up rows, written as workers and their coordinator do."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from c2v_engine.jobs.corpus.folder.identity import claim
from c2v_engine.jobs.corpus.folder.manifest import Manifest
from c2v_engine.jobs.corpus.folder.shards import commit_shard, open_shard
from c2v_engine.jobs.corpus.records import Reject, UnitDone

DIMENSION = 6
SCHEMA = pa.schema([pa.field("id", pa.string(), nullable=False), pa.field("kept", pa.int32())])


def vectors(rows):
    """Made-up embeddings, another for each row."""
    generator = np.random.default_rng(0)
    return generator.standard_normal((10_000, DIMENSION)).astype(np.float32)[list(rows)]


def columns(rows, schema=SCHEMA):
    """Made-up ids and kept values."""
    kept = [None if row % 7 == 0 else row for row in rows]
    return pa.record_batch([pa.array([f"id{row}" for row in rows]), pa.array(kept)], schema=schema)


def write_unit(folder, unit, rows, *, format="parquet", bad=(), on_error="fail", block=7):
    """Write and commit a shard; give its record."""
    shard = open_shard(
        folder, unit, format, SCHEMA, DIMENSION, "float32", {"model": "m"}, nulls=on_error == "null"
    )
    rows = list(rows)
    written = [row for row in rows if row not in bad or on_error == "null"]
    for first in range(0, len(written), block):
        here = written[first : first + block]
        valid = np.array([row not in bad for row in here])
        good = [row for row in here if row not in bad]
        shard.write(columns(here), vectors(good), None if valid.all() else valid)
    files = shard.finish()
    commit_shard(folder, files)
    return UnitDone(
        unit=unit,
        first_row=rows[0],
        rows=len(rows),
        written=len(written),
        files=tuple(file for _, file in files),
        rejects=tuple(Reject(row, f"id{row}", f"in, row {row + 1}", "is bad") for row in bad),
        tokens=3 * len(rows),
        seconds=0.5,
    )


def write_job(folder, *, rows=50, size=20, units=None, format="parquet", bad=(), on_error="fail"):
    """Write a job, or the first units of one; give its records."""
    folder.mkdir(exist_ok=True)
    about = {
        "rows": rows,
        "shard_rows": size,
        "format": format,
        "precision": "float32",
        "dimension": DIMENSION,
        "on_error": on_error,
        "id_column": "id",
        "input": "digest",
    }
    claim(folder, about, {"c2v_engine": "0"})
    manifest = Manifest.open(folder)
    count = -(-rows // size) if units is None else units
    records = []
    for unit in range(count):
        here = range(unit * size, min(rows, (unit + 1) * size))
        rejected = [row for row in here if row in bad]
        record = write_unit(folder, unit, here, format=format, bad=rejected, on_error=on_error)
        manifest.append(record)
        records.append(record)
    manifest.close()
    return records
