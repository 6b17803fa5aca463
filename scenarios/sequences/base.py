"""Sequences by name, made for any data from its number of learnable classes and a seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from clapforget.errors import UserError
from clapforget.registry import Registry
from clapforget.scenarios.requests import Forget, Learn, Request
from clapforget.scenarios.sequence import retained_after

__all__ = ["SEQUENCES", "Material", "NamedSequence", "build_sequence", "named_sequence"]


@dataclass(frozen=True)
class Material:
    """What a sequence is made of. Labels count in the scenario's class order."""

    tasks: tuple[tuple[int, ...], ...]
    """Classes of each task, in learning order."""
    rng: np.random.Generator

    @property
    def classes(self) -> tuple[int, ...]:
        """All classes that may be learned."""
        return tuple(label for task in self.tasks for label in task)

    def split(self, parts: int) -> list[Learn]:
        """Learn all classes in so many requests, of nearly equal size.

        :raises UserError: for more requests than classes.
        """
        if parts > len(self.classes):
            raise UserError(
                f"{len(self.classes)} classes cannot be learned in {parts} requests",
                "choose a shorter sequence, or a scenario of more classes",
            )
        return [Learn(part.tolist()) for part in np.array_split(self.classes, parts)]

    def forget_one(self, requests: list[Request], count: int = 1) -> Forget:
        """Forget some of what these requests leave learned, drawn at random; one class stays.

        :raises UserError: if too few are learned.
        """
        kept = retained_after(requests, len(requests) - 1)
        if count >= len(kept):
            raise UserError(
                f"{count} classes are to be forgotten and {len(kept)} are learned",
                "choose another sequence, or a scenario of more classes",
            )
        return Forget(sorted(int(c) for c in self.rng.choice(kept, count, replace=False)))


@dataclass(frozen=True)
class NamedSequence:
    """A sequence by name."""

    description: str
    build: Callable[[Material], list[Request]]
    online: int = 0
    """Samples in an experience, each seen once; 0: a request is one experience."""


SEQUENCES: Registry[NamedSequence] = Registry("sequence", "clapforget.scenarios.sequences")


def named_sequence(
    name: str, description: str, online: int = 0
) -> Callable[[Callable[[Material], list[Request]]], Callable[[Material], list[Request]]]:
    """Decorator that files a function as a named sequence.

    :param description: one line for ``clapforget list``. :param online: see :class:`NamedSequence`.
    """

    def file(build: Callable[[Material], list[Request]]) -> Callable[[Material], list[Request]]:
        SEQUENCES.register(name)(NamedSequence(description, build, online))
        return build

    return file


def build_sequence(
    name: str, tasks: tuple[tuple[int, ...], ...], rng: np.random.Generator
) -> list[Request]:
    """The requests of a named sequence.

    :param tasks: classes of each of the scenario's tasks.
    :raises UserError: for an unknown name, or too few classes.
    """
    return SEQUENCES.get(name).build(Material(tasks, rng))
