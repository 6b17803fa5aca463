"""The HTML report of a run: one self-contained page."""

from clapforget.report.page import build_report

__all__ = ["build_report"]
