"""The progress bar of ``Causal2Vec.encode``."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any

# Fewer texts than this are done before a bar has been drawn.
_MANY_TEXTS = 1000


class ProgressReporter:
    """Counts texts on a rich progress bar, or does nothing.

    Args:
        total: texts to come; None shows nothing.
    """

    def __init__(self, total: int | None) -> None:
        self._total = total
        self._bar: Any = None
        self._task: Any = None

    @classmethod
    def for_encode(cls, wanted: bool | None, total: int) -> ProgressReporter:
        """The bar that ``show_progress_bar`` asks for."""
        if wanted is None:
            wanted = total >= _MANY_TEXTS and sys.stderr.isatty()
        return cls(total if wanted else None)

    def __enter__(self) -> ProgressReporter:
        if self._total is not None:
            from rich.console import Console
            from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

            columns = (*Progress.get_default_columns()[:-1], MofNCompleteColumn())
            self._bar = Progress(
                *columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True
            )
            self._task = self._bar.add_task("Embedding", total=self._total)
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, texts: int) -> None:
        """Count texts that are done."""
        if self._bar is not None:
            self._bar.advance(self._task, texts)
