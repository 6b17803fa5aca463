"""The HTML report of a run, or of a single certificate: one self-contained page."""

from clapforget.report.certified import build_certificate
from clapforget.report.page import build_report

__all__ = ["build_certificate", "build_report"]
