"""What a selector sees, the table of selectors, and how a name says the direction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from clapforget.errors import UserError
from clapforget.posterior import Predictive
from clapforget.registry import Registry

__all__ = ["SELECTORS", "Candidates", "Reads", "Selector", "by_class", "find_selector", "selector", "unsaid"]


Reads = Literal["nothing", "probabilities", "everything"]
"""What a selector reads of the posterior's predictive: only that is computed."""


@dataclass
class Candidates:
    """Samples a memory may keep: new ones, and those it already holds of the same classes."""

    labels: Tensor
    """[n]"""
    predictive: Predictive | None
    """What the strategy's posterior says of them, as much as the selector reads; None where the strategy has no
    posterior."""
    generator: torch.Generator
    features: Tensor | None = None
    """Unit-norm image features [n, d]; None where the strategy gives none."""
    columns: Tensor | None = None
    """Column of each sample's own class in ``predictive``, [n]."""
    k: int = 1
    """The most a class may keep: greedy selectors rank no further."""
    mass: Tensor | None = None
    """How many samples of the stream each stands for, [n]: 1 for a new one, more for an exemplar
    that others were dropped for. None means 1 each."""
    scores: Tensor | None = None
    """Scores of an earlier round, [n], NaN for new samples; None where all are new."""

    def need_features(self, name: str) -> Tensor:
        """Features [n, d]. :raises UserError: where there are none."""
        if self.features is None:
            raise UserError(
                f"exemplar score {name!r} needs image features, which this strategy gives none of",
                "use score='random', or a strategy of clapforget",
            )
        return self.features

    def need_predictive(self, name: str) -> Predictive:
        """The posterior's predictions. :raises UserError: where there are none."""
        if self.predictive is None:
            raise UserError(
                f"exemplar score {name!r} needs a posterior, which this strategy has not",
                "use score='random', or a strategy of clapforget",
            )
        return self.predictive

    def own(self, values: Tensor, name: str) -> Tensor:
        """Entries [n] of each sample's own class in values [n, C] of the predictive.

        :raises UserError: where the strategy does not say which column a class is.
        """
        if self.columns is None:
            raise UserError(
                f"exemplar score {name!r} needs the posterior's column of every class",
                "use a strategy of clapforget, or give add() the columns",
            )
        return values.gather(1, self.columns.to(values.device)[:, None])[:, 0]


@dataclass(frozen=True)
class Selector:
    """A way to rank candidates, with its direction."""

    score: Callable[[Candidates], Tensor]
    """Maps candidates to a score each, [n]; inside a class the highest are kept."""
    two_sided: bool = True
    """Whether ``"name:low"``, which keeps the lowest, means anything."""
    reads: Reads = "everything"
    name: str = ""
    field: str = ""
    """The one field of the predictive that it reads, where not every posterior has it."""

    def check(self, settings: object) -> None:
        """Refuse a posterior that will not say what this score reads.

        :param settings: the posterior's options; what they leave ``unsaid`` are fields of a predictive.
        :raises UserError: before anything is learned.
        """
        if self.field in getattr(settings, "unsaid", ()):
            raise unsaid(self.name)

    def __call__(self, candidates: Candidates) -> Tensor:
        return self.score(candidates)


def unsaid(name: str) -> UserError:
    """That the posterior leaves out what a score reads."""
    return UserError(
        f"exemplar score {name!r} needs draws of the logits, which this posterior has not",
        "use a posterior that samples, or score='mutual_information'",
    )


SELECTORS: Registry[Selector] = Registry("exemplar score", "clapforget.strategies.selection")


def selector(
    name: str, two_sided: bool = True, reads: Reads = "everything", field: str = ""
) -> Callable[[Callable[[Candidates], Tensor]], Callable[[Candidates], Tensor]]:
    """Decorator that registers a function of candidates as a selector."""

    def file(score: Callable[[Candidates], Tensor]) -> Callable[[Candidates], Tensor]:
        SELECTORS.register(name)(Selector(score, two_sided, reads, name, field))
        return score

    return file


def find_selector(name: str) -> Selector:
    """The selector of ``"name"`` (the highest are kept) or ``"name:low"`` (the lowest are).

    :raises UserError: for an unknown name or direction, or a direction where there is one only.
    """
    base, colon, direction = name.partition(":")
    found = SELECTORS.get(base)
    if not colon:
        return found
    if not found.two_sided:
        raise UserError(f"exemplar score {base!r} has one direction only", f"write {base}")
    if direction != "low":
        raise UserError(
            f"exemplar score {base!r} has no direction {direction!r}",
            f"write {base} for the highest, {base}:low for the lowest",
        )
    return replace(found, score=lambda candidates: -found.score(candidates))


def by_class(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of every class side by side, so that all classes are one batch.

    :param labels: [n]. :returns: rows [C, m] of the classes in ascending order, m of the largest
        class, in the order given; and which of them are real [C, m]: the others repeat row 0.
    """
    _, inverse, counts = labels.unique(return_inverse=True, return_counts=True)
    order = inverse.argsort(stable=True)
    place = torch.arange(len(labels), device=labels.device)
    place = place - (counts.cumsum(0) - counts)[inverse[order]]
    shape = (len(counts), int(counts.max()) if len(counts) else 0)
    rows = torch.zeros(shape, dtype=torch.long, device=labels.device)
    real = torch.zeros(shape, dtype=torch.bool, device=labels.device)
    rows[inverse[order], place] = order
    real[inverse[order], place] = True
    return rows, real
