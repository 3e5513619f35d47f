"""The encode job: every row, in order, with its id, or one clear reason and nothing written."""

from __future__ import annotations

import json
import os
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_engine import DIMENSION, FakeEngine, vectors

from c2v_engine.errors import InputError, OutputError
from c2v_engine.jobs.calibrate import calibrate_file
from c2v_engine.jobs.duplicates import DuplicateCounter
from c2v_engine.jobs.encode import EncodeJob, EncodeOptions
from c2v_engine.jobs.progress import Progress
from c2v_engine.jobs.readers import open_reader


def put(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text, newline="")
    return path


def encode(source, output, engine=None, progress=None, **options):
    with EncodeJob(source, output, **options) as job:
        return job.run(engine or FakeEngine(), progress)


def jsonl(tmp_path, rows):
    return put(tmp_path, "in.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def embeddings(table):
    return table["embedding"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)


def test_100_000_lines_keep_their_order_and_ids(tmp_path):
    texts = [f"text {i} {'word ' * (i % 7)}" for i in range(100_000)]
    rows = [{"key": f"k{i}", "text": text} for i, text in enumerate(texts)]
    engine = FakeEngine()
    engine.window = 777
    report = encode(jsonl(tmp_path, rows), tmp_path / "o.parquet", engine, id_column="key")
    table = pq.read_table(tmp_path / "o.parquet")
    assert table["id"].to_pylist() == [row["key"] for row in rows]
    np.testing.assert_array_equal(embeddings(table), vectors(texts))
    assert report.rows == 100_000
    assert report.duplicates == 0
    assert report.dimension == DIMENSION
    assert report.tokens == sum(len(text.split()) + 2 for text in texts)
    assert report.size == (tmp_path / "o.parquet").stat().st_size
    assert report.seconds > 0


def test_npy_output_is_one_array(tmp_path):
    source = put(tmp_path, "in.txt", "one\n\nthree\n")
    encode(source, tmp_path / "o.npy", options=EncodeOptions(precision="int8", truncate_dim=3))
    found = np.load(tmp_path / "o.npy")
    np.testing.assert_array_equal(found, vectors(["one", "", "three"], np.int8)[:, :3])


def test_row_numbers_from_zero_are_the_ids_by_default(tmp_path):
    source = put(tmp_path, "in.csv", "text\none\ntwo\n")
    encode(source, tmp_path / "o.parquet")
    ids = pq.read_table(tmp_path / "o.parquet")["id"]
    assert ids.type == pa.int64()
    assert ids.to_pylist() == [0, 1]


def test_parquet_metadata_says_how_it_was_made(tmp_path):
    source = put(tmp_path, "in.txt", "one\n")
    options = EncodeOptions(prompt_name="query", precision="float16", truncate_dim=4)
    encode(source, tmp_path / "o.parquet", options=options)
    stored = json.loads(pq.read_schema(tmp_path / "o.parquet").metadata[b"c2v"])
    assert stored["model"] == "fake"
    assert stored["normalize"] is True
    assert stored["prompt_name"] == "query"
    assert stored["precision"] == "float16"
    assert stored["dimension"] == 4


def test_repeated_ids_are_allowed_and_counted(tmp_path):
    rows = [{"text": "x", "key": key} for key in ["a", "b", "a", 1, "1", "a"]]
    report = encode(jsonl(tmp_path, rows), tmp_path / "o.parquet", id_column="key")
    assert report.duplicates == 3
    assert pq.read_table(tmp_path / "o.parquet")["id"].to_pylist() == ["a", "b", "a", "1", "1", "a"]


def test_integer_ids_that_hash_alike_are_not_duplicates():
    counter = DuplicateCounter()
    assert counter.count() == 0
    counter.add([-1, -2, 2**61 - 1, 0, 2**63])
    assert counter.count() == 0


@pytest.mark.parametrize("name", ["in.txt", "in.csv", "in.jsonl"])
def test_file_without_rows_is_refused_before_anything_is_written(tmp_path, name):
    source = put(tmp_path, name, "text\n" if name == "in.csv" else "")
    with pytest.raises(InputError, match=f"{name}: no rows"):
        encode(source, tmp_path / "o.npy")
    assert os.listdir(tmp_path) == [name]


def test_parquet_without_rows_is_refused(tmp_path):
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "in.parquet")
    with pytest.raises(InputError, match=r"in\.parquet: no rows"):
        encode(tmp_path / "in.parquet", tmp_path / "o.npy")


