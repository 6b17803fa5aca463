"""What the verifier's witnesses said of a request: the strip of all of them, and the curves of attacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from clapforget.report import diagrams
from clapforget.report.diagrams import Witness
from clapforget.report.load import items, mapping, number, text

__all__ = ["curves", "rounds", "witness_strip"]


def witness_strip(certificate: Mapping[str, Any], request: int) -> Markup | None:
    """One row a witness that was judged, or of the image tower, on one scale: 0 as never learned, 1 as
    known.

    :param request: its number, for screen readers. :returns: None where no certificate says it.
    """
    rows = [row for entry in items(certificate.get("evidence")) if (row := _row(mapping(entry)))]
    if not rows:
        return None
    return Markup(diagrams.witnesses(rows, f"Request {request}: every witness, before and after"))


def _row(entry: Mapping[str, Any]) -> Witness | None:
    role, visual = text(entry.get("role")), text(entry.get("group")) == "visual"
    if role not in ("both", "accuses") and not (visual and role == "shown"):
        return None
    keys = ("value", "reference", "residue", "lead", "before", "margin")
    value, reference, residue, lead, before, margin = (number(entry.get(key)) for key in keys)
    if value is None or reference is None:
        return None
    apart = None if before is None else before - reference
    if entry.get("absolute") is True:
        scale = apart if apart is not None and apart > 0.05 else 1.0
    elif residue is None:
        return None
    else:  # (value − reference) = residue · scale, scale signed
        scale = (value - reference) / residue if abs(residue) > 1e-3 else (lead or apart or 0.0)
    if not scale:
        return None
    ends = [end for x in items(entry.get("interval")) if (end := number(x)) is not None]
    ends = ends if len(ends) == 2 else [value, value]
    low, high = sorted((end - reference) / scale for end in ends)
    allowed = (margin or 0.0) / (abs(scale) if entry.get("absolute") is True else 1.0)
    holds = entry.get("holds")
    return Witness(
        text(entry.get("title")) or text(entry.get("name")), (value - reference) / scale, (low, high),
        None if apart is None else apart / scale, allowed, role == "both",
        holds if isinstance(holds, bool) else None,
    )  # fmt: skip


def curves(certificate: Mapping[str, Any], request: int) -> list[dict[str, Any]]:
    """The course of every attack that trains: title and figure."""
    found = []
    for entry in map(mapping, items(certificate.get("evidence"))):
        steps = [x for x in map(number, items(entry.get("curve_at"))) if x is not None]
        lines = {
            name: [x for x in map(number, items(values)) if x is not None]
            for name, values in mapping(entry.get("curve")).items()
        }
        lines = {name: v for name, v in lines.items() if v and len(v) == len(steps)}
        if "forget" in lines:
            title = text(entry.get("title"))
            label = f"Request {request}: {title}"
            found.append({"title": title, "plot": Markup(diagrams.attack(steps, lines, label))})
    return found


def rounds(certificate: Mapping[str, Any]) -> tuple[list[dict[str, Any]], str]:
    """What each round came to where the forgetter was repeated until verified, and how it ended."""
    until = mapping(mapping(certificate.get("forgetter")).get("until"))
    kept = number(until.get("kept"))
    rows = [
        {"number": i, "kept": i == kept, **{k: text(r.get(k)) for k in ("verdict", "rule", "weakest")}}
        for i, r in enumerate(map(mapping, items(until.get("rounds"))), start=1)
    ]  # fmt: skip
    budget = number(until.get("budget"))
    if not until:
        return [], ""
    ended = text(until.get("ended"))
    if ended == "budget":
        return rows, f"The budget of {budget or 0:.0f} rounds ended before it was called forgotten."
    return rows, f"Ended: {ended}, with a budget of {budget or 0:.0f} rounds."
