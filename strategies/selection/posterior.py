"""Keep what the posterior is most uncertain about: every score of :mod:`clapforget.uncertainty`."""

from __future__ import annotations

from torch import Tensor

from clapforget.errors import UserError
from clapforget.strategies.selection.base import SELECTORS, Candidates, Selector
from clapforget.uncertainty import SCORES

__all__ = ["posterior_score"]


def posterior_score(name: str) -> Selector:
    """A selector that keeps the samples with the highest value of one uncertainty."""

    def select(candidates: Candidates) -> Tensor:
        if candidates.predictive is None:
            raise UserError(
                f"exemplar score {name!r} needs a posterior, which this strategy has not",
                "use score='random', or a strategy of clapforget",
            )
        return candidates.predictive.score(name)

    return select


for _name in SCORES:
    SELECTORS.register(_name)(posterior_score(_name))
