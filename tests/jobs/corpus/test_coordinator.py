"""What a coordinator makes of what its workers say, word by word."""

from __future__ import annotations

import numpy as np
import pytest
from memory_units import make_units

from c2v_engine.errors import BackendError, ConfigError, MissingPackageError, TextError
from c2v_engine.jobs.corpus.records import Reject, UnitDone
from c2v_engine.jobs.corpus.work.coordinator import Coordinator
from c2v_engine.jobs.corpus.work.facts import EngineFacts
from c2v_engine.jobs.corpus.work.fleet import Fleet
from c2v_engine.jobs.corpus.work.runner import Counters
from c2v_engine.jobs.corpus.work.worker import Done, Ended, Failed, Ready, Want, Working
from c2v_engine.jobs.corpus.work.writing import Finished

ROWS = 10
FACTS = EngineFacts({"fingerprint": "f", "dtype": "float32", "normalize": True}, 8, None)


class ScriptedFleet(Fleet):
    """Workers that say what is written down, whatever they are told."""

    def __init__(self, said):
        self.said = list(said)
        self.running = [0]
        self.told = []
        self.replaced = 0
        self.facts = FACTS

    def launch(self):
        return [(0, Ready(FACTS))]

    @property
    def workers(self):
        return self.running

    def events(self, seconds):
        return [self.said.pop(0)]

    def send(self, worker, message):
        self.told.append(message)

    def replace(self, worker):
        self.replaced += 1

    def name(self, worker):
        return f"worker {worker}"

    def close(self):
        pass


def done(unit, rows, rejects=0):
    bad = tuple(Reject(row, None, "there", "is bad") for row in range(rejects))
    record = UnitDone(unit, unit * ROWS, ROWS, ROWS, (), bad)
    return Done(Finished(record, ()), Counters(rows=rows, rejects=rejects))


def coordinate(*said, units=2):
    fleet = ScriptedFleet((0, message) for message in said)
    recorded = []
    coordinator = Coordinator(fleet, "setup", make_units(units, ROWS), recorded.append, print)
    coordinator.run()
    return coordinator, recorded


def test_rows_of_a_dead_worker_that_are_done_again_count_once():
    coordinator, recorded = coordinate(
        Want(idle=True),
        Want(idle=False),
        done(0, rows=12, rejects=1),
        Working(Counters(rows=18, tokens=99, rejects=3)),
        Ended("was killed"),
        Ready(FACTS),
        Want(idle=True),
        done(1, rows=10),
    )
    assert [one.done.unit for one in recorded] == [0, 1]
    counters = coordinator.counters()
    assert sum(one.rows for one in counters) == 2 * ROWS
    assert sum(one.rejects for one in counters) == 1
    assert sum(one.tokens for one in counters) == 99  # which were computed


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        (EngineFacts({**FACTS.info, "fingerprint": "g"}, 8, None), "fingerprint 'g', not 'f'"),
        (EngineFacts({**FACTS.info, "dtype": "bfloat16"}, 8, None), "dtype 'bfloat16'"),
        (EngineFacts(FACTS.info, 4, None), "4 dimensions, not 8"),
        (EngineFacts(FACTS.info, 8, np.ones((2, 8), np.float32)), "other ranges"),
    ],
)
def test_a_worker_in_anothers_place_must_have_its_engine(facts, reason):
    with pytest.raises(BackendError, match=f"worker 0: its engine has {reason}"):
        coordinate(Want(idle=True), Ended("was killed"), Ready(facts))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ConfigError("there is no such prompt"), ConfigError),
        (TextError(3, "is not finite"), ValueError),
        (MissingPackageError("peft", "lora"), BackendError),
    ],
)
def test_a_mistake_of_the_user_is_told_in_its_own_words(error, kind):
    with pytest.raises(kind) as caught:
        coordinate(Failed.of(error))
    assert str(caught.value) == str(error)


def test_a_worker_that_dies_before_it_has_a_unit_is_replaced_some_times():
    fleet = ScriptedFleet([(0, Ended("ended")), (0, Ended("ended")), (0, Ended("ended at last"))])
    fleet.running = []
    coordinator = Coordinator(fleet, None, make_units(2, ROWS), lambda done: None, lambda d: None)
    with pytest.raises(BackendError, match="no worker is left: worker 0 ended at last"):
        coordinator.run()
    assert fleet.replaced == 2
    assert [death.units for death in coordinator.deaths] == [(), (), ()]
