"""The mine job: training pairs in, the same with hard negatives out.

The texts are read several times and never held: their hashes find equal ones, the embeddings and
the candidates' texts lie in temporary files beside the output, and the nearest candidates are found
a block of queries against a block of candidates at a time.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from c2v_engine.errors import InputError, TextError
from c2v_engine.jobs.hard_negatives import Mined, PairSets, mine_pairs
from c2v_engine.jobs.negatives import NegativeRules
from c2v_engine.jobs.output import AtomicFile
from c2v_engine.jobs.pairs import PairFile, open_pairs
from c2v_engine.jobs.progress import Progress, Snapshot, ticking
from c2v_engine.jobs.readers import open_reader
from c2v_engine.jobs.store import TextStore, VectorStore

DOCUMENT_PROMPTS = ("document", "passage", "corpus")


class Miner(Protocol):
    """What the job needs of ``Causal2Vec``."""

    @property
    def stats(self) -> Any:
        """The running counters: ``texts`` and ``tokens``."""

    def info(self) -> dict[str, Any]:
        """Say what the model is; the job reads its name and its prompts."""

    def output_dimension(self, truncate_dim: int | None, precision: Any) -> int:
        """Give the number of dimensions."""

    def encode_stream(
        self,
        texts: Iterable[str],
        *,
        prompt_name: str | None = None,
        batch_tokens: int | None = None,
    ) -> Iterator[NDArray[Any]]:
        """Give embeddings in blocks, in order."""


@dataclass(frozen=True)
class MineOptions:
    """How texts are embedded and negatives chosen.

    Attributes:
        rules: which candidates are negatives.
        query_prompt_name: of the model's prompts; None for ``query`` where there is one.
        document_prompt_name: None for the first of document, passage, corpus.
        batch_tokens: most tokens computed together.
    """

    rules: NegativeRules = field(default_factory=NegativeRules)
    query_prompt_name: str | None = None
    document_prompt_name: str | None = None
    batch_tokens: int | None = None


@dataclass(frozen=True)
class MineReport:
    """What a finished job did.

    Attributes:
        pairs: rows read, without those that repeat a pair where old negatives were replaced.
        queries: distinct ones.
        candidates: distinct texts that could be negatives.
        negatives: rows written.
        by_count: pairs by how many negatives they got.
        without_candidates: pairs with none because no candidate has such a rank.
        too_near: pairs with none because margins or scores refused every candidate.
        positive_score: mean over all pairs.
        negative_score: mean over all negatives, None without any.
        model: the engine's name.
        seconds: from the first text to the file in its place.
        output: the file.
        size: its size in bytes.
    """

    pairs: int
    queries: int
    candidates: int
    negatives: int
    by_count: dict[int, int]
    without_candidates: int
    too_near: int
    positive_score: float
    negative_score: float | None
    model: str
    seconds: float
    output: Path
    size: int


class _Place(NamedTuple):
    """Where a text stands, to name it when it can not be embedded."""

    bad_row: Callable[[int, int | None, str], InputError]
    row: int
    line: int | None


class MineJob:
    """One job, opened and closed as a context manager; leaving it removes what is unfinished.

    Entering it reads the whole input and refuses bad rows before a model is loaded.

    Args:
        source: ``.jsonl`` or ``.parquet`` with ``query`` and ``positive``; see ``open_pairs``.
        output: of the same format; a row for each negative.
        corpus: a file of candidates, see ``open_reader``; None takes the positives.
        corpus_column: the column with their texts.
        overwrite: replace an output that exists.
        overwrite_negatives: replace a column ``negative``; a pair that repeats is mined once.
        options: how.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        output: str | os.PathLike[str],
        *,
        corpus: str | os.PathLike[str] | None = None,
        corpus_column: str | None = None,
        overwrite: bool = False,
        overwrite_negatives: bool = False,
        options: MineOptions | None = None,
    ) -> None:
        self.source = source
        self.output = Path(output)
        self.corpus = corpus
        self.corpus_column = corpus_column
        self.options = options or MineOptions()
        self._overwrite = overwrite
        self._replace = overwrite_negatives
        self._target: AtomicFile | None = None
        self._stack = ExitStack()

    def __enter__(self) -> MineJob:
        """Open the output, and read all texts once.

        Raises:
            InputError: a file or a row can not be used.
            OutputError: the output can not be written.
        """
        self._pairs: PairFile = open_pairs(self.source, self.output, replace=self._replace)
        self._target = AtomicFile(self.output, overwrite=self._overwrite)
        try:
            self._sets = PairSets.scan(self._pairs, self.corpus, self.corpus_column)
        except BaseException:
            self._target.abandon()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        assert self._target is not None
        self._target.abandon()
        self._stack.close()

    def interrupt(self) -> str:
        """Drop the output from another thread, just before the process ends; say what there is."""
        written = self._target is not None and not self._target.give_up()
        return f"interrupted: {self.output} was {'already' if written else 'not'} written"

    def run(self, model: Miner, progress: Progress | None = None) -> MineReport:
        """Embed the texts, choose the negatives, and put the output in its place.

        Args:
            model: the engine.
            progress: shown every half second, first of the texts embedded, then of the queries
                compared.

        Raises:
            InputError: a text can not be embedded, or no pair gets a negative. Nothing is written.
            OutputError: the output can not be written, for example on a full disk.
        """
        assert self._target is not None
        start = time.perf_counter()
        about = model.info()
        folder, dimension = self._target.path.parent, model.output_dimension(None, "float32")
        with self._disk_errors():
            queries = VectorStore(folder, dimension)
            self._stack.callback(queries.close)
            documents = VectorStore(folder, dimension)
            self._stack.callback(documents.close)
            texts = TextStore(folder)
            self._stack.callback(texts.close)
        options, prompts = self.options, about.get("prompts", {})
        query_prompt = options.query_prompt_name or _first_of(("query",), prompts)
        document_prompt = options.document_prompt_name or _first_of(DOCUMENT_PROMPTS, prompts)
        with ticking(progress or Progress(), self._clock(model)):
            self._embed(model, self._query_texts(), queries, query_prompt)
            self._embed(model, self._document_texts(texts), documents, document_prompt)
        if (len(queries), len(documents)) != (len(self._sets.queries), len(self._sets.documents)):
            raise InputError(f"{self.source}: has changed while it was read")
        mined = self._choose(queries, documents, progress or Progress())
        self._refuse_nothing(mined)
        with self._disk_errors():
            rows = self._pairs.copy(
                self._target, lambda row: texts.read(mined.chosen[row][mined.chosen[row] >= 0])
            )
        if rows != self._sets.rows:
            raise InputError(f"{self.source}: has changed while it was read")
        size = self._target.commit()
        return self._report(mined, str(about["model"]), time.perf_counter() - start, size)

    def _refuse_nothing(self, mined: Mined) -> None:
        if (mined.chosen >= 0).any():
            return
        kept, rules = self._sets.mined, self.options.rules
        there = int(mined.had_candidates[kept].sum())
        pairs, candidates = int(kept.sum()), int(self._sets.candidate.sum())
        raise InputError(
            f"{self.source}: no negative was found: of {pairs:,} pairs with {candidates:,} "
            f"candidates, {pairs - there:,} have none from rank {rules.range_min} on "
            f"(--range-min) and {there:,} none within margins and scores"
        )

    def _choose(self, queries: VectorStore, documents: VectorStore, progress: Progress) -> Mined:
        start, total, done = time.perf_counter(), len(queries), 0

        def report(queries_done: int) -> None:
            nonlocal done
            done = queries_done

        def now() -> Snapshot:
            return Snapshot(done, 0, time.perf_counter() - start, done / total, "queries")

        with ticking(progress, now):
            return mine_pairs(queries, documents, self._sets, self.options.rules, report)

    def _clock(self, model: Miner) -> Callable[[], Snapshot]:
        start, texts, tokens = time.perf_counter(), model.stats.texts, model.stats.tokens
        total = len(self._sets.queries) + len(self._sets.documents)

        def now() -> Snapshot:
            done = model.stats.texts - texts
            seconds = time.perf_counter() - start
            return Snapshot(done, model.stats.tokens - tokens, seconds, min(1.0, done / total))

        return now

    def _query_texts(self) -> Iterator[tuple[str, _Place]]:
        firsts = self._sets.queries.is_first
        for row, pair in enumerate(self._pairs.pairs()):
            if row < self._sets.rows and firsts[row]:
                yield pair.query, _Place(self._pairs.bad_row, row + 1, pair.line)

    def _document_texts(self, kept: TextStore) -> Iterator[tuple[str, _Place]]:
        firsts = self._sets.documents.is_first
        for row, pair in enumerate(self._pairs.pairs()):
            if row < self._sets.rows and firsts[row]:
                with self._disk_errors():
                    kept.append(pair.positive)
                yield pair.positive, _Place(self._pairs.bad_row, row + 1, pair.line)
        if self.corpus is None:
            return
        with open_reader(self.corpus, self.corpus_column) as reader:
            for row, record in enumerate(reader):
                number = self._sets.rows + row
                if number < len(firsts) and firsts[number]:
                    with self._disk_errors():
                        kept.append(record.text)
                    yield record.text, _Place(reader.bad_row, row + 1, record.line)

    def _embed(
        self,
        model: Miner,
        source: Iterator[tuple[str, _Place]],
        store: VectorStore,
        prompt_name: str | None,
    ) -> None:
        pending: deque[_Place] = deque()

        def texts() -> Iterator[str]:
            for text, place in source:
                pending.append(place)
                yield text

        batch_tokens = self.options.batch_tokens
        try:
            blocks: Any = model.encode_stream(
                texts(), prompt_name=prompt_name, batch_tokens=batch_tokens
            )
            with closing(blocks):
                for block in blocks:
                    with self._disk_errors():
                        store.append(block)
                    for _ in range(len(block)):
                        pending.popleft()
        except TextError as error:
            held = error.row - len(store)
            if not 0 <= held < len(pending):
                raise
            place = pending[held]
            raise place.bad_row(place.row, place.line, error.reason) from error

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        assert self._target is not None
        try:
            yield
        except OSError as error:
            raise self._target.failure(error) from error

    def _report(self, mined: Mined, model: str, seconds: float, size: int) -> MineReport:
        kept = self._sets.mined
        counts = (mined.chosen[kept] >= 0).sum(axis=1)
        none = counts == 0
        scores = mined.scores[mined.chosen >= 0]
        there = mined.had_candidates[kept]
        numbers, pairs = np.unique(counts, return_counts=True)
        return MineReport(
            pairs=int(kept.sum()),
            queries=len(self._sets.queries),
            candidates=int(self._sets.candidate.sum()),
            negatives=int(counts.sum()),
            by_count={int(n): int(p) for n, p in zip(numbers, pairs, strict=True)},
            without_candidates=int((none & ~there).sum()),
            too_near=int((none & there).sum()),
            positive_score=float(mined.positive_scores[kept].mean(dtype=np.float64)),
            negative_score=float(scores.mean(dtype=np.float64)) if len(scores) else None,
            model=model,
            seconds=seconds,
            output=self.output,
            size=size,
        )


def _first_of(names: tuple[str, ...], prompts: Iterable[str]) -> str | None:
    return next((name for name in names if name in prompts), None)
