"""Workers as Ray actors: the units of processes on this machine, wherever they run."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time

import pytest
from fake_engine import vectors
from memory_units import make_units
from process_units import TEXTS, FakeOpener, FakeSetup
from ray_units import RayOpener

from c2v_engine.errors import BackendError, MissingPackageError
from c2v_engine.jobs.corpus.work import ray_fleet
from c2v_engine.jobs.corpus.work.coordinator import Coordinator
from c2v_engine.jobs.corpus.work.ray_fleet import RayFleet, Share, death_reason, divide
from c2v_engine.jobs.corpus.work.ray_worker import Place, RayWorker
from c2v_engine.jobs.corpus.work.worker import Failed
from c2v_engine.jobs.encode import EncodeOptions

UNITS = 20
ROWS = 20


@pytest.fixture(scope="module")
def ray():
    ray = pytest.importorskip("ray")
    from ray_cluster import local_ray

    with local_ray(cpus=2):
        yield ray


def run(folder, opener, setup=None, meanwhile=None):
    """Run all units by two workers; what was committed, who died."""
    fleet = RayFleet(opener, EncodeOptions(), "local", workers=2)
    committed = []

    def commit(finished):
        committed.append(finished.done.unit)
        for name, file in zip(finished.temporary, finished.done.files, strict=True):
            os.replace(folder / name, folder / file.name)

    try:
        assert fleet.start().dimension == 8
        assert fleet.workers == [0, 1]
        setup = setup or FakeSetup(folder)
        units = make_units(UNITS, ROWS)
        coordinator = Coordinator(fleet, setup, units, commit, lambda death: None)
        if meanwhile is not None:
            threading.Thread(target=meanwhile, args=(fleet, committed), daemon=True).start()
        coordinator.run()
    finally:
        fleet.close()
    return committed, coordinator


def check_rows(folder):
    rows = []
    for number in range(UNITS):
        rows += json.loads((folder / f"part{number}.json").read_text())
    assert [key for key, _ in rows] == [f"id{row}" for row in range(UNITS * ROWS)]
    assert [vector for _, vector in rows] == vectors(TEXTS).tolist()


def test_two_actors_do_every_unit_once(ray, tmp_path):
    committed, coordinator = run(tmp_path, RayOpener(0.02))
    assert sorted(committed) == list(range(UNITS))
    check_rows(tmp_path)
    counters = coordinator.counters()
    assert sum(one.rows for one in counters) == UNITS * ROWS
    assert min(one.rows for one in counters) > 0, "one worker did everything"
    assert coordinator.deaths == []


def test_a_killed_actor_is_replaced_and_reported(ray, tmp_path):
    def kill(fleet, committed):
        while len(committed) < 3:
            time.sleep(0.005)
        os.kill(fleet._places[0].pid, signal.SIGKILL)

    committed, coordinator = run(tmp_path, RayOpener(0.05), meanwhile=kill)
    assert sorted(committed) == list(range(UNITS))
    check_rows(tmp_path)
    (death,) = coordinator.deaths
    assert death.worker.startswith("Ray worker 0 (")
    assert death.reason.startswith("died (Worker unexpectedly exits")
    assert "\n" not in death.reason
    assert death.units


def test_a_unit_that_kills_every_actor_ends_the_job(ray, tmp_path):
    with pytest.raises(BackendError, match="3 workers ended while they had unit 4"):
        run(tmp_path, RayOpener(), FakeSetup(tmp_path, deadly=4, always=True))


@pytest.mark.parametrize(
    ("fails", "message"),
    [
        ("mistake", "^there is no such device$"),
        ("exit", r"Ray worker \d.* died \(.*\) before its model was loaded"),
    ],
)
def test_a_model_that_can_not_be_opened_is_named(ray, tmp_path, fails, message):
    with pytest.raises(BackendError, match=message):
        run(tmp_path, RayOpener(fails=fails))


def test_a_machine_that_does_not_share_the_folder_is_named(tmp_path):
    worker = RayWorker(FakeOpener(), EncodeOptions(), str(tmp_path / "nowhere"))
    said = worker.poll()
    while not isinstance(said[-1], Failed):
        said += worker.poll()
    assert isinstance(said[0], Place)
    assert "nowhere: can not be entered on" in str(said[-1].mistake())


def test_a_machine_with_another_release_is_named():
    fleet = RayFleet.__new__(RayFleet)
    fleet._places = {}
    (failed,) = fleet._without_places(3, [Place("there", 7, "0.0.1")])
    assert str(failed.mistake()).startswith(
        "Ray worker 3 (there, process 7): has c2v-engine 0.0.1, this machine has "
    )


@pytest.mark.parametrize(
    ("nodes", "device", "asked", "expected"),
    [
        ([{"CPU": 8}], "auto", None, Share(1, 0, 8)),
        ([{"CPU": 8}, {"CPU": 4}, {}], "auto", None, Share(2, 0, 4)),
        ([{"CPU": 8}, {"CPU": 4}], "cpu", 3, Share(3, 0, 4)),
        ([{"CPU": 8}, {"CPU": 4}], "cpu", 5, Share(5, 0, 2)),
        ([{"CPU": 2}], "auto", 2, Share(2, 0, 1)),
        ([{"CPU": 64, "GPU": 8}, {"CPU": 64, "GPU": 8}], "auto", None, Share(16, 1, 4)),
        ([{"CPU": 8, "GPU": 4}, {"CPU": 64}], "cuda", None, Share(4, 1, 1)),
        ([{"CPU": 64, "GPU": 8}], "auto", 3, Share(3, 1, 4)),
        ([{"CPU": 64, "GPU": 8}], "cpu", None, Share(1, 0, 64)),
    ],
)
def test_a_cluster_is_shared_out_by_gpus_or_machines(nodes, device, asked, expected):
    assert divide(nodes, device, asked) == expected


@pytest.mark.parametrize(
    ("nodes", "device", "asked", "message"),
    [
        ([{"CPU": 8, "GPU": 2}], "auto", 3, "--workers 3: the Ray cluster has 2 GPUs"),
        ([{"CPU": 8}], "auto", 9, "--workers 9: the Ray cluster has 8 CPUs"),
        ([{"CPU": 8}], "cuda", None, "--device cuda: the Ray cluster has no GPU"),
        ([{}], "auto", None, "the Ray cluster has no CPUs to work with"),
    ],
)
def test_more_than_a_cluster_has_is_refused(nodes, device, asked, message):
    with pytest.raises(BackendError, match=message):
        divide(nodes, device, asked)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "--ray 127.0.0.1:1: nothing answers there"),
        (
            "ray://head:10001",
            "--ray ray://head:10001: expected auto, local, or the head's host:port",
        ),
        ("head", "--ray head: expected auto, local, or the head's host:port"),
    ],
)
def test_an_address_where_no_cluster_is_is_refused_at_once(monkeypatch, address, message):
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(BackendError, match=message):
        RayFleet(RayOpener(), EncodeOptions(), address).start()


def test_an_actor_s_end_is_told_in_a_line():
    said = (
        "The actor died unexpectedly before finishing this task.\n\tclass_name: RayWorker\n"
        "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR "
        "Worker exit detail: Worker unexpectedly exits with code 2. End of file. Some common "
        "causes include: (1) the process was killed"
    )
    expected = "died (Worker unexpectedly exits with code 2. End of file)"
    assert death_reason(Exception(said)) == expected
    assert death_reason(Exception("The node is gone.")) == "died (The node is gone)"


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingPackageError, match=r"ray.* pip install 'c2v-engine\[ray\]'"):
        RayFleet(RayOpener(), EncodeOptions(), "local")


def test_a_cluster_that_has_no_room_any_more_ends_the_job(ray, tmp_path, monkeypatch):
    """As where machines are gone: without workers nothing would ever come."""
    monkeypatch.setattr(ray_fleet, "_PLACE_SECONDS", 1.0)
    begin = RayFleet.start

    def start(fleet):
        with monkeypatch.context() as patched:
            patched.setattr(ray_fleet, "_PLACE_SECONDS", 60.0)
            facts = begin(fleet)
        fleet._share = Share(2, 0, 64)
        return facts

    monkeypatch.setattr(RayFleet, "start", start)
    with pytest.raises(BackendError, match=r"no worker is left: .* got no processors in 1 s"):
        run(tmp_path, RayOpener(), FakeSetup(tmp_path, deadly=4, always=True))
