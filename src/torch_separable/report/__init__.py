"""Showing a run to a person: a table for the terminal, and one HTML file that opens anywhere."""

from torch_separable.report.page import build_report, write_report
from torch_separable.report.table import results_table

__all__ = ["build_report", "results_table", "write_report"]
