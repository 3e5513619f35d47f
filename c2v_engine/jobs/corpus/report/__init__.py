"""What a job did, for people: ``report.json``, and ``report.html`` with the same figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from c2v_engine.jobs.corpus.folder.layout import REPORT_NAMES
from c2v_engine.jobs.corpus.report.figures import JobFacts, count_reasons, make_report
from c2v_engine.jobs.corpus.report.page import make_page
from c2v_engine.jobs.corpus.timeline import read_timeline
from c2v_engine.jobs.output import replace_file, write_failure

__all__ = ["JobFacts", "count_reasons", "make_page", "make_report", "write_report"]


def write_report(folder: Path, facts: JobFacts) -> dict[str, Any]:
    """Write ``report.json`` and ``report.html`` into a job's folder.

    Args:
        folder: the job's, with its timeline.
        facts: what the job knows at its end.

    Returns:
        What stands in ``report.json``.

    Raises:
        OutputError: a file can not be read or written.
    """
    try:
        sessions = read_timeline(folder)
    except OSError as error:
        raise write_failure(str(folder / REPORT_NAMES[0]), error, "its timeline") from error
    report = make_report(facts, sessions)
    texts = (json.dumps(report, indent=1) + "\n", make_page(report))
    for name, text in zip(REPORT_NAMES, texts, strict=True):
        replace_file(folder / name, [text.encode()])
    return report
