"""Requests as text (``L0-9 L10-19 F3 L20-29 F12,14``), their check, and what holds after them."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from clapforget.errors import UserError
from clapforget.scenarios.requests import Forget, Learn, Request

__all__ = [
    "check_requests",
    "forgotten_after",
    "format_sequence",
    "learned_in",
    "parse_sequence",
    "retained_after",
]

_EXAMPLE = "write L (learn) or F (forget) and class labels, as in 'L0-9 L10-19 F3 L20-29 F12,14'"
_TOKEN = re.compile(r"([LF])([0-9]{1,9}(?:-[0-9]{1,9})?(?:,[0-9]{1,9}(?:-[0-9]{1,9})?)*)")
_LONGEST_RANGE = 100_000  # a slip of the finger should not ask for a billion labels


def parse_sequence(text: str) -> list[Request]:
    """Read a sequence; the inverse of :func:`format_sequence`.

    :param text: words separated by white space; each is ``L`` or ``F`` and labels or ranges.
    :raises UserError: for malformed text, with the bad word and its position (from 1).
    """
    words = text.split()
    if not words:
        raise UserError("the sequence is empty", _EXAMPLE)
    return [_parse_word(word, position) for position, word in enumerate(words, start=1)]


def _parse_word(word: str, position: int) -> Request:
    where = f"request {position} of the sequence, {word[:60]!r},"
    match = _TOKEN.fullmatch(word)
    if match is None:
        raise UserError(f"{where} cannot be read", _EXAMPLE)
    labels: list[int] = []
    for part in match[2].split(","):
        first, _, last = part.partition("-")
        low, high = int(first), int(last or first)
        if not low <= high < low + _LONGEST_RANGE:
            fault = "runs backwards" if high < low else "is too long"
            raise UserError(f"{where} holds the range {part}, which {fault}", _EXAMPLE)
        labels += range(low, high + 1)
    try:
        return Learn(labels) if match[1] == "L" else Forget(labels)
    except UserError as error:
        raise UserError(f"{where} is wrong: {error}") from error


def format_sequence(requests: Sequence[Request]) -> str:
    """Write requests as text; :func:`parse_sequence` reads it back unchanged."""
    return " ".join(request.text for request in requests)


def check_requests(
    requests: Sequence[Request], num_classes: int, known: Collection[int] | None = None
) -> None:
    """Make sure that every request can be carried out in its turn.

    A forgotten class may be learned again.

    :param num_classes: labels are ``0 .. num_classes - 1``.
    :param known: labels known from pretraining, which may be forgotten without a Learn before;
        ``None`` if nothing is known about pretraining.
    :raises UserError: for the first request, in order, that cannot be carried out.
    """
    if not any(isinstance(request, Learn) for request in requests):
        fault = "holds no Learn request" if requests else "is empty"
        raise UserError(f"the sequence {fault}", _EXAMPLE)
    learned: set[int] = set()
    forgotten: set[int] = set()
    for position, request in enumerate(requests, start=1):
        where = f"request {position} ({request.text})"
        if outside := [label for label in request.classes if label >= num_classes]:
            raise UserError(
                f"{where} names class {outside[0]}, but there are {num_classes} classes",
                f"use labels from 0 to {num_classes - 1}",
            )
        if isinstance(request, Learn):
            if again := [label for label in request.classes if label in learned]:
                raise UserError(
                    f"{where} learns class {again[0]}, which is learned already",
                    "learn each class once, or forget it first",
                )
            learned.update(request.classes)
            forgotten.difference_update(request.classes)
            continue
        if gone := [label for label in request.classes if label in forgotten]:
            raise UserError(
                f"{where} forgets class {gone[0]}, which is forgotten already",
                "leave it out, or learn it again first",
            )
        can_go = learned.union(known or ())
        if never := [label for label in request.classes if label not in can_go]:
            raise UserError(
                f"{where} forgets class {never[0]}, which was never learned",
                "learn it in an earlier request, or leave it out",
            )
        learned.difference_update(request.classes)
        forgotten.update(request.classes)
        if not learned:
            raise UserError(
                f"{where} leaves no learned class",
                "forget fewer classes, or learn others in an earlier request",
            )


def retained_after(requests: Sequence[Request], i: int) -> tuple[int, ...]:
    """Labels learned and not forgotten once request ``i`` (from 0) is done, in learning order."""
    learned: dict[int, None] = {}
    for request in requests[: i + 1]:
        for label in request.classes:
            if isinstance(request, Learn):
                learned[label] = None
            else:
                learned.pop(label, None)
    return tuple(learned)


def forgotten_after(requests: Sequence[Request], i: int) -> tuple[int, ...]:
    """Labels forgotten and not learned again once request ``i`` is done, in forgetting order."""
    forgotten: dict[int, None] = {}
    for request in requests[: i + 1]:
        for label in request.classes:
            if isinstance(request, Forget):
                forgotten[label] = None
            else:
                forgotten.pop(label, None)
    return tuple(forgotten)


def learned_in(requests: Sequence[Request]) -> frozenset[int]:
    """Labels that any request learns, forgotten later or not."""
    learns = (request.classes for request in requests if isinstance(request, Learn))
    return frozenset(label for classes in learns for label in classes)
