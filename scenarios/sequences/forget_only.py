"""Sequence ``forget-only``: everything is learned at once, then classes go one by one."""

from __future__ import annotations

from clapforget.scenarios.requests import Learn, Request
from clapforget.scenarios.sequences.base import Material, named_sequence

__all__ = ["forget_only"]


@named_sequence("forget-only", "all classes at once, then 5 forget requests of one class")
def forget_only(material: Material) -> list[Request]:
    """One Learn request, five Forget requests."""
    requests: list[Request] = [Learn(material.classes)]
    for _ in range(5):
        requests.append(material.forget_one(requests))
    return requests
