"""``verify_job``: a good folder passes, and each thing that can be wrong is named."""

from __future__ import annotations

import json
import os
import re

import numpy as np
import pyarrow as pa
import pytest
from made_shards import DIMENSION, columns, vectors, write_job, write_unit

from c2v_engine.jobs.corpus.folder.identity import claim
from c2v_engine.jobs.corpus.folder.manifest import Manifest
from c2v_engine.jobs.corpus.folder.shards import FORMATS, commit_shard, open_shard, temporary_name
from c2v_engine.jobs.corpus.folder.verify import verify_job
from c2v_engine.jobs.corpus.records import Reject, UnitDone
from c2v_engine.jobs.corpus.source.inputs import find_inputs
from c2v_engine.jobs.corpus.source.plan import make_plan


def state(folder):
    return {name: (folder / name).read_bytes() for name in os.listdir(folder)}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("on_error", ["fail", "skip", "null"])
def test_a_finished_job_is_good_and_is_not_touched(tmp_path, format, on_error):
    bad = () if on_error == "fail" else (0, 19, 21, 49)
    records = write_job(tmp_path, format=format, bad=bad, on_error=on_error)
    before = state(tmp_path)
    seen = []
    found = verify_job(tmp_path, report=seen.append)
    assert found.problems == []
    assert found.good
    assert (found.rows, found.units, found.checked) == (50, 3, 3)
    assert (found.totals.rows, found.totals.rejects) == (50, len(bad))
    assert found.totals.written == sum(record.written for record in records)
    assert seen == [1, 2, 3]
    assert state(tmp_path) == before


def test_a_folder_without_a_job_is_named(tmp_path):
    found = verify_job(tmp_path / "none")
    assert not found.good
    assert "holds no job" in found.problems[0]


def spoil(folder, change):
    """Write a job, change it, and give the problems that are found."""
    records = write_job(folder, rows=100, size=20)
    before = verify_job(folder)
    assert before.good
    change(folder, records)
    found = verify_job(folder)
    assert len(found.problems) == 1
    return found.problems[0]


def cut(path):
    path.write_bytes(path.read_bytes()[:-5])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def lose_lines(folder, *numbers):
    path = folder / "manifest.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(line for n, line in enumerate(lines) if n not in numbers))
    for number in numbers:
        (folder / f"part-{number:06d}.parquet").unlink()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda f, r: cut(f / r[1].files[0].name), r"unit 1: .*part-000001.parquet: is .* bytes"),
        (lambda f, r: flip(f / r[1].files[0].name), "unit 1: .*its bytes are not those"),
        (lambda f, r: (f / r[4].files[0].name).unlink(), "unit 4: .*is gone"),
        (lambda f, r: lose_lines(f, 3, 4), r"2 of 5 units are missing \(3-4\)"),
        (
            lambda f, r: write_unit(f, 7, range(10)),
            r"part-000007.parquet: is not recorded",
        ),
        (
            lambda f, r: (f / "job.json").write_text((f / "job.json").read_text() + "x"),
            "job.json: is damaged",
        ),
        (
            lambda f, r: (f / "rejected.jsonl").write_text("{}\n"),
            "rejected.jsonl: has 1 rows, 0 were rejected",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path, change, reason):
    problem = spoil(tmp_path, change)
    assert re.search(reason, problem)


def test_an_edited_manifest_is_named(tmp_path):
    write_job(tmp_path)
    path = tmp_path / "manifest.jsonl"
    path.write_text(path.read_text().replace('"written":10', '"written":11'))
    problems = verify_job(tmp_path).problems
    assert "line 3: does not fit its checksum" in problems[0]
    assert "1 of 3 units are missing (2)" in problems[1]


def test_a_plan_that_is_another_or_damaged_is_told(tmp_path):
    write_job(tmp_path)
    source = tmp_path / "source.txt"
    source.write_text("a\nb\n")
    plan = tmp_path / "plan.json.zst"
    make_plan(find_inputs([str(source)]), shard_rows=20).save(plan)
    source.unlink()
    (problem,) = verify_job(tmp_path).problems
    assert problem == f"{plan}: is not the plan that the job began with"
    plan.write_bytes(plan.read_bytes()[:-3])
    (problem,) = verify_job(tmp_path).problems
    assert "is damaged" in problem


def test_what_a_stopped_job_left_is_noted(tmp_path):
    write_job(tmp_path)
    (tmp_path / temporary_name("part-000001.parquet")).touch()
    (tmp_path / "notes.txt").touch()
    found = verify_job(tmp_path)
    assert found.good
    assert len(found.notes) == 2
    assert "is not whole" in found.notes[0]
    assert "1 other files: notes.txt" in found.notes[1]


def lying(folder, *, id_column="id", on_error="fail", ids=None, valid=None, **changes):
    """A job of one unit whose record, or whose shard, says what is not so; its problems."""
    about = {"rows": 20, "shard_rows": 20, "format": "parquet", "precision": "float32"}
    about |= {"dimension": DIMENSION, "on_error": on_error, "id_column": id_column}
    claim(folder, {**about, **changes.pop("job", {})}, {})
    batch = columns(range(20))
    if ids is not None:
        batch = pa.record_batch({"id": pa.array(ids)})
    shard = open_shard(
        folder, 0, "parquet", batch.schema, DIMENSION, "float32", {}, nulls=valid is not None
    )
    shard.write(batch, vectors(range(20 if valid is None else valid.sum())), valid)
    files = shard.finish()
    commit_shard(folder, files)
    record = {"unit": 0, "first_row": 0, "rows": 20, "written": 20}
    record["files"] = tuple(file for _, file in files)
    manifest = Manifest.open(folder)
    manifest.append(UnitDone(**{**record, **changes}))
    manifest.close()
    return verify_job(folder).problems


def reject(*rows):
    return tuple(Reject(row, None, "in", "bad") for row in rows)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"first_row": 1}, "holds rows 1-20 of the input, expected 0-19"),
        ({"rows": 19}, "holds rows 0-18 of the input, expected 0-19"),
        ({"written": 19}, "records 19 written rows, expected 20"),
        ({"on_error": "skip", "rejects": reject(3)}, "records 20 written rows, expected 19"),
        ({"on_error": "null", "rejects": reject(3, 3)}, "its rejected rows are not rows of its"),
        ({"on_error": "null", "rejects": reject(20)}, "its rejected rows are not rows of its"),
        (
            {"on_error": "skip", "rejects": reject(3), "written": 19},
            "holds 20 rows, 19 were written",
        ),
        ({"job": {"dimension": 7}}, "embeddings of 6 float32, expected 7 float32"),
        ({"job": {"precision": "int8"}}, "embeddings of 6 float32, expected 6 int8"),
        ({"id_column": None, "ids": [*range(19), 18]}, "its ids are not the numbers"),
        (
            {
                "on_error": "null",
                "rejects": reject(3),
                "valid": np.arange(20) != 4,
            },
            "the rows without an embedding are not those",
        ),
    ],
)
def test_records_that_do_not_fit_are_named(tmp_path, how, reason):
    (problem,) = lying(tmp_path, **how)
    assert problem.startswith("unit 0: ")
    assert reason in problem


def test_row_numbers_fit_where_rows_were_skipped(tmp_path):
    kept = [row for row in range(22) if row not in (3, 7)]
    job = {"rows": 22, "shard_rows": 22}
    how = {"on_error": "skip", "rejects": reject(3, 7), "rows": 22, "ids": kept, "job": job}
    assert lying(tmp_path, id_column=None, **how) == []
    assert json.loads((tmp_path / "job.json").read_text())["job"]["rows"] == 22
