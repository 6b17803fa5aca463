"""The five verdicts, and a verdict with its reasons."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["VERDICTS", "Judgement"]

VERDICTS = ("forgotten", "suppressed", "retained", "damaged", "inconclusive")


@dataclass
class Judgement:
    """A verdict with its reasons."""

    verdict: str
    rule: str
    weakest: str
    """The evidence that came closest to overturning a good verdict, or the one that decided."""
    claim: str
    not_tested: list[str] = field(default_factory=list)
