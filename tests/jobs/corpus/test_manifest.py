"""The manifest: what it records lasts, and what is damaged is not believed, but nothing else."""

from __future__ import annotations

import errno
import json
import os
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_shards import write_job, write_unit

from c2v_engine.errors import OutputError
from c2v_engine.jobs.corpus.folder import manifest as manifest_module
from c2v_engine.jobs.corpus.folder.manifest import Manifest
from c2v_engine.jobs.corpus.folder.recovery import check, recover, remove_temporaries
from c2v_engine.jobs.corpus.folder.shards import temporary_name
from c2v_engine.jobs.corpus.records import Reject, ShardFile, UnitDone


def made_record(unit, rejects=0):
    files = (ShardFile(f"part-{unit:06d}.parquet", 10 + unit, f"{unit:064x}"),)
    bad = tuple(
        Reject(unit * 10 + i, i if i % 2 else f"a\ud800{i}\n", "in, row 1", "no\ntext")
        for i in range(rejects)
    )
    return UnitDone(unit, unit * 10, 10, 10 - rejects, files, bad, tokens=7, seconds=1.25)


def made_manifest(folder, count=5, rejects=0):
    manifest = Manifest.open(folder)
    records = [made_record(unit, rejects) for unit in range(count)]
    for record in records:
        manifest.append(record)
    manifest.close()
    return records


def edit(folder, change):
    """Change the lines of a manifest."""
    path = folder / "manifest.jsonl"
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))


def test_what_is_appended_is_there_when_it_is_opened_again(tmp_path):
    records = made_manifest(tmp_path, rejects=3)
    manifest = Manifest.open(tmp_path)
    assert manifest.notes == []
    assert set(manifest.done) == {0, 1, 2, 3, 4}
    assert list(manifest.records()) == records
    assert manifest.record(3) == records[3]
    rejects = list(manifest.iter_rejects())
    assert rejects == [reject for record in records for reject in record.rejects]
    totals = manifest.totals
    assert (totals.rows, totals.written, totals.rejects, totals.tokens) == (50, 35, 15, 35)
    assert totals.size == 60
    manifest.append(made_record(9))
    assert list(manifest.done) == [0, 1, 2, 3, 4, 9]
    assert Manifest.open(tmp_path).notes == []


def test_each_record_is_a_line_of_json(tmp_path):
    made_manifest(tmp_path)
    lines = (tmp_path / "manifest.jsonl").read_text().splitlines()
    assert [json.loads(line)["first_row"] for line in lines] == [0, 10, 20, 30, 40]


def test_units_are_given_in_order_however_they_were_finished(tmp_path):
    manifest = Manifest.open(tmp_path)
    for unit in (3, 0, 2):
        manifest.append(made_record(unit))
    assert [record.unit for record in manifest.records()] == [0, 2, 3]


@pytest.mark.parametrize("left", [1, 100, -1])
def test_a_torn_line_is_dropped_with_a_note(tmp_path, left):
    records = made_manifest(tmp_path)
    path = tmp_path / "manifest.jsonl"
    edit(tmp_path, lambda lines: [*lines[:-1], lines[-1][:left]])
    manifest = Manifest.open(tmp_path)
    assert list(manifest.records()) == records[:4]
    assert manifest.notes == [
        f"{path}, line 5: is cut off, as a power cut leaves it: dropped, its unit is done again"
    ]
    manifest.append(records[4])
    again = Manifest.open(tmp_path)
    assert list(again.records()) == records
    assert again.notes == []


@pytest.mark.parametrize("line", [0, 2, 4])
@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace(b'"written":10', b'"written":11'),
        lambda text: text.replace(b"part-", b"pact-"),
        lambda text: b"\n",
        lambda text: b"{}\n",
        lambda text: text.replace(b'"unit"', b'"unit" '),
    ],
)
def test_an_edited_line_alone_is_not_believed(tmp_path, line, change):
    records = made_manifest(tmp_path)
    edit(tmp_path, lambda lines: [*lines[:line], change(lines[line]), *lines[line + 1 :]])
    manifest = Manifest.open(tmp_path)
    assert list(manifest.records()) == [one for one in records if one.unit != line]
    assert len(manifest.notes) == 1
    assert f"line {line + 1}: does not fit its checksum: not believed" in manifest.notes[0]
    manifest.append(records[line])
    again = Manifest.open(tmp_path)
    assert list(again.records()) == records
    assert again.notes == []


