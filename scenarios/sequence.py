"""Requests as text (``L0-9 N10-19 F3 F@57,61 F"red zorup"``), their check, and what holds after them."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from clapforget.errors import UserError
from clapforget.scenarios.requests import Forget, Learn, LearnForNow, Request

__all__ = [
    "check_requests",
    "forgotten_after",
    "format_sequence",
    "learned_for_now_after",
    "learned_in",
    "parse_sequence",
    "retained_after",
]

_EXAMPLE = (
    "write L (learn), N (learn for now) or F (forget) and class labels, F@ and sample ids or a file "
    "of them, or F and a phrase of captions in quotes, as in "
    "'L0-9 L10-19 F3 N20-29 F@57,61-64 F@ids.txt F\"red zorup\"'"
)
_WORD = re.compile(r'(?:[^\s"]|"[^"]*")+|"')
_LABELS = re.compile(r"([LNF]@?)([0-9]{1,9}(?:-[0-9]{1,9})?(?:,[0-9]{1,9}(?:-[0-9]{1,9})?)*)")
_LONGEST_RANGE = 100_000  # a slip of the finger should not ask for a billion labels


def parse_sequence(text: str) -> list[Request]:
    """Read a sequence; the inverse of :func:`format_sequence`.

    ==============  ===============================================================================
    ``L0-9,12``     learn classes, for good
    ``N20``         learn classes for now
    ``F3``          forget classes
    ``F@57,61-64``  forget samples by id; ``F@ids.txt``: the ids in a file, separated by space or
                    commas
    ``F"red ant"``  forget all image-caption pairs whose caption has the phrase, or with ``re:``
                    before it matches the regular expression
    ==============  ===============================================================================

    :param text: words separated by white space.
    :raises UserError: for malformed text, with the bad word and its position (from 1).
    """
    words = _WORD.findall(text)
    if not words:
        raise UserError("the sequence is empty", _EXAMPLE)
    return [_parse_word(word, position) for position, word in enumerate(words, start=1)]


def _parse_word(word: str, position: int) -> Request:
    where = f"request {position} of the sequence, {word[:60]!r},"
    match = _LABELS.fullmatch(word)
    try:
        if word[:2] == 'F"' and word[-1] == '"' and len(word) > 3:
            return Forget(pairs=word[2:-1])
        if match is None and word[:2] == "F@" and word[2:].strip('",0123456789-'):
            return Forget(samples=_ids_in(Path(word[2:].strip('"'))))
        if match is None or match[1] in ("L@", "N@"):
            raise UserError(f"{where} cannot be read", _EXAMPLE)
        numbers = _numbers(match[2], where)
        if match[1] == "F@":
            return Forget(samples=numbers)
        return {"L": Learn, "N": LearnForNow, "F": Forget}[match[1]](numbers)
    except UserError as error:
        if str(error).startswith(where):
            raise
        raise UserError(f"{where} is wrong: {error}") from error


def _numbers(text: str, where: str) -> list[int]:
    numbers: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        low, high = int(first), int(last or first)
        if not low <= high < low + _LONGEST_RANGE:
            fault = "runs backwards" if high < low else "is too long"
            raise UserError(f"{where} holds the range {part}, which {fault}", _EXAMPLE)
        numbers += range(low, high + 1)
    return numbers


def _ids_in(path: Path) -> list[int]:
    try:
        words = re.split(r"[\s,]+", path.expanduser().read_text().strip())
        return [int(word) for word in words]
    except (OSError, ValueError) as error:
        fault = error.strerror if isinstance(error, OSError) else "it holds more than whole numbers"
        raise UserError(
            f"sample ids cannot be read from {path} ({fault})", "give a text file of whole numbers"
        ) from error


def format_sequence(requests: Sequence[Request]) -> str:
    """Write requests as text; :func:`parse_sequence` reads it back unchanged."""
    return " ".join(request.text for request in requests)


def check_requests(
    requests: Sequence[Request],
    num_classes: int,
    known: Collection[int] | None = None,
    num_samples: int | None = None,
) -> None:
    """Make sure that every request can be carried out in its turn.

    A forgotten class may be learned again, and what was learned for now may be learned for good. To
    forget once more what is forgotten already is no mistake: there is nothing to do.

    :param num_classes: labels are ``0 .. num_classes - 1``.
    :param known: labels known from pretraining, which may be forgotten without a Learn before;
        ``None`` if nothing is known about pretraining: then any may.
    :param num_samples: sample ids are ``0 .. num_samples - 1``; ``None``: not checked.
    :raises UserError: for the first request, in order, that cannot be carried out.
    """
    if not requests:
        raise UserError("the sequence is empty", _EXAMPLE)
    for i, request in enumerate(requests):
        where = f"request {i + 1} ({request.text[:60]})"
        if outside := [label for label in request.classes if label >= num_classes]:
            raise UserError(
                f"{where} names class {outside[0]}, but there are {num_classes} classes",
                f"use labels from 0 to {num_classes - 1}",
            )
        before = retained_after(requests, i - 1) if i else ()
        if isinstance(request, Learn):
            for_now = learned_for_now_after(requests, i - 1) if i else ()
            promotes = not isinstance(request, LearnForNow)
            taken = set(before) - (set(for_now) if promotes else set())
            if again := [label for label in request.classes if label in taken]:
                raise UserError(
                    f"{where} learns class {again[0]}, which is learned already",
                    "learn each class once, or forget it first",
                )
            continue
        samples = () if num_samples is None else request.samples
        if beyond := [number for number in samples if number >= (num_samples or 0)]:
            raise UserError(
                f"{where} names sample {beyond[0]}, but there are {num_samples} train samples",
                f"use ids from 0 to {(num_samples or 0) - 1}",
            )
        can_go = {*before, *(forgotten_after(requests, i - 1) if i else ()), *(known or ())}
        if never := [c for c in request.classes if c not in can_go and known is not None]:
            raise UserError(
                f"{where} forgets class {never[0]}, which was never learned",
                "learn it in an earlier request, or leave it out",
            )
        if before and not set(before) - set(request.classes):
            raise UserError(
                f"{where} leaves no learned class",
                "forget fewer classes, or learn others in an earlier request",
            )


def retained_after(requests: Sequence[Request], i: int) -> tuple[int, ...]:
    """Labels learned and not forgotten once request ``i`` (from 0) is done, in learning order."""
    learned: dict[int, None] = {}
    for request in requests[: i + 1]:
        for label in request.classes:
            learned.pop(label, None)
            if isinstance(request, Learn):
                learned[label] = None
    return tuple(learned)


def learned_for_now_after(requests: Sequence[Request], i: int) -> tuple[int, ...]:
    """Those of :func:`retained_after` that were learned for now and not for good."""
    for_now: set[int] = set()
    for request in requests[: i + 1]:
        if isinstance(request, LearnForNow):
            for_now.update(request.classes)
        else:
            for_now.difference_update(request.classes)
    return tuple(label for label in retained_after(requests, i) if label in for_now)


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
