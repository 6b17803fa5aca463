"""Sequence ``bursts``: requests to forget arrive together."""

from __future__ import annotations

from clapforget.scenarios.requests import Learn, Request
from clapforget.scenarios.sequences.base import Material, named_sequence

__all__ = ["bursts"]


@named_sequence("bursts", "3 forget requests on end, of 1, 2 and 1 classes, halfway and at the end")
def bursts(material: Material) -> list[Request]:
    """Half of the tasks, a burst, the others, a burst."""
    requests: list[Request] = []
    half = -(-len(material.tasks) // 2)
    for tasks in (material.tasks[:half], material.tasks[half:]):
        requests += [Learn(task) for task in tasks]
        for count in (1, 2, 1):
            requests.append(material.forget_one(requests, count))
    return requests