def test_missing_and_moved_lines_are_noted(tmp_path):
    records = made_manifest(tmp_path)
    edit(tmp_path, lambda lines: [lines[0], lines[3], lines[2], lines[4], lines[3]])
    manifest = Manifest.open(tmp_path)
    assert list(manifest.records()) == [records[unit] for unit in (0, 2, 3, 4)]
    assert sum("does not follow the line before it" in note for note in manifest.notes) == 4
    assert any("records unit 3 a second time" in note for note in manifest.notes)
    assert Manifest.open(tmp_path).notes == []


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_damage_makes_it_say_what_was_not_written(tmp_path_factory, data):
    """Bytes changed, lost or doubled anywhere: what is believed is what was recorded."""
    folder = tmp_path_factory.mktemp("damaged")
    records = made_manifest(folder, rejects=1)
    path = folder / "manifest.jsonl"
    text = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        first = data.draw(st.integers(0, len(text) - 1))
        after = min(len(text), first + data.draw(st.integers(0, 400)))
        text[first:after] = data.draw(st.sampled_from([b"", b"\n", b"7", text[first:after] * 2]))
        text = text or bytearray(b"\n")
    path.write_bytes(text)
    manifest = Manifest.open(folder)
    kept = list(manifest.records())
    assert all(record in records for record in kept)
    assert manifest.totals.rows == 10 * len(kept)
    again = Manifest.open(folder)
    assert again.notes == []
    assert list(again.records()) == kept


def test_an_empty_manifest_has_nothing_done(tmp_path):
    assert not Manifest.open(tmp_path).done
    assert os.listdir(tmp_path) == []
    (tmp_path / "manifest.jsonl").touch()
    manifest = Manifest.open(tmp_path)
    manifest.append(made_record(0))
    assert list(Manifest.open(tmp_path).done) == [0]


def test_a_full_disk_records_nothing_and_spoils_nothing(tmp_path, monkeypatch):
    records = made_manifest(tmp_path, 2)
    manifest = Manifest.open(tmp_path)
    real = os.write

    def write(descriptor, data):
        if len(data) <= 100:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, data[:-100])

    monkeypatch.setattr(manifest_module.os, "write", write)
    with pytest.raises(OutputError, match=r"manifest.jsonl: .*No space left on device \(unit 2\)"):
        manifest.append(made_record(2))
    monkeypatch.undo()
    again = Manifest.open(tmp_path)
    assert again.notes == []
    assert list(again.records()) == records


def test_a_manifest_that_changes_under_a_job_is_refused(tmp_path):
    made_manifest(tmp_path)
    manifest = Manifest.open(tmp_path)
    edit(tmp_path, lambda lines: lines[:1])
    with pytest.raises(OutputError, match="has changed since"):
        manifest.record(3)


@pytest.mark.parametrize("format", ["parquet", "npy"])
def test_recovery_keeps_what_is_whole_and_removes_what_is_not_recorded(tmp_path, format):
    records = write_job(tmp_path, units=3, rows=100, format=format)
    write_unit(tmp_path, 3, range(60, 80), format=format)  # stopped before it was recorded
    for name in (temporary_name(records[0].files[0].name), temporary_name("job.json")):
        (tmp_path / name).write_bytes(b"half")
    for name in ("notes.txt", "part-x.parquet", ".part-000001.tmp"):
        (tmp_path / name).write_bytes(b"theirs")
    (tmp_path / "part-000009.parquet").mkdir()
    manifest = Manifest.open(tmp_path)
    seen = []
    assert recover(tmp_path, manifest, seen.append) == []
    assert seen == [1, 2, 3]
    assert list(manifest.records()) == records
    names = {file.name for record in records for file in record.files}
    names |= {"notes.txt", "part-x.parquet", ".part-000001.tmp", "part-000009.parquet"}
    assert set(os.listdir(tmp_path)) == names | {"job.json", "manifest.jsonl"}


def damage(path, how):
    data = path.read_bytes()
    if how == "is gone":
        path.unlink()
    elif how == "bytes are not those":
        path.write_bytes(data[:50] + bytes([data[50] ^ 1]) + data[51:])
    else:
        path.write_bytes(data[:-10])


@pytest.mark.parametrize("how", ["is gone", "bytes are not those", "bytes, .* were written"])
@pytest.mark.parametrize("which", [0, 1])
def test_damaged_shards_are_done_again(tmp_path, how, which):
    records = write_job(tmp_path, format="safetensors")
    damage(tmp_path / records[1].files[which].name, how)
    assert check(tmp_path, records[0]) is None
    manifest = Manifest.open(tmp_path)
    (note,) = recover(tmp_path, manifest)
    assert records[1].files[which].name in note
    assert "unit 1 is done again" in note
    assert re.search(how, note)
    assert list(manifest.done) == [0, 2]
    assert not any(name.startswith("part-000001") for name in os.listdir(tmp_path))
    manifest.append(write_unit(tmp_path, 1, range(20, 40), format="safetensors"))
    again = Manifest.open(tmp_path)
    assert list(again.records()) == records
    assert recover(tmp_path, again) == []


def test_many_units_are_recovered_in_order(tmp_path):
    records = write_job(tmp_path, rows=150, size=1)
    (tmp_path / records[140].files[0].name).unlink()
    manifest = Manifest.open(tmp_path)
    assert len(recover(tmp_path, manifest)) == 1
    assert list(manifest.records()) == [*records[:140], *records[141:]]
    assert manifest.totals.rows == 149


def test_temporary_files_alone_are_removed_at_the_end(tmp_path):
    write_unit(tmp_path, 0, range(10))
    (tmp_path / temporary_name("part-000000.parquet")).write_bytes(b"half")
    remove_temporaries(tmp_path)
    assert os.listdir(tmp_path) == ["part-000000.parquet"]
