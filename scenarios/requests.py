"""What a stream asks for: to learn classes, for good or for now, or to forget classes or samples."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

from clapforget.errors import UserError

__all__ = ["Forget", "Learn", "LearnForNow", "Request"]


@dataclass(frozen=True, init=False)
class Learn:
    """Learn these classes, for good: ``Learn(range(0, 10))``."""

    classes: tuple[int, ...]
    """The class labels, each once, in the order in which they were given."""

    kind: ClassVar[Literal["learn"]] = "learn"
    letter: ClassVar[str] = "L"

    def __init__(self, classes: Iterable[int]) -> None:
        """:param classes: class labels.

        :raises UserError: if there is none, one is given twice, or one is no label.
        """
        object.__setattr__(self, "classes", _numbers(type(self).__name__, "class", classes))

    @property
    def text(self) -> str:
        """The request as a word of a sequence: ``L0-9``."""
        return self.letter + _ranges(self.classes)

    @property
    def title(self) -> str:
        """What a table calls it."""
        return self.text

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, init=False)
class LearnForNow(Learn):
    """Learn these classes so that a later Forget can take exactly that back: ``N5``.

    A later ``Learn`` of the same classes keeps them for good (the three kinds of request of CLPU,
    Liu et al., CoLLAs 2022: remember, temporary, forget).
    """

    letter: ClassVar[str] = "N"


@dataclass(frozen=True, init=False)
class Forget:
    """Forget classes, samples, or all image-caption pairs that a phrase or a rule finds.

    ``Forget([3])``, ``Forget(samples=[12, 57])``, ``Forget(pairs="red zorup")``.
    """

    classes: tuple[int, ...]
    samples: tuple[int, ...]
    """Sample ids: rows of the data's train images, which no reordering and no split changes."""
    pairs: str
    """A phrase: whole words, in any case, one after the other in a caption. With ``re:`` before it,
    a regular expression that is searched for in a caption."""

    kind: ClassVar[Literal["forget"]] = "forget"
    letter: ClassVar[str] = "F"

    def __init__(
        self, classes: Iterable[int] = (), *, samples: Iterable[int] = (), pairs: str = ""
    ) -> None:
        """Give one of the three.

        :raises UserError: for none or several of them, a number that is given twice or is none, or
            a rule that is no regular expression.
        """
        chosen = _numbers("Forget", "sample", samples, may_be_empty=True)
        others = bool(chosen or pairs)
        labels = _numbers("Forget", "class", classes, may_be_empty=others)
        if sum(map(bool, (labels, chosen, pairs))) > 1:
            raise UserError(
                "a Forget request names classes, samples or pairs, not several of them",
                "make a request of each",
            )
        object.__setattr__(self, "classes", labels)
        object.__setattr__(self, "samples", chosen)
        object.__setattr__(self, "pairs", _phrase(pairs) if pairs else "")

    @property
    def text(self) -> str:
        """The request as a word of a sequence: ``F12,14``, ``F@3,7-9``, ``F"red zorup"``."""
        if self.pairs:
            return f'F"{self.pairs}"'
        return f"F@{_ranges(self.samples)}" if self.samples else f"F{_ranges(self.classes)}"

    @property
    def title(self) -> str:
        """What a table calls it; of samples only their number, so that no record lists them."""
        n = len(self.samples)
        return f"F@ {n} sample{'s' if n > 1 else ''}" if n else self.text

    def matches(self, caption: str) -> bool:
        """Whether a caption is one of the pairs asked for."""
        rule = self.pairs.removeprefix("re:")
        if rule == self.pairs:
            words = r"\s+".join(map(re.escape, rule.split()))
            rule = rf"(?i)(?<!\w){words}(?!\w)"
        return bool(self.pairs) and re.search(rule, caption) is not None

    def __str__(self) -> str:
        return self.text


Request: TypeAlias = Learn | Forget


def _numbers(
    kind: str, what: str, given: Iterable[int], may_be_empty: bool = False
) -> tuple[int, ...]:
    argument = "samples=" if what == "sample" else ""
    example = f"give a list of whole numbers, as in {kind}({argument}[3, 4])"
    try:
        numbers = tuple(operator.index(number) for number in given)
    except TypeError as error:
        raise UserError(f"{kind}({given!r}) does not hold whole numbers", example) from error
    if not numbers:
        if may_be_empty:
            return ()
        raise UserError(f"a {kind} request names no {what}", example)
    if min(numbers) < 0:
        raise UserError(f"{kind} names {what} {min(numbers)}", f"{what} numbers start at 0")
    if len(set(numbers)) < len(numbers):
        seen: set[int] = set()
        twice = next(n for n in numbers if n in seen or seen.add(n))  # type: ignore[func-returns-value]
        raise UserError(f"{kind} names {what} {twice} twice", f"name each {what} once")
    return numbers


def _phrase(pairs: str) -> str:
    if '"' in pairs or not pairs.strip() or len(pairs.splitlines()) > 1:
        raise UserError(f"the phrase {pairs!r} cannot be written down", 'use one line without "')
    if pairs.startswith("re:"):
        try:
            re.compile(pairs.removeprefix("re:"))
        except re.error as error:
            raise UserError(
                f"the rule {pairs!r} is no regular expression ({error})", "correct it"
            ) from error
        return pairs
    return " ".join(pairs.split())


def _ranges(numbers: tuple[int, ...]) -> str:
    """``0-9``, ``3``, ``12,14``."""
    parts: list[str] = []
    for first, last in _runs(numbers):
        if last - first >= 2:
            parts.append(f"{first}-{last}")
        else:
            parts += map(str, range(first, last + 1))
    return ",".join(parts)


def _runs(numbers: tuple[int, ...]) -> list[tuple[int, int]]:
    """Split into stretches that rise by one: ``(0, 1, 2, 7) -> [(0, 2), (7, 7)]``."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs
