"""The five verdicts, and a verdict with its reasons."""

from __future__ import annotations

from dataclasses import dataclass, field

from clapforget.verify.evidence import Evidence

__all__ = ["VERDICTS", "Judgement", "describe"]

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


def describe(piece: Evidence) -> str:
    """One piece of evidence in words."""
    if piece.drop is not None:
        return f"{piece.title}: {piece.before or 0:.1%} before, {piece.value:.1%} after"
    reference = "" if piece.reference is None else f", {piece.reference_name} {piece.reference:.3f}"
    low, high = piece.interval
    was = "" if piece.before is None else f", before {piece.before:.3f}"
    note = f" ({piece.note})" if piece.note else ""
    return f"{piece.title}: {piece.value:.3f} [{low:.3f}, {high:.3f}]{was}{reference}{note}"
