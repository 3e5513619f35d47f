"""What people look at: tables, pictures, a page, and what moved between two results."""

from c2v_engine.bench.report.compare import Comparison, compare
from c2v_engine.bench.report.page import write_report
from c2v_engine.bench.report.read import Results, read_results
from c2v_engine.bench.report.tables import summary_lines

__all__ = [
    "Comparison",
    "Results",
    "compare",
    "read_results",
    "summary_lines",
    "write_report",
]
