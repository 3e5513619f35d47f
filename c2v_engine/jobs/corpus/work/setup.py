"""What a worker is told of a job: enough to read its units and to write their shards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from c2v_engine.jobs.corpus.cache import VectorCache
from c2v_engine.jobs.corpus.folder.layout import PLAN_NAME
from c2v_engine.jobs.corpus.folder.shards import open_shard
from c2v_engine.jobs.corpus.records import RowBlock, Unit
from c2v_engine.jobs.corpus.source.plan import Plan
from c2v_engine.jobs.corpus.source.reading import UnitReader
from c2v_engine.jobs.corpus.work.runner import RunnerOptions, UnitRunner
from c2v_engine.jobs.corpus.work.writing import Shard
from c2v_engine.jobs.encode import Encoder


@dataclass(frozen=True)
class JobSetup:
    """A job as its workers need it; travels between processes and machines.

    Attributes:
        folder: the output, where the plan is too.
        format: of the shards: parquet, arrow, safetensors or npy.
        metadata: of the job, for the shards' own.
        runner: how texts become rows.
        cache: the file of the embeddings' cache, where there is one.
        cache_about: what decides an embedding besides its text.
    """

    folder: Path
    format: str
    metadata: dict[str, Any]
    runner: RunnerOptions
    cache: Path | None = None
    cache_about: dict[str, Any] | None = None

    def make_runner(self, engine: Encoder, plan: Plan | None = None) -> UnitRunner:
        """Make what embeds units with an engine.

        Args:
            engine: embeds the texts.
            plan: the job's, where it is loaded already.

        Raises:
            InputError: the plan can not be read.
        """
        plan = plan or Plan.load(self.folder / PLAN_NAME)
        reader = UnitReader(plan, on_error=self.runner.on_error)
        schema = plan.schema

        def read(unit: Unit) -> Iterator[RowBlock]:
            return reader.read(unit)

        def open_unit(unit: Unit) -> Shard:
            return open_shard(
                self.folder,
                unit.number,
                self.format,
                schema,
                self.runner.dimension,
                self.runner.encode.precision,
                self.metadata,
                nulls=self.runner.on_error == "null",
            )

        cache = None
        if self.cache is not None:
            assert self.cache_about is not None
            options = self.runner
            cache = VectorCache(self.cache, self.cache_about, options.dimension, options.dtype)
        return UnitRunner(engine, self.runner, read, open_unit, cache)
