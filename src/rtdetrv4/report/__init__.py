"""`report.html`: a run, an evaluation or a comparison on one page, drawn from the files in its folder."""

from rtdetrv4.report.comparison import write_comparison_report
from rtdetrv4.report.content import FACTS_FILE, METRICS_FILE, REPORT_FILES, REPORT_PAGE
from rtdetrv4.report.page import write_report

__all__ = ["FACTS_FILE", "METRICS_FILE", "REPORT_FILES", "REPORT_PAGE", "write_comparison_report", "write_report"]
