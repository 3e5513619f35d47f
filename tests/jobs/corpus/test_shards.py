"""Shards: they hold what was given, in bytes that are always the same; mishaps leave nothing."""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_shards import DIMENSION, SCHEMA, columns, vectors, write_unit
from safetensors import safe_open

from c2v_engine.errors import OutputError
from c2v_engine.jobs.corpus.folder.layout import is_own, is_temporary, shard_names, shard_number
from c2v_engine.jobs.corpus.folder.shards import (
    FORMATS,
    check_shards,
    default_shard_rows,
    digest_of,
    open_shard,
    temporary_name,
)

BAD = (0, 5, 36, 37, 99)


@contextmanager
def file_size_limit(size):
    """What a full disk is to a process: writes beyond it fail."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def read(folder, unit, format):
    """What a shard holds: its other columns, its embeddings (NaN for null), and what made it."""
    names = shard_names(unit, format)
    if format == "parquet":
        table = pq.read_table(folder / names[0])
    elif format == "arrow":
        table = pa.ipc.open_file(folder / names[0]).read_all()
    else:
        table = pq.read_table(folder / names[1])
    about = json.loads(table.schema.metadata[b"c2v"])
    if format == "npy":
        return table, np.load(folder / names[0]), about
    if format == "safetensors":
        with safe_open(folder / names[0], "np") as file:
            assert json.loads(file.metadata()["c2v"]) == about
            return table, file.get_tensor("embeddings"), about
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), DIMENSION)
    nan = [np.nan] * DIMENSION
    rows = [nan if row is None else row for row in table["embedding"].to_pylist()]
    return table.drop("embedding"), np.array(rows, np.float32).reshape(-1, DIMENSION), about


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("on_error", ["fail", "skip", "null"])
def test_a_shard_holds_its_rows(tmp_path, format, on_error):
    bad = () if on_error == "fail" else BAD
    record = write_unit(tmp_path, 3, range(100), format=format, bad=bad, on_error=on_error)
    assert sorted(os.listdir(tmp_path)) == sorted(shard_names(3, format))
    for file in record.files:
        assert (file.size, file.sha256) == digest_of(tmp_path / file.name)
    table, found, about = read(tmp_path, 3, format)
    rows = [row for row in range(100) if row not in bad or on_error == "null"]
    assert pa.table(table).equals(pa.Table.from_batches([columns(rows)]))
    expected = vectors(rows)
    if on_error == "null":
        expected[list(BAD)] = np.nan
    np.testing.assert_array_equal(found, expected)
    assert about == {"model": "m"}
    assert record.written == len(rows)


@pytest.mark.parametrize("format", FORMATS)
def test_a_shard_may_be_empty(tmp_path, format):
    write_unit(tmp_path, 0, range(3), format=format, bad=(0, 1, 2), on_error="skip")
    table, found, _ = read(tmp_path, 0, format)
    assert len(table) == 0
    assert found.shape == (0, DIMENSION)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("on_error", ["fail", "null"])
def test_bytes_do_not_depend_on_how_rows_are_handed_over(tmp_path, monkeypatch, format, on_error):
    """Nor on the buffers that they come in, which may be slices of others."""
    monkeypatch.setattr("c2v_engine.jobs.writers.base.GROUP_ROWS", 37)
    schema = SCHEMA.append(pa.field("words", pa.list_(pa.struct([("a", pa.string())]))))
    schema = schema.append(pa.field("kind", pa.dictionary(pa.int8(), pa.string())))
    whole = pa.record_batch(
        [
            *columns(range(100)).columns,
            pa.array([[{"a": str(row)}] * (row % 3) for row in range(100)], schema.field(2).type),
            pa.array(["ab"[row % 2] for row in range(100)])
            .dictionary_encode()
            .cast(schema[3].type),
        ],
        schema=schema,
    )
    valid = np.ones(100, bool)
    if on_error == "null":
        valid[list(BAD)] = False
    generator = random.Random(0)
    seen = set()
    for trial in range(8):
        folder = tmp_path / str(trial)
        folder.mkdir()
        shard = open_shard(
            folder, 1, format, schema, DIMENSION, "float32", {}, nulls=on_error == "null"
        )
        first = 0
        while first < 100:
            after = min(100, first + (generator.randint(1, 60) if trial else 100))
            part, here = whole.slice(first, after - first), valid[first:after]
            if trial % 2:
                part = pa.RecordBatch.from_pylist(part.to_pylist(), schema=schema)
            given = vectors(range(first, after))[here]
            shard.write(part, given, None if here.all() else here)
            first = after
        seen.add(tuple(file.sha256 for _, file in shard.finish()))
    assert len(seen) == 1


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("room", [10, 3_000])
def test_a_full_disk_is_named_and_leaves_nothing(tmp_path, format, room):
    """At once, or when what is held back is written; the limit stands in for the disk."""
    shard = open_shard(tmp_path, 7, format, SCHEMA, DIMENSION, "float32", {}, nulls=False)

    def fill():
        for first in range(0, 1000, 100):
            rows = range(first, first + 100)
            shard.write(columns(rows), vectors(rows))
        shard.finish()

    with (
        file_size_limit(room),
        pytest.raises(OutputError, match=r"part-000007\.\w+: can not be written: File too large"),
    ):
        fill()
    shard.abandon()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("format", FORMATS)
def test_a_full_file_system_is_named_and_leaves_nothing(tmp_path, format):
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "none", str(tmp_path)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        with pytest.raises(OutputError, match="can not be written: No space left on device"):
            write_unit(tmp_path, 0, range(5000), format=format, block=500)
        assert os.listdir(tmp_path) == []
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_an_abandoned_shard_leaves_nothing(tmp_path):
    for format in FORMATS:
        shard = open_shard(tmp_path, 7, format, SCHEMA, DIMENSION, "float32", {}, nulls=False)
        shard.write(columns(range(5)), vectors(range(5)))
        assert len(os.listdir(tmp_path)) == len(shard_names(7, format))
        assert all(is_temporary(name) for name in os.listdir(tmp_path))
        shard.abandon()
        assert os.listdir(tmp_path) == []


def test_a_finished_shard_is_not_removed(tmp_path):
    shard = open_shard(tmp_path, 7, "npy", SCHEMA, DIMENSION, "float32", {}, nulls=False)
    shard.finish()
    shard.abandon()
    assert len(os.listdir(tmp_path)) == 2


def test_a_folder_that_is_gone_is_named(tmp_path):
    with pytest.raises(OutputError, match=r"none/part-000000.parquet: .* No such file"):
        open_shard(tmp_path / "none", 0, "parquet", SCHEMA, 4, "float32", {}, nulls=False)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format": "csv"}, "unknown format 'csv'"),
        ({"precision": "bfloat16"}, "write float16 or float32"),
        ({"format": "npy", "precision": "int8", "nulls": True}, "npy files hold no null"),
        ({"schema": SCHEMA.append(pa.field("kept", pa.int8()))}, "would be named 'kept'"),
        ({"schema": SCHEMA.append(pa.field("embedding", pa.int8()))}, "would be named 'embedding'"),
        ({"schema": SCHEMA.append(pa.field("u", pa.month_day_nano_interval()))}, "can not hold"),
    ],
)
def test_shards_that_can_not_be_are_refused_before_anything_runs(tmp_path, changes, reason):
    given = {"format": "parquet", "schema": SCHEMA, "precision": "float32", "nulls": False}
    check_shards(tmp_path, **given)
    with pytest.raises(OutputError, match=reason):
        check_shards(tmp_path, **{**given, **changes})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("dimension", [1, 96, 768, 2048, 7168, 100_000_000])
def test_a_shard_is_of_a_handy_size(dimension):
    for precision, size in {"float32": 4, "float16": 2, "int8": 1}.items():
        rows = default_shard_rows(dimension, precision)
        assert rows & (rows - 1) == 0
        assert rows <= 32768
        assert rows * dimension * size <= 2**28 or rows == 1
        assert rows == 32768 or 2 * rows * dimension * size > 2**28


def test_only_names_that_jobs_give_are_ours():
    for name in ["job.json", "part-000012.parquet", "part-1234567.ids.parquet", ".lock"]:
        assert is_own(name)
        assert is_own(temporary_name(name))
        assert is_own(f".{name}.123.0a1b2c3d.tmp")
    assert shard_number("part-000012.ids.parquet") == 12
    for name in [
        "part-00000-of-00003.parquet",
        "part-000001.txt",
        "part-000001.ids.npy",
        "notes.txt",
        ".notes.txt.123.0a1b2c3d.tmp",
        ".job.json.tmp",
        "job.json~",
    ]:
        assert not is_own(name)
