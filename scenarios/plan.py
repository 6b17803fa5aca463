"""From a few numbers to a seeded class order and a list of requests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from clapforget.scenarios.data import ImageData
from clapforget.scenarios.requests import Forget, Learn, Request
from clapforget.scenarios.sequence import retained_after

__all__ = ["Plan", "Wish"]

Wish = Literal["known", "new", "any"]
"""Which class to forget: one known from pretraining, one that only the stream taught, or either."""


@dataclass(frozen=True)
class Plan:
    """A stream in outline. Task ``k`` learns a block of labels that follows those before it."""

    tasks: tuple[tuple[int, int], ...]
    """How many known and how many new classes each task learns."""
    forgets: Mapping[int, tuple[Wish, ...]]
    """After which task (from 1) one request forgets how many classes, and of what kind."""
    unseen: tuple[int, ...] = ()
    """Canonical ids of new classes that no task takes."""

    @property
    def blocks(self) -> tuple[tuple[int, ...], ...]:
        """Labels of each task, in the plan's class order."""
        ends = np.cumsum([sum(size) for size in self.tasks]).tolist()
        return tuple(tuple(range(end - sum(size), end)) for end, size in zip(ends, self.tasks))

    def order(self, data: ImageData, rng: np.random.Generator) -> tuple[int, ...]:
        """A class order: the tasks, each shuffled; the other known, the other new, the unseen.

        :param data: in canonical order.
        """
        known = data.known or frozenset()
        kept = {*known, *self.unseen}
        old = rng.permutation(sorted(known)).tolist()
        new = rng.permutation([c for c in range(data.num_classes) if c not in kept]).tolist()
        unseen = rng.permutation(sorted(self.unseen)).tolist()
        order: list[int] = []
        for num_known, num_new in self.tasks:
            block, old, new = old[:num_known] + new[:num_new], old[num_known:], new[num_new:]
            order += rng.permutation(block).tolist()
        return tuple(int(c) for c in (*order, *old, *new, *unseen))

    def requests(self, data: ImageData, rng: np.random.Generator) -> list[Request]:
        """The requests on data in its final order. Classes of one Forget come from different tasks.

        Where no learned class is of the wished kind, as a hand-made order may have it, any other
        is taken; nothing is forgotten that would leave no learned class.
        """
        requests: list[Request] = []
        task_of: dict[int, int] = {}
        for number, size in enumerate(map(sum, self.tasks), start=1):
            block = range(len(task_of), len(task_of) + size)
            requests.append(Learn(block))
            task_of.update(dict.fromkeys(block, number))
            chosen: list[int] = []
            for wish in self.forgets.get(number, ()):
                used = {task_of[label] for label in chosen}
                retained = retained_after(requests, len(requests) - 1)
                free = [label for label in retained if task_of[label] not in used]
                fitting = [label for label in free if _fits(data, label, wish)] or free
                if fitting and len(retained) > len(chosen) + 1:
                    chosen.append(int(rng.choice(fitting)))
            if chosen:
                requests.append(Forget(chosen))
        return requests


def _fits(data: ImageData, label: int, wish: Wish) -> bool:
    return wish == "any" or (label in (data.known or ())) == (wish == "known")
