"""Workers in processes: units are handed out as they finish, and a death costs nobody a row."""

from __future__ import annotations

import json
import os
import signal
import threading
import time

import pytest
from fake_engine import vectors
from memory_units import make_units
from process_units import TEXTS, FakeOpener, FakeSetup

from c2v_engine.errors import BackendError
from c2v_engine.jobs.corpus.work.coordinator import Coordinator
from c2v_engine.jobs.corpus.work.fleet import ProcessFleet
from c2v_engine.jobs.encode import EncodeOptions

UNITS = 20
ROWS = 20


def run(folder, openers, setup=None, meanwhile=None, units=UNITS):
    """Run all units; what was committed, what died."""
    names = [f"worker {number}" for number in range(len(openers))]
    fleet = ProcessFleet(openers, names, EncodeOptions())
    committed = []

    def commit(finished):
        committed.append(finished.done.unit)
        for name, file in zip(finished.temporary, finished.done.files, strict=True):
            os.replace(folder / name, folder / file.name)

    try:
        facts = fleet.start()
        assert facts.dimension == 8
        setup = setup or FakeSetup(folder)
        told = []
        coordinator = Coordinator(fleet, setup, make_units(units, ROWS), commit, told.append)
        if meanwhile is not None:
            threading.Thread(target=meanwhile, args=(fleet, committed), daemon=True).start()
        coordinator.run()
        assert told == coordinator.deaths
    finally:
        fleet.close()
    return committed, coordinator


def check_rows(folder, units=UNITS):
    rows = []
    for number in range(units):
        rows += json.loads((folder / f"part{number}.json").read_text())
    assert [key for key, _ in rows] == [f"id{row}" for row in range(units * ROWS)]
    expected = vectors(TEXTS[: units * ROWS]).tolist()
    assert [vector for _, vector in rows] == expected


def test_two_workers_do_every_unit_once(tmp_path):
    committed, coordinator = run(tmp_path, [FakeOpener(0.01), FakeOpener(0.01)])
    assert sorted(committed) == list(range(UNITS))
    check_rows(tmp_path)
    counters = coordinator.counters()
    assert len(counters) == 2
    assert sum(one.rows for one in counters) == UNITS * ROWS
    assert min(one.rows for one in counters) > 0, "one worker did everything"
    assert coordinator.deaths == []


def test_a_killed_worker_is_replaced_and_its_units_go_to_others(tmp_path):
    def kill(fleet, committed):
        while len(committed) < 3:
            time.sleep(0.005)
        os.kill(fleet._running[0].process.pid, signal.SIGKILL)

    committed, coordinator = run(tmp_path, [FakeOpener(0.02), FakeOpener(0.02)], meanwhile=kill)
    assert sorted(committed) == list(range(UNITS))
    check_rows(tmp_path)
    (death,) = coordinator.deaths
    assert death.worker == "worker 0"
    assert "SIGKILL" in death.reason
    assert death.units


def test_the_only_worker_is_replaced_too(tmp_path):
    committed, coordinator = run(tmp_path, [FakeOpener()], FakeSetup(tmp_path, deadly=7))
    assert sorted(committed) == list(range(UNITS))
    check_rows(tmp_path)
    assert [7 in death.units for death in coordinator.deaths] == [True]


def test_a_unit_that_kills_every_worker_ends_the_job(tmp_path):
    setup = FakeSetup(tmp_path, deadly=4, always=True)
    with pytest.raises(BackendError, match="3 workers ended while they had unit 4"):
        run(tmp_path, [FakeOpener(), FakeOpener()], setup)
    check_rows(tmp_path, units=3)


def test_an_error_that_is_no_mistake_of_the_user_counts_as_a_death(tmp_path):
    with pytest.raises(BackendError, match=r"3 workers ended .*the device is lost"):
        run(tmp_path, [FakeOpener()], FakeSetup(tmp_path, broken=2))


def test_a_model_that_can_not_be_opened_is_its_own_error(tmp_path):
    with pytest.raises(BackendError, match=r"^there is no such device$"):
        run(tmp_path, [FakeOpener(), FakeOpener(fails="mistake")])


def test_a_worker_that_ends_while_it_opens_is_named(tmp_path):
    with pytest.raises(BackendError, match="worker 1 ended with exit code 7 before its model"):
        run(tmp_path, [FakeOpener(), FakeOpener(fails="exit")])


def test_workers_with_engines_that_differ_are_refused(tmp_path):
    with pytest.raises(BackendError, match=r"its engine has dtype '\w+', not '\w+' as the others"):
        run(tmp_path, [FakeOpener(), FakeOpener(dtype="bfloat16")])
