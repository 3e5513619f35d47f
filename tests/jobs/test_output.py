"""Output files: whole or not at all, and never in place of a good file by accident."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from c2v_engine.errors import OutputError
from c2v_engine.jobs.output import AtomicFile
from c2v_engine.jobs.writers import check_output, id_batch, open_writer


def write(path, blocks, ids=None, *, dtype=np.float32, id_type=None, metadata=None):
    target = AtomicFile(path)
    precision = np.dtype(dtype).name
    writer = open_writer(target, 5, precision, id_type or pa.int64(), metadata or {})
    for index, block in enumerate(blocks):
        keys = ids[index] if ids else list(range(len(block)))
        writer.write(id_batch(keys, id_type or pa.int64()), block)
    writer.finish()
    return target.commit()


def blocks(dtype, *sizes):
    generator = np.random.default_rng(0)
    return [generator.integers(0, 100, (size, 5)).astype(dtype) for size in sizes]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8, np.uint8])
def test_npy_holds_the_blocks_in_order(tmp_path, dtype):
    path = tmp_path / "a.npy"
    data = blocks(dtype, 3, 0, 1, 7)
    size = write(path, data, dtype=dtype)
    loaded = np.load(path, mmap_mode="r")
    assert loaded.dtype == dtype
    np.testing.assert_array_equal(loaded, np.concatenate(data))
    assert path.stat().st_size == size
    assert os.listdir(tmp_path) == ["a.npy"]


def test_npy_takes_blocks_that_are_not_contiguous(tmp_path):
    block = np.arange(40, dtype=np.float32).reshape(4, 10)[:, ::2]
    write(tmp_path / "a.npy", [block])
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), block)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8, np.uint8])
@pytest.mark.parametrize("kind", [pa.int64(), pa.uint8(), pa.string(), pa.large_string()], ids=str)
def test_parquet_holds_ids_and_fixed_size_lists(tmp_path, monkeypatch, dtype, kind):
    monkeypatch.setattr("c2v_engine.jobs.writers.base.GROUP_ROWS", 4)
    path = tmp_path / "a.parquet"
    data = blocks(dtype, 3, 0, 1, 7)
    keys = [[f"{i}-{j}" for j in range(len(block))] for i, block in enumerate(data)]
    if pa.types.is_integer(kind):
        keys = [[10 * i + j for j in range(len(block))] for i, block in enumerate(data)]
    write(path, data, keys, dtype=dtype, id_type=kind, metadata={"model": "m"})
    table = pq.read_table(path)
    assert table.schema.field("id").type == kind
    assert table.schema.field("embedding").type == pa.list_(pa.from_numpy_dtype(dtype), 5)
    assert table["id"].to_pylist() == list(chain.from_iterable(keys))
    found = table["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, 5)
    np.testing.assert_array_equal(found, np.concatenate(data))
    file = pq.ParquetFile(path)
    assert [file.metadata.row_group(i).num_rows for i in range(3)] == [4, 4, 3]
    assert file.metadata.metadata[b"c2v"] == b'{"model": "m"}'


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("a.csv", {}, "unknown extension '.csv'; known are .npy, .parquet"),
        ("a", {}, "no extension"),
        ("a.npy", {"ids": True}, "a .npy file holds no ids"),
        ("a.npy", {"precision": "bfloat16"}, "write float16 or float32"),
        ("a.parquet", {"precision": "bfloat16"}, "write float16 or float32"),
    ],
)
def test_formats_that_can_not_hold_the_output_are_refused(name, options, reason):
    with pytest.raises(OutputError, match=f"^{name}: ") as caught:
        check_output(name, **{"ids": False, "precision": "float32", **options})
    assert reason in str(caught.value)


def test_existing_file_is_only_replaced_on_commit_and_on_demand(tmp_path):
    path = tmp_path / "a.npy"
    path.write_text("old")
    with pytest.raises(OutputError, match="exists already"):
        AtomicFile(path)
    target = AtomicFile(path, overwrite=True)
    target.file.write(b"new")
    assert path.read_text() == "old"
    target.commit()
    assert path.read_text() == "new"
    assert target.abandon() is False
    assert os.listdir(tmp_path) == ["a.npy"]


def test_abandoned_file_leaves_nothing(tmp_path):
    target = AtomicFile(tmp_path / "a.npy")
    target.file.write(b"half")
    assert len(os.listdir(tmp_path)) == 1
    assert target.abandon() is True
    assert os.listdir(tmp_path) == []


def test_file_that_appears_meanwhile_is_kept(tmp_path):
    target = AtomicFile(tmp_path / "a.npy")
    target.file.write(b"mine")
    (tmp_path / "a.npy").write_text("theirs")
    with pytest.raises(OutputError, match="exists already"):
        target.commit()
    assert (tmp_path / "a.npy").read_text() == "theirs"
    assert os.listdir(tmp_path) == ["a.npy"]


def test_symbolic_link_keeps_pointing_at_the_replaced_file(tmp_path):
    real, link = tmp_path / "real.npy", tmp_path / "link.npy"
    real.write_text("old")
    link.symlink_to(real)
    target = AtomicFile(link, overwrite=True)
    target.file.write(b"new")
    target.commit()
    assert link.is_symlink()
    assert real.read_text() == "new"


def test_places_that_can_not_hold_a_file_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.npy").mkdir()
    os.mkfifo(tmp_path / "pipe.npy")
    for place, reason in [
        ("none/a.npy", "the folder .*none does not exist"),
        ("file/a.npy", "can not be written: Not a directory"),
        ("folder.npy", "is a folder"),
        ("pipe.npy", "not a regular file"),
        ("x" * 300 + ".npy", "File name too long"),
    ]:
        with pytest.raises(OutputError, match=reason):
            AtomicFile(tmp_path / place, overwrite=True)


def test_folder_without_permission_is_refused(tmp_path):
    tmp_path.chmod(0o555)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        with pytest.raises(OutputError, match="can not be written: Permission denied"):
            AtomicFile(tmp_path / "a.npy")
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("name", ["a.npy", "a.parquet"])
def test_disk_that_fills_up_at_the_sync_leaves_the_old_file(tmp_path, monkeypatch, name):
    path = tmp_path / name
    path.write_text("old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    target = AtomicFile(path, overwrite=True)
    writer = open_writer(target, 5, "float32", pa.int64(), {})
    writer.write(id_batch([0, 1, 2], pa.int64()), blocks(np.float32, 3)[0])
    writer.finish()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="can not be written: No space left on device"):
        target.commit()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("name", ["a.npy", "a.parquet"])
def test_file_size_limit_gives_one_line_and_keeps_the_old_file(tmp_path, name):
    (tmp_path / name).write_text("old")
    source = tmp_path / "in.txt"
    source.write_text("".join(f"text {i}\n" for i in range(200_000)))
    script = textwrap.dedent(
        f"""
        import resource, sys
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        from fake_engine import FakeEngine
        from c2v_engine.errors import OutputError
        from c2v_engine.jobs.encode import EncodeJob
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
        try:
            with EncodeJob({str(source)!r}, {str(tmp_path / name)!r}, overwrite=True) as job:
                job.run(FakeEngine())
        except OutputError as error:
            print(error)
        """
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr == ""
    assert f"{name}: can not be written: File too large (at row " in done.stdout
    assert done.stdout.count("\n") == 1
    assert (tmp_path / name).read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == sorted([name, "in.txt"])
