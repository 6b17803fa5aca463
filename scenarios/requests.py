"""What a stream asks for: to learn classes, or to forget them."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

from clapforget.errors import UserError

__all__ = ["Forget", "Learn", "Request"]


@dataclass(frozen=True, init=False)
class _ClassRequest:
    classes: tuple[int, ...]
    """The class labels, each once, in the order in which they were given."""

    letter: ClassVar[str]

    def __init__(self, classes: Iterable[int]) -> None:
        """:param classes: class labels.

        :raises UserError: if there is none, one is given twice, or one is no label.
        """
        object.__setattr__(self, "classes", _labels(type(self).__name__, classes))

    @property
    def text(self) -> str:
        """The request as a word of a sequence: ``L0-9``, ``F3``, ``F12,14``."""
        parts: list[str] = []
        for first, last in _runs(self.classes):
            if last - first >= 2:
                parts.append(f"{first}-{last}")
            else:
                parts += map(str, range(first, last + 1))
        return self.letter + ",".join(parts)

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, init=False)
class Learn(_ClassRequest):
    """Learn these classes: ``Learn(range(0, 10))``."""

    kind: ClassVar[Literal["learn"]] = "learn"
    letter: ClassVar[str] = "L"


@dataclass(frozen=True, init=False)
class Forget(_ClassRequest):
    """Forget these classes: ``Forget([3])``."""

    kind: ClassVar[Literal["forget"]] = "forget"
    letter: ClassVar[str] = "F"


Request: TypeAlias = Learn | Forget


def _labels(kind: str, classes: Iterable[int]) -> tuple[int, ...]:
    example = f"give a list of class labels, as in {kind}([3, 4])"
    try:
        labels = tuple(operator.index(label) for label in classes)
    except TypeError as error:
        raise UserError(f"{kind}({classes!r}) does not hold whole numbers", example) from error
    if not labels:
        raise UserError(f"a {kind} request names no class", example)
    if min(labels) < 0:
        raise UserError(f"{kind} names class {min(labels)}", "class labels start at 0")
    twice = next((label for i, label in enumerate(labels) if label in labels[:i]), None)
    if twice is not None:
        raise UserError(f"{kind} names class {twice} twice", "name each class once")
    return labels


def _runs(labels: tuple[int, ...]) -> list[tuple[int, int]]:
    """Split into stretches that rise by one: ``(0, 1, 2, 7) -> [(0, 2), (7, 7)]``."""
    runs: list[tuple[int, int]] = []
    for label in labels:
        if runs and label == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], label)
        else:
            runs.append((label, label))
    return runs
