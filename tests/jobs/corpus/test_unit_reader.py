"""A reader of units goes on from wherever it stands, after whatever happened there."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import pytest
from input_files import COMPRESSIONS, FORMATS, plan_of, put, read

from c2v_engine.errors import InputError
from c2v_engine.jobs.corpus.source import cursor
from c2v_engine.jobs.corpus.source.inputs import InputFile
from c2v_engine.jobs.corpus.source.reading import UnitReader
from c2v_engine.jobs.readers.source import ByteSource, SourceError

LINES = ("txt", "jsonl", "csv")


def texts(count, file=0):
    return [f"text {row}" if row % 4 else f'"{row}", of {file}' for row in range(count)]


def units_of(plan):
    """What each unit holds, read in order."""
    whole = read(plan)
    return [whole[unit.first_row : unit.first_row + unit.rows] for unit in plan.units]


@pytest.fixture
def opened(monkeypatch):
    """The names of files, as they are opened."""
    names = []

    def count(file, real=InputFile.open):
        names.append(file.name)
        return real(file)

    monkeypatch.setattr(InputFile, "open", count)
    return names


def test_a_unit_may_span_files_of_all_formats_and_empty_ones(tmp_path):
    paths, expected = [], []
    for number, (format, how) in enumerate(
        [("jsonl", None), ("csv", "gz"), ("parquet", None), ("arrow", "zst"), ("stream", "bz2")]
    ):
        paths.append(put(tmp_path, format, [], how, name=f"{number}empty"))
        rows = texts(7 * number + 1, number)
        paths.append(put(tmp_path, format, rows, how, name=f"{number}"))
        expected += rows
    for name, data in (("z.csv", b""), ("z.jsonl", b"\xef\xbb\xbf\n \n")):
        (tmp_path / name).write_bytes(data)
        paths.append(tmp_path / name)
    for shard_rows in (1, 4, 10, len(expected), len(expected) + 1):
        plan = plan_of(*paths, shard_rows=shard_rows, id_column="id")
        units = units_of(plan)
        assert [text for unit in units for _, _, text, _ in unit] == expected
        reader = UnitReader(plan)
        for unit in plan.units[::-1]:
            assert read(plan, [unit], reader=reader) == units[unit.number]
        reader.close()


@pytest.mark.parametrize("how", COMPRESSIONS[:3])
@pytest.mark.parametrize("format", FORMATS)
def test_a_unit_that_is_left_in_its_middle_does_not_disturb_the_next(tmp_path, format, how):
    plan = plan_of(put(tmp_path, format, texts(5000), how, group=900), shard_rows=2000)
    units = units_of(plan)
    reader = UnitReader(plan)
    for number in (0, 1, 0, 2, 1, 1):
        next(reader.read(plan.units[number]))
        for other in ((number + 1) % 3, number):
            next(reader.read(plan.units[number]))
            assert read(plan, [plan.units[other]], reader=reader) == units[other]
    reader.close()


@pytest.mark.parametrize("how", COMPRESSIONS)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("worker", [0, 1])
def test_one_of_several_workers_reads_a_file_on(tmp_path, opened, format, how, worker):
    plan = plan_of(put(tmp_path, format, texts(3000), how, group=333), shard_rows=250)
    units = units_of(plan)
    headers = int(format == "csv")
    opened.clear()
    reader = UnitReader(plan)
    for unit in plan.units[worker::2]:
        assert read(plan, [unit], reader=reader) == units[unit.number]
    assert len(opened) == 1 + headers
    first = plan.units[worker]
    assert read(plan, [first], reader=reader) == units[worker]
    # Lines that are behind are found from the beginning, columns where they stand.
    assert len(opened) == 1 + headers + (format in LINES)
    reader.close()


def test_rows_of_a_plain_file_are_read_from_where_they_stand(tmp_path, monkeypatch):
    path = put(tmp_path, "jsonl", texts(60_000))
    plan = plan_of(path, shard_rows=1000)
    sizes = []

    def count(source, size, real=ByteSource.read):
        data = real(source, size)
        sizes.append(len(data))
        return data

    monkeypatch.setattr(ByteSource, "read", count)
    read(plan, [plan.units[-1]])
    assert sum(sizes) < path.stat().st_size / 20


@pytest.mark.parametrize("format", LINES)
def test_a_read_that_failed_can_be_tried_again(tmp_path, monkeypatch, format):
    """What had been read before the failure is not lost."""
    plan = plan_of(put(tmp_path, format, texts(2000)), shard_rows=500)
    units = units_of(plan)
    monkeypatch.setattr(cursor, "_CHUNK_BYTES", 10)  # several reads make a line
    calls = []

    def fail_once(source, size, real=ByteSource.read):
        calls.append(size)
        if len(calls) == 300:
            raise SourceError(source.path, "the network is gone")
        return real(source, size)

    reader = UnitReader(plan)
    assert read(plan, [plan.units[0]], reader=reader) == units[0]
    monkeypatch.setattr(ByteSource, "read", fail_once)
    with pytest.raises(InputError, match=r"from line \d+ on: the network is gone"):
        read(plan, [plan.units[1]], reader=reader)
    assert read(plan, [plan.units[1]], reader=reader) == units[1]
    assert len(calls) > 300
    reader.close()


def test_row_groups_around_a_broken_one_are_read(tmp_path):
    path = put(tmp_path, "parquet", texts(300), group=100)
    plan = plan_of(path, shard_rows=50)
    units = units_of(plan)
    data = bytearray(path.read_bytes())
    about = pq.ParquetFile(path).metadata.row_group(1).column(1)
    data[(about.dictionary_page_offset or about.data_page_offset) + 30] ^= 1
    path.write_bytes(data)
    reader = UnitReader(plan, "skip")
    for number in (0, 2, 2, 1, 3, 4, 3, 5):  # again the same, not what follows from the first
        if number in (2, 3):
            row = 1 + plan.units[number].first_row
            with pytest.raises(InputError, match=f"from row {row} on: can not be decoded"):
                read(plan, [plan.units[number]], reader=reader)
        else:
            assert read(plan, [plan.units[number]], reader=reader) == units[number]
    reader.close()


@pytest.mark.parametrize("kind", ["string", "string_view"])
def test_a_broken_value_of_a_kept_column_alone_is_set_aside(tmp_path, kind):
    """While texts and ids, which come first, are all good."""
    binary = pa.binary_view() if kind == "string_view" else pa.binary()
    kept = pa.array([b"x", b"\xff", None], binary).view(getattr(pa, kind)())
    batch = pa.record_batch({"text": ["a", "b", "c"], "id": ["1", "2", "3"], "k": kept})
    with ipc.new_file(tmp_path / "a.arrow", batch.schema) as writer:
        writer.write_batch(batch)
    plan = plan_of(tmp_path / "a.arrow", id_column="id", keep=["k"])
    (block,) = UnitReader(plan, "null").read(plan.units[0])
    assert block.texts == ["a", None, "c"]
    assert block.columns.column("k").to_pylist() == ["x", None, None]
    assert block.rejects[1].id == "2"
    with pytest.raises(InputError, match=r"row 2: column 'k' is not valid UTF-8"):
        read(plan)


@pytest.mark.parametrize("format", ["arrow", "stream"])
@pytest.mark.parametrize("column", ["text", "id", "more"])
def test_values_of_arrow_that_lie_outside_their_file_stop_the_job(tmp_path, format, column):
    """There is no checksum, and to read them would be to read other memory."""
    count = 30
    numbers = np.arange(count + 1, dtype=np.int32)
    numbers[20] = 2**30
    strings = pa.StringArray.from_buffers(
        count, pa.py_buffer(numbers.tobytes()), pa.py_buffer(b"x" * count)
    )
    good = pa.array(["y"] * count)
    table = {name: strings if name == column else good for name in ("text", "id", "more")}
    batch = pa.record_batch(table)
    path = tmp_path / f"a.{'ipc' if format == 'stream' else format}"
    with (ipc.new_stream if format == "stream" else ipc.new_file)(path, batch.schema) as writer:
        writer.write_batch(pa.record_batch(dict.fromkeys(table, good)))
        writer.write_batch(batch)
    plan = plan_of(path, shard_rows=10, id_column="id", keep=["more"])
    assert len(read(plan, plan.units[:3])) == count
    for unit in plan.units[3:]:
        row = unit.first_row + 1
        with pytest.raises(InputError, match=f"from row {row} on: can not be decoded"):
            read(plan, [unit], "skip")


@pytest.mark.parametrize("kind", ["string", "large_string", "string_view", "dictionary"])
@pytest.mark.parametrize("format", ["parquet", "arrow", "stream"])
def test_string_columns_of_every_kind_are_texts_and_ids_and_kept(tmp_path, format, kind):
    values = pa.array([f"é {row % 70}" for row in range(250)], pa.large_string())
    values = values.dictionary_encode() if kind == "dictionary" else values
    if kind != "dictionary":
        values = values.cast(pa.string()).cast(getattr(pa, kind)())
    table = pa.table({"text": values, "id": values, "k": values})
    path = tmp_path / f"a.{'ipc' if format == 'stream' else format}"
    if format == "parquet":
        pq.write_table(table, path, row_group_size=100)
    else:
        make = ipc.new_stream if format == "stream" else ipc.new_file
        with make(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=100)
    plan = plan_of(path, shard_rows=130, id_column="id", keep=["k"])
    if kind != "dictionary":  # of one Parquet keeps no more than that it is one
        assert plan.schema.types == [pa.large_string() if "large" in kind else pa.string()] * 2
    reader = UnitReader(plan)
    for unit in plan.units[::-1]:
        for block in reader.read(unit):
            expected = values.to_pylist()[block.first_row : block.first_row + len(block)]
            assert block.texts == expected
            assert block.columns.to_pydict() == {"id": expected, "k": expected}
    reader.close()


@pytest.mark.parametrize("format", FORMATS)
def test_blocks_of_long_texts_are_small(tmp_path, format):
    long = [chr(97 + row) * 1_000_000 for row in range(24)]
    plan = plan_of(put(tmp_path, format, long, group=24), shard_rows=24)
    reader = UnitReader(plan)
    sizes = [sum(map(len, block.texts)) for block in reader.read(plan.units[0])]
    reader.close()
    assert sum(sizes) == 24_000_000
    assert max(sizes) <= 5_000_000  # four MiB, or a chunk of one and what a line has more
