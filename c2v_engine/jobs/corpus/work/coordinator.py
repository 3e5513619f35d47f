"""Hands units to workers and records what they finish; a worker's death costs nobody a row."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from c2v_engine.errors import BackendError
from c2v_engine.jobs.corpus.records import Unit, UnitDone
from c2v_engine.jobs.corpus.work.fleet import Fleet
from c2v_engine.jobs.corpus.work.runner import Counters
from c2v_engine.jobs.corpus.work.worker import (
    Done,
    Ended,
    Failed,
    NothingNow,
    Ready,
    Setup,
    Want,
    Working,
)
from c2v_engine.jobs.corpus.work.writing import Finished

# A unit that was under way when so many workers died is not given to another.
_MOST_DEATHS = 3
_TICK_SECONDS = 0.5


@dataclass(frozen=True)
class Death:
    """The death of a worker.

    Attributes:
        worker: its name.
        reason: how it ended.
        units: that it had, which others get.
    """

    worker: str
    reason: str
    units: tuple[int, ...]


class Coordinator:
    """Runs units on a fleet that has started.

    Args:
        fleet: the workers; they are not closed.
        setup: what they are told of the job.
        units: that are to be done.
        commit: moves a finished unit to its place and records it.
        report: told of each death.

    Attributes:
        deaths: of workers, so far.
    """

    def __init__(
        self,
        fleet: Fleet,
        setup: Setup,
        units: Sequence[Unit],
        commit: Callable[[Finished], None],
        report: Callable[[Death], None],
    ) -> None:
        self._fleet = fleet
        self._setup = setup
        self._todo = deque(units)
        self._left = {unit.number for unit in units}
        self._commit = commit
        self._report = report
        self._held: dict[int, dict[int, Unit]] = {}
        self._idle: list[int] = []
        self._blamed: Counter[int] = Counter()
        # How often a worker died in a row without having had a unit.
        self._barren: Counter[int] = Counter()
        self._failed: dict[int, Failed] = {}
        self._counters: dict[int, Counters] = {}
        self._past: list[Counters] = []
        self._recorded: dict[int, tuple[int, int]] = {}  # rows and rejects of living workers
        self.deaths: list[Death] = []

    def run(self) -> None:
        """Do all units.

        Raises:
            C2VError: input or output that can not be used.
            BackendError: no worker is left, or a unit has cost several their lives.
        """
        for worker in self._fleet.workers:
            self._fleet.send(worker, self._setup)
        while self._left:
            for worker, message in self._fleet.events(_TICK_SECONDS):
                self._take(worker, message)
            self._give()

    def counters(self) -> list[Counters]:
        """What all workers have done, those included that are gone; from any thread.

        Of the rows of one that is gone only those count that are recorded.
        """
        return [*self._past, *list(self._counters.values())]

    def _take(self, worker: int, message: object) -> None:
        if isinstance(message, Ready):  # in the place of one that died
            self._fleet.take_facts([(worker, message)])
            self._fleet.send(worker, self._setup)
        elif isinstance(message, Working):
            self._counters[worker] = message.counters
        elif isinstance(message, Done):
            self._counters[worker] = message.counters
            number = message.finished.done.unit
            self._held.get(worker, {}).pop(number, None)
            self._commit(message.finished)
            self._count(worker, message.finished.done)
            self._left.discard(number)
        elif isinstance(message, Want):
            if message.idle:
                self._idle.append(worker)
            elif self._has_another_for(worker):
                self._hand(worker)
            else:
                self._fleet.send(worker, NothingNow())
        elif isinstance(message, Failed):
            mistake = message.mistake()
            if mistake is not None:
                raise mistake
            self._failed[worker] = message
        elif isinstance(message, Ended):
            self._bury(worker, message.reason)

    def _has_another_for(self, worker: int) -> bool:
        """Whether a worker that has a unit gets the next: not where idle ones wait for the last.

        What a worker had that died is done alone, so that it is known what another one dies of.
        """
        if not self._todo or len(self._todo) < len(self._idle):
            return False
        near = {self._todo[0].number, *self._held.get(worker, {})}
        return not near & self._blamed.keys()

    def _count(self, worker: int, done: UnitDone) -> None:
        rows, rejects = self._recorded.get(worker, (0, 0))
        self._recorded[worker] = (rows + done.rows, rejects + len(done.rejects))

    def _give(self) -> None:
        while self._idle and self._todo:
            self._hand(self._idle.pop(0))

    def _hand(self, worker: int) -> None:
        unit = self._todo.popleft()
        self._held.setdefault(worker, {})[unit.number] = unit
        self._fleet.send(worker, unit)

    def _bury(self, worker: int, reason: str) -> None:
        failed = self._failed.pop(worker, None)
        if failed is not None:
            reason = f"failed ({failed.kind}: {failed.message})"
        held = self._held.pop(worker, {})
        if worker in self._idle:
            self._idle.remove(worker)
        if worker in self._counters:
            rows, rejects = self._recorded.pop(worker, (0, 0))
            # The rest of its rows will be done again, and counted then.
            self._past.append(replace(self._counters[worker], rows=rows, rejects=rejects))
            del self._counters[worker]
        self._todo.extendleft(sorted(held.values(), key=lambda unit: -unit.number))
        death = Death(self._fleet.name(worker), reason, tuple(held))
        self.deaths.append(death)
        self._report(death)
        for number in death.units:
            self._blamed[number] += 1
            if self._blamed[number] >= _MOST_DEATHS:
                raise BackendError(
                    f"{_MOST_DEATHS} workers ended while they had unit {number}, the last one "
                    f"{reason}: not tried again (the units before it are recorded)"
                )
        self._barren[worker] = 0 if held else self._barren[worker] + 1
        if self._todo and self._barren[worker] < _MOST_DEATHS:
            self._fleet.replace(worker)
        elif not self._fleet.workers:
            raise BackendError(f"no worker is left: {death.worker} {reason}")
