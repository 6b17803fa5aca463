"""Sequence ``learn-only``: nothing is forgotten; the control of all others."""

from __future__ import annotations

from clapforget.scenarios.requests import Learn, Request
from clapforget.scenarios.sequences.base import Material, named_sequence

__all__ = ["learn_only"]


@named_sequence("learn-only", "every task, no forget request")
def learn_only(material: Material) -> list[Request]:
    """One Learn request a task."""
    return [Learn(task) for task in material.tasks]
