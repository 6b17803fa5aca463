"""What a case of the truth bench is, and where its kinds are filed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from clapforget.bench.verify_world import World
from clapforget.clip import Clip
from clapforget.verify.subject import Subject

__all__ = ["KINDS", "Case", "Kind", "NotMade", "bare", "cases", "is_right", "kind", "made"]


class NotMade(Exception):
    """An edit that did not do, to this request, what makes the truth of its kind known."""


def made(done: bool, why: str) -> None:
    """:raises NotMade: unless done."""
    if not done:
        raise NotMade(why)


@dataclass(eq=False)
class Case:
    """Two models, and what was to be forgotten."""

    before: Subject
    after: Subject
    forget: tuple[int, ...]
    also_kept: tuple[int, ...] = ()
    """Classes to be kept beside those that the world keeps."""


@dataclass(frozen=True)
class Kind:
    """How a case is made and what is true of it."""

    name: str
    truth: str
    make: Callable[[World], Case]
    or_else: tuple[str, ...] = ()
    """Other verdicts that are accepted, where the words overlap or a doubt is in order. Never ``forgotten``."""


def is_right(verdict: str, truth: str, accepted: tuple[str, ...] = ()) -> bool:
    """Whether a verdict says what is true: an accepted one does too, but for ``inconclusive``, which says nothing
    and is right only of what cannot be known."""
    return verdict == truth or (verdict in accepted and verdict != "inconclusive")


KINDS: list[Kind] = []


def kind(
    name: str, truth: str, *or_else: str
) -> Callable[[Callable[[World], Case]], Callable[[World], Case]]:
    """File a function that makes a case. :param or_else: see :class:`Kind`."""

    def file(make: Callable[[World], Case]) -> Callable[[World], Case]:
        KINDS.append(Kind(name, truth, make, or_else))
        return make

    return file


def bare(world: World, after: Clip) -> Case:
    """The world's model and another, no head."""
    return Case(world.before, Subject(after), world.forget)


def cases(
    world: World, kinds: Sequence[Kind], missing: list[str], say: Callable[[str], None]
) -> Iterator[tuple[Kind, Case]]:
    """The case of each kind, made when it is asked for. :param missing: takes those that could not be made, with
    the reason; they are no cases. :param say: hears of them."""
    for kind in kinds:
        try:
            case = kind.make(world)
        except NotMade as why:
            missing.append(f"{world.seed} {kind.name}: {why}")
            say(f"{missing[-1]}; left out")
            continue
        yield kind, case