def test_bad_row_far_down_keeps_the_old_output(tmp_path):
    source = put(tmp_path, "in.jsonl", '{"text": "x"}\n' * 5000 + '{"text": null}\n')
    for name in ("o.npy", "o.parquet"):
        put(tmp_path, name, "old")
        with pytest.raises(InputError, match="line 5001: column 'text' is null"):
            encode(source, tmp_path / name, overwrite=True)
        assert (tmp_path / name).read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["in.jsonl", "o.npy", "o.parquet"]


def test_text_the_engine_refuses_is_named_by_file_and_line(tmp_path):
    body = '"two\nlines"\n' * 1500
    source = put(tmp_path, "in.csv", "text\n" + body + "refused\n" + body)
    with pytest.raises(InputError, match=r"row 1501 \(line 3002\): its embedding is not finite"):
        encode(source, tmp_path / "o.npy")
    pq.write_table(pa.table({"text": ["x"] * 10 + ["refused"]}), tmp_path / "in.parquet")
    with pytest.raises(InputError, match=r"in\.parquet, row 11: its embedding is not finite"):
        encode(tmp_path / "in.parquet", tmp_path / "o.npy")
    assert sorted(os.listdir(tmp_path)) == ["in.csv", "in.parquet"]


def test_input_can_not_be_the_output(tmp_path):
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "in.parquet")
    (tmp_path / "link.parquet").symlink_to(tmp_path / "in.parquet")
    before = (tmp_path / "in.parquet").read_bytes()
    for output in ("in.parquet", "link.parquet"):
        with pytest.raises(OutputError, match="is the input itself"):
            encode(tmp_path / "in.parquet", tmp_path / output, overwrite=True)
    assert (tmp_path / "in.parquet").read_bytes() == before


@pytest.mark.parametrize("closed", ["file", "folder"])
def test_input_without_permission_is_refused(closed):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = put(folder, "in.txt", "x\n")
        folder.chmod(0o755 if closed == "file" else 0)
        source.chmod(0)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            with pytest.raises(InputError, match=r"in\.txt: can not be opened: Permission denied"):
                open_reader(source)
        finally:
            os.seteuid(user)
            folder.chmod(0o700)


def test_engine_that_loses_rows_is_caught(tmp_path):
    class Forgetful(FakeEngine):
        def encode_stream(self, texts, **options):
            for block in super().encode_stream(texts, **options):
                yield block[:-1]

    source = put(tmp_path, "in.txt", "one\ntwo\n")
    with pytest.raises(RuntimeError, match="took 2 texts and gave 1 rows"):
        encode(source, tmp_path / "o.npy", Forgetful())
    assert os.listdir(tmp_path) == ["in.txt"]


def test_memory_does_not_grow_with_the_corpus(tmp_path):
    def peak(rows):
        source = put(tmp_path, "in.txt", "".join(f"short line {i}\n" for i in range(rows)))
        tracemalloc.start()
        try:
            encode(source, tmp_path / "o.npy", overwrite=True)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    small = peak(4_000)
    assert peak(40_000) < small + 500_000  # the longer corpus alone would be 3 MB of strings


def test_progress_sees_texts_tokens_and_a_growing_fraction(tmp_path):
    seen = []

    class Watch(Progress):
        def update(self, now):
            seen.append(now)

    source = put(tmp_path, "in.txt", "some words here\n" * 20_000)
    engine = FakeEngine()
    engine.delay = 0.05
    encode(source, tmp_path / "o.npy", engine, Watch())
    assert len(seen) >= 2
    assert [now.rows for now in seen] == sorted(now.rows for now in seen)
    fractions = [now.fraction for now in seen]
    assert fractions == sorted(fractions)
    assert 0 < fractions[0] < 1
    assert (seen[-1].rows, seen[-1].tokens, fractions[-1]) == (20_000, 20_000 * 5, 1.0)


def test_calibration_reads_at_most_max_texts(tmp_path):
    texts = [f"text {i}" for i in range(100)]
    source = put(tmp_path, "in.txt", "\n".join(texts))
    count, ranges = calibrate_file(FakeEngine(), source, max_texts=30)
    assert count == 30
    values = vectors(texts[:30])
    np.testing.assert_array_equal(ranges, [values.min(axis=0), values.max(axis=0)])


def test_calibration_names_file_and_line_of_a_refused_text(tmp_path):
    source = put(tmp_path, "in.txt", "one\nrefused\n")
    with pytest.raises(InputError, match=r"in\.txt, line 2: its embedding is not finite"):
        calibrate_file(FakeEngine(), source)
