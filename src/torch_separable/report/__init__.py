"""Reports of a run: a table for the terminal, and one self-contained HTML file."""

from torch_separable.report.page import Page, build_page, write_report
from torch_separable.report.read import RunFiles, read_run
from torch_separable.report.table import results_table

__all__ = ["Page", "RunFiles", "build_page", "read_run", "results_table", "write_report"]
