"""Sequences that alternate: ``alternating``, and the same with online experiences."""

from __future__ import annotations

from clapforget.scenarios.requests import Learn, Request
from clapforget.scenarios.sequences.base import Material, named_sequence

__all__ = ["alternating"]


@named_sequence(
    "alternating-online", "alternating, in experiences of 50 samples seen once", online=50
)
@named_sequence("alternating", "after every task one of the classes learned so far is forgotten")
def alternating(material: Material) -> list[Request]:
    """Learn a task, forget a class, and so on."""
    requests: list[Request] = []
    for task in material.tasks:
        requests.append(Learn(task))
        requests.append(material.forget_one(requests))
    return requests
