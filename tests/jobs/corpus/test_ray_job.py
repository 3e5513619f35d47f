"""A job on Ray is the job of one process: the same files, whoever dies."""

from __future__ import annotations

import json
import re
from dataclasses import asdict

import pytest
from checkpoints import Recipe
from ray_units import MortalSpec

from c2v_engine.jobs.corpus.folder.verify import verify_job
from c2v_engine.jobs.corpus.job import CorpusJob, CorpusOptions
from c2v_engine.jobs.corpus.work.ray_fleet import RayFleet
from c2v_engine.opener import EngineSpec

ROWS = 400
OPTIONS = CorpusOptions(
    id_column="id", keep=("n",), shard_rows=16, on_error="skip", deterministic=True
)
KEPT = ("part-", "rejected")


@pytest.fixture(scope="module")
def ray():
    ray = pytest.importorskip("ray")
    from ray_cluster import local_ray

    with local_ray(cpus=2):
        yield ray


@pytest.fixture(scope="module")
def spec(checkpoint):
    return EngineSpec(str(checkpoint(Recipe())), "cpu", "float32", deterministic=True)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "corpus.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for row in range(ROWS):
            text = None if row % 41 == 7 else f"row {row} " + "of a corpus " * (row % 5)
            file.write(json.dumps({"id": f"r{row}", "text": text, "n": row}) + "\n")
    return path


def run(source, folder, engine):
    notes = []
    with CorpusJob([str(source)], folder, OPTIONS, note=notes.append) as job:
        summary = job.run(engine)
    assert not verify_job(folder).problems
    return summary, notes


def contents(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.name.startswith(KEPT)}


class StopError(Exception):
    """Ends a start of a job."""


class StoppingJob(CorpusJob):
    """Stops after five units."""

    def _commit(self, finished):
        super()._commit(finished)
        if finished.done.unit == 4:
            raise StopError


def test_two_actors_one_of_them_killed_finish_the_job_of_one_process(ray, spec, source, tmp_path):
    engine = spec.open()
    run(source, tmp_path / "alone", engine)
    folder = tmp_path / "moved"
    with StoppingJob([str(source)], folder, OPTIONS, note=print) as job, pytest.raises(StopError):
        job.run(engine)
    mortal = MortalSpec(**asdict(spec), mark=tmp_path / "mark")
    summary, notes = run(source, folder, RayFleet(mortal, OPTIONS.encode, "local", workers=2))
    assert contents(folder) == contents(tmp_path / "alone")
    assert summary.done_before == 5 * 16
    assert summary.rows == ROWS
    assert summary.deaths == 1
    (note,) = notes
    assert note.startswith("Ray worker ")
    assert re.search(r"died \(Worker unexpectedly exits .*\); it had units .* done again", note)
