"""Sequence ``relearn``: what was forgotten is learned again, and forgotten once more."""

from __future__ import annotations

from clapforget.scenarios.requests import Forget, Learn, Request
from clapforget.scenarios.sequences.base import Material, named_sequence

__all__ = ["relearn"]


@named_sequence("relearn", "two classes are forgotten, learned again, and one forgotten once more")
def relearn(material: Material) -> list[Request]:
    """All tasks but the last, Forget, the last task, Learn again, Forget one of the two."""
    tasks = material.tasks
    requests: list[Request] = [Learn(task) for task in tasks[: max(len(tasks) - 1, 1)]]
    forget = material.forget_one(requests, 2)
    requests += [forget, *[Learn(task) for task in tasks[1:][-1:]], Learn(forget.classes)]
    return [*requests, Forget(forget.classes[:1])]
