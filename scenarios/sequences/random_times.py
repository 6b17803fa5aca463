"""Sequences with forget requests at random times: ``random-times``, and with online experiences."""

from __future__ import annotations

from clapforget.scenarios.requests import Learn, Request
from clapforget.scenarios.sequences.base import Material, named_sequence

__all__ = ["random_times"]


@named_sequence("random-online", "random-times, in experiences of 50 samples seen once", online=50)
@named_sequence("random-times", "after each task 0, 1 or 2 forget requests, drawn with the seed")
def random_times(material: Material) -> list[Request]:
    """Learn a task, then forget as often as was drawn; at least once in all."""
    counts = material.rng.integers(0, 3, len(material.tasks))
    counts[-1] = max(counts[-1], not counts.any())
    requests: list[Request] = []
    for task, count in zip(material.tasks, counts):
        requests.append(Learn(task))
        for _ in range(count):
            requests.append(material.forget_one(requests))
    return requests
