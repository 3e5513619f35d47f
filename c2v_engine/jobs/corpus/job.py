"""The corpus job: a folder of shards that is begun, gone on with, and finished."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from c2v_engine.errors import C2VError, InputError
from c2v_engine.jobs.corpus.cache import cache_namespace
from c2v_engine.jobs.corpus.folder.identity import begin_anew, claim, has_begun, prepare_folder
from c2v_engine.jobs.corpus.folder.layout import PLAN_NAME, REJECTED_NAME, REPORT_NAMES
from c2v_engine.jobs.corpus.folder.locking import locked
from c2v_engine.jobs.corpus.folder.manifest import Manifest
from c2v_engine.jobs.corpus.folder.recovery import check_there, recover, remove, remove_temporaries
from c2v_engine.jobs.corpus.folder.shards import check_shards, commit_shard
from c2v_engine.jobs.corpus.options import (
    ON_ERROR,
    CorpusOptions,
    CorpusSummary,
    make_identity,
    shard_metadata,
    versions,
)
from c2v_engine.jobs.corpus.records import Unit
from c2v_engine.jobs.corpus.report import JobFacts, count_reasons, write_report
from c2v_engine.jobs.corpus.source.finding import find_names
from c2v_engine.jobs.corpus.source.given import check_apart, check_given
from c2v_engine.jobs.corpus.source.inputs import InputFile, check_unchanged, describe, find_changed
from c2v_engine.jobs.corpus.source.plan import Plan, make_plan
from c2v_engine.jobs.corpus.source.reading import empty_columns
from c2v_engine.jobs.corpus.timeline import Sample, Timeline
from c2v_engine.jobs.corpus.work.coordinator import Coordinator, Death
from c2v_engine.jobs.corpus.work.facts import EngineFacts
from c2v_engine.jobs.corpus.work.fleet import Fleet
from c2v_engine.jobs.corpus.work.runner import Counters, RunnerOptions
from c2v_engine.jobs.corpus.work.setup import JobSetup
from c2v_engine.jobs.corpus.work.writing import Finished
from c2v_engine.jobs.encode import Encoder
from c2v_engine.jobs.output import replace_file
from c2v_engine.jobs.progress import Progress, Snapshot, ticking
from c2v_engine.jobs.writers import DTYPES, check_precision

__all__ = ["CorpusJob", "CorpusOptions", "CorpusSummary"]

# From so many bytes on a person is told what takes its time before the first row.
_LARGE = 2_000_000_000


class CorpusJob:
    """One start of a job, opened and closed as a context manager.

    Entering it checks all that can be checked without a model, and keeps other jobs out of the
    folder until it is left.

    Args:
        sources: files, globs, folders and URLs of the input, in this order.
        folder: for the output; made where it is missing.
        options: what is to be done.
        note: is told, in a line, of what a person should know.
    """

    def __init__(
        self,
        sources: Sequence[str],
        folder: Path,
        options: CorpusOptions,
        note: Callable[[str], None],
    ) -> None:
        if options.on_error not in ON_ERROR:
            raise InputError(
                f"on_error is {options.on_error!r}, expected one of: {', '.join(ON_ERROR)}"
            )
        check_precision(str(folder), options.encode.precision)
        self.sources = list(sources)
        self.folder = folder
        self.options = options
        self._note = note
        self._exit = ExitStack()
        self._files: list[InputFile] = []
        self._changed: list[int] = []
        self._plan: Plan | None = None
        self._manifest: Manifest | None = None
        self._counters: Callable[[], list[Counters]] = list
        self._done_before = 0
        self._fleet: Fleet | None = None
        self._holds_lock = self._begun = False
        self._timeline: Timeline | None = None
        self._start = time.perf_counter()

    def __enter__(self) -> CorpusJob:
        """Check input and output.

        Raises:
            InputError: the input can not be used, or is not what the job began with.
            OutputError: the folder can not be used, or another job is writing there.
        """
        with ExitStack() as stack:
            prepare_folder(self.folder)
            stack.enter_context(locked(self.folder))
            self._holds_lock = True
            stack.callback(self._let_go)
            names = find_names(self.sources, self.folder)
            if self.options.overwrite:
                check_apart(names, self.folder)
            # Where nothing is done, a plan may be for other options than these: it is made anew.
            self._begun = has_begun(self.folder) and not self.options.overwrite
            if self._begun and (self.folder / PLAN_NAME).exists():
                self._plan = Plan.load(self.folder / PLAN_NAME)
                check_given(self._plan.files, names, self.folder)
                if self.options.redo_changed:
                    self._changed = find_changed(self._plan.files)
                else:
                    check_unchanged(self._plan.files)
            else:
                self._files = describe(names)
            self._exit = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._exit.close()

    def run(self, engine: Encoder | Fleet, progress: Progress | None = None) -> CorpusSummary:
        """Do what is left to do.

        Args:
            engine: embeds the texts, here or in workers.
            progress: shown every half second.

        Raises:
            InputError: a row or a file can not be used; what was finished before stays.
            OutputError: the output can not be written, for example on a full disk; likewise.
            ConfigError: the folder holds another job.
            BackendError: the workers can not go on.
        """
        facts = self._open(engine)
        setup, plan = self._prepare(facts)
        manifest = self._manifest = Manifest.open(self.folder)
        self._exit.callback(manifest.close)
        for note in manifest.notes:
            self._note(note)
        if self._changed:
            plan = self._redo_changed(plan, facts, manifest)
        if manifest.totals.size >= _LARGE:
            self._note(
                f"checks the {len(manifest.done):,} shards that are there "
                f"({manifest.totals.size / 1e9:,.0f} GB), all bytes of them"
            )
        for note in recover(self.folder, manifest):
            self._note(note)
        todo = [unit for unit in plan.units if unit.number not in manifest.done]
        self._done_before = manifest.totals.rows
        self._start = time.perf_counter()
        workers = len(engine.workers) if isinstance(engine, Fleet) else 1
        timeline = self._timeline = Timeline(self.folder, workers) if todo else None
        ended = "failed"
        try:
            with ticking(progress or Progress(), self._now):
                deaths = self._embed(engine, setup, plan, todo)
            self._write_rejects(manifest)
            check_there(self.folder, manifest.records())
            ended = "finished"
        except BaseException as error:
            if isinstance(error, C2VError):
                ended = str(error)
            with suppress(C2VError):  # that error is what counts
                self._write_rejects(manifest)
            raise
        finally:
            if timeline is not None:
                timeline.close(self._sample(), ended)
        summary = self._summary(facts, manifest, deaths)
        if todo or not all((self.folder / name).exists() for name in REPORT_NAMES):
            write_report(self.folder, self._facts(summary, manifest))
        return summary

    def interrupt(self) -> str:
        """End the workers from another thread, just before the process ends; say what there is."""
        fleet, manifest, plan = self._fleet, self._manifest, self._plan
        if fleet is not None:
            fleet.close()
        self._tidy()
        if self._timeline is not None:
            self._timeline.close(self._sample(), "interrupted")
        if manifest is None or plan is None:
            how = "no row was embedded; the same command begins again"
            if self._begun:
                how = "no row was added to what is there; the same command goes on"
            return f"interrupted: {self.folder}: {how}"
        rows = f"{manifest.totals.rows:,} of {plan.rows:,} rows are there"
        return f"interrupted: {self.folder}: {rows}; the same command goes on"

    def _tidy(self) -> None:
        """Remove what is not whole; what can not be removed now the next start removes."""
        if self._holds_lock:
            with suppress(OSError, C2VError):
                remove_temporaries(self.folder)

    def _let_go(self) -> None:
        self._tidy()
        self._holds_lock = False

    def _open(self, engine: Encoder | Fleet) -> EngineFacts:
        if not isinstance(engine, Fleet):
            return EngineFacts.of(engine, self.options.encode)
        self._fleet = engine
        self._exit.callback(engine.close)
        return engine.start()

    def _prepare(self, facts: EngineFacts) -> tuple[JobSetup, Plan]:
        """See that this is the job that the folder holds, or begin it."""
        options, encode = self.options, self.options.encode
        identity = make_identity(options, facts)
        plan, made = self._plan, self._plan is None
        if plan is None:
            size = sum(file.size for file in self._files)
            if size >= _LARGE:
                files = f"{len(self._files):,} files" if len(self._files) > 1 else "one file"
                self._note(f"counts the rows of {files} first ({size / 1e9:,.0f} GB)")
            plan = self._plan = self._make_plan(self._files, identity)
            nulls = options.on_error == "null"
            check_shards(self.folder, options.format, plan.schema, encode.precision, nulls=nulls)
        decides = {**identity, **plan.identity()}
        if self._begun:  # before the plan of another job is replaced
            # A stop in the middle of ``_redo_changed`` leaves the new plan beside the old digest.
            may_change = ("input",) if options.redo_changed and not made else ()
            claim(self.folder, decides, versions(), may_change)
        else:
            begin_anew(self.folder)  # now that all else is known to be good
        if made:
            plan.save(self.folder / PLAN_NAME)
            first = plan.files[plan.units[0].segments[0].file].name
            for name in empty_columns(plan):
                self._note(f"{first}: its first rows have no {name!r}: a null is kept for each")
        if not self._begun:
            claim(self.folder, decides, versions())
        dtype = np.dtype(DTYPES[encode.precision]).name
        about = None
        if options.cache is not None:
            about = cache_namespace(facts, encode, deterministic=options.deterministic)
        setup = JobSetup(
            folder=self.folder,
            format=options.format,
            metadata=shard_metadata(options, facts),
            runner=RunnerOptions(facts.dimension, dtype, options.on_error, encode),
            cache=options.cache,
            cache_about=about,
        )
        return setup, plan

    def _make_plan(self, files: Sequence[InputFile], identity: dict[str, Any]) -> Plan:
        options = self.options
        return make_plan(
            files,
            column=options.column,
            id_column=options.id_column,
            keep=options.keep,
            shard_rows=identity["shard_rows"],
            nulls=options.on_error == "null",
        )

    def _redo_changed(self, plan: Plan, facts: EngineFacts, manifest: Manifest) -> Plan:
        """Take back the units that hold rows of changed files, and plan these files anew.

        Raises:
            InputError: a file has not as many rows as before, or other columns.
        """
        identity = make_identity(self.options, facts)
        names = [plan.files[number].name for number in self._changed]
        files = list(plan.files)
        for number, file in zip(self._changed, describe(names), strict=True):
            files[number] = file
        new = self._make_plan(files, identity)
        if new.rows_by_file() != plan.rows_by_file() or new.schema != plan.schema:
            raise InputError(
                f"{', '.join(names)}: has other rows or columns than when the job began: put it "
                "back, or begin anew with --overwrite"
            )
        changed = set(self._changed)
        units = [
            unit.number
            for unit in new.units
            if unit.number in manifest.done and changed & {one.file for one in unit.segments}
        ]
        stale = [file.name for unit in units for file in manifest.record(unit).files]
        manifest.drop(units)
        remove(self.folder, stale)
        new.save(self.folder / PLAN_NAME)
        claim(self.folder, {**identity, **new.identity()}, versions(), ("input",))
        self._note(f"{', '.join(names)}: changed, {len(units)} units are done again")
        self._plan = new
        return new

    def _embed(
        self, engine: Encoder | Fleet, setup: JobSetup, plan: Plan, todo: list[Unit]
    ) -> list[Death]:
        if not todo:
            return []
        if isinstance(engine, Fleet):
            coordinator = Coordinator(engine, setup, todo, self._commit, self._bury)
            self._counters = coordinator.counters
            coordinator.run()
            return coordinator.deaths
        runner = setup.make_runner(engine, plan)
        self._counters = lambda: [runner.counters()]
        with closing(runner.run(todo)) as done:  # its threads end before the folder's lock does
            for finished in done:
                self._commit(finished)
        return []

    def _commit(self, finished: Finished) -> None:
        assert self._manifest is not None
        pairs = zip(finished.temporary, finished.done.files, strict=True)
        commit_shard(self.folder, pairs)
        self._manifest.append(finished.done)

    def _bury(self, death: Death) -> None:
        units = "no unit"
        if death.units:
            numbers = " and ".join(map(str, death.units))
            units = f"unit{'s' if len(death.units) > 1 else ''} {numbers}, done again"
        self._note(f"{death.worker} {death.reason}; it had {units}")
        if self._timeline is not None:
            self._timeline.death(death)

    def _sample(self) -> Sample:
        return Sample.of(time.perf_counter() - self._start, self._counters())

    def _now(self) -> Snapshot:
        assert self._plan is not None
        assert self._manifest is not None
        now = self._sample()
        if self._timeline is not None:
            self._timeline.sample(now)
        rows, total = now.counters.rows, self._plan.rows
        return Snapshot(
            rows=rows,
            tokens=now.counters.tokens,
            seconds=now.seconds,
            fraction=min(1.0, (self._done_before + rows) / total),
            unit="rows",
            before=self._done_before,
            total=total,
            rejects=now.counters.rejects,
        )

    def _write_rejects(self, manifest: Manifest) -> None:
        """Write what the manifest says of rejected rows as a file of its own."""
        if self.options.on_error == "fail":
            return
        rejects = manifest.iter_rejects()
        lines = (json.dumps(asdict(reject)).encode() + b"\n" for reject in rejects)
        replace_file(self.folder / REJECTED_NAME, lines)

    def _summary(
        self, facts: EngineFacts, manifest: Manifest, deaths: list[Death]
    ) -> CorpusSummary:
        totals = manifest.totals
        return CorpusSummary(
            folder=self.folder,
            rows=totals.rows,
            written=totals.written,
            rejects=totals.rejects,
            shards=len(manifest.done),
            size=totals.size,
            done_before=self._done_before,
            seconds=time.perf_counter() - self._start,
            tokens=sum(one.tokens for one in self._counters()),
            deaths=len(deaths),
            precision=self.options.encode.precision,
            facts=facts,
        )

    def _facts(self, summary: CorpusSummary, manifest: Manifest) -> JobFacts:
        assert self._plan is not None
        return JobFacts(
            rows=summary.rows,
            written=summary.written,
            rejects=summary.rejects,
            tokens=manifest.totals.tokens,
            shards=summary.shards,
            size=summary.size,
            dimension=summary.facts.dimension,
            precision=summary.precision,
            format=self.options.format,
            files=len(self._plan.files),
            reasons=count_reasons(manifest.iter_rejects()),
            model=summary.facts.info,
            options=make_identity(self.options, summary.facts),
            versions=versions(),
        )
