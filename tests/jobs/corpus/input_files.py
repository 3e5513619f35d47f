"""Input files of every format and compression, planned and read."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json

import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq

from c2v_engine.jobs.corpus.source.inputs import find_inputs
from c2v_engine.jobs.corpus.source.plan import make_plan
from c2v_engine.jobs.corpus.source.reading import UnitReader

FORMATS = ("txt", "jsonl", "csv", "parquet", "arrow", "stream")
ENDINGS = {"stream": "ipc"}
COMPRESSIONS = (None, "gz", "zst", "bz2", "lz4")


def compress(data, how):
    if how is None:
        return data
    if how == "gz":
        return gzip.compress(data)
    if how == "bz2":
        return bz2.compress(data)
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, {"zst": "zstd", "lz4": "lz4"}[how]) as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def content(format, texts, group=7):
    """The bytes of a file; rows have an id and a kept column, but in txt."""
    if format == "txt":
        return "".join(f"{text}\n" for text in texts).encode()
    rows = [{"id": f"r{number}", "text": text, "more": number} for number, text in enumerate(texts)]
    if format == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    sink = io.StringIO(newline="")
    if format == "csv":
        writer = csv.DictWriter(sink, ["more", "text", "id"])
        writer.writeheader()
        writer.writerows(rows)
        return sink.getvalue().encode()
    table = pa.Table.from_pylist(
        rows, pa.schema({"more": "int32", "text": "string", "id": "string"})
    )
    sink = pa.BufferOutputStream()
    if format == "parquet":
        pq.write_table(table, sink, row_group_size=group, write_page_checksum=True)
    else:
        make = ipc.new_stream if format == "stream" else ipc.new_file
        with make(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=group)
    return sink.getvalue().to_pybytes()


def put(folder, format, texts, how=None, name="a", **options):
    ending = ENDINGS.get(format, format) + ("" if how is None else f".{how}")
    path = folder / f"{name}.{ending}"
    path.write_bytes(compress(content(format, texts, **options), how))
    return path


def plan_of(*paths, shard_rows=5, **options):
    return make_plan(find_inputs([str(path) for path in paths]), shard_rows=shard_rows, **options)


def read(plan, units=None, on_error="fail", reader=None):
    """Rows of some units, in that order: (row, id, text, place), with one reader for all."""
    reader = reader or UnitReader(plan, on_error)
    found = []
    for unit in plan.units if units is None else units:
        row = unit.first_row
        for block in reader.read(unit):
            assert block.first_row == row
            assert block.columns.num_rows == len(block)
            assert block.columns.schema.names == plan.schema.names
            ids = block.columns.column("id").to_pylist()
            for position, (key, text) in enumerate(zip(ids, block.texts, strict=True)):
                assert (text is None) == (position in block.rejects)
                found.append((row, key, text, block.place(position)))
                row += 1
        assert row == unit.first_row + unit.rows
    if units is None:
        reader.close()
    return found


def rejects(plan):
    reader = UnitReader(plan, "skip")
    return [
        reject
        for unit in plan.units
        for block in reader.read(unit)
        for _, reject in sorted(block.rejects.items())
    ]


def texts_of(plan):
    return [text for _, _, text, _ in read(plan)]
