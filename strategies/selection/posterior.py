"""Keep what the posterior is most uncertain about: every score of :mod:`clapforget.uncertainty`.

Higher is more uncertain in all of them; ``"name:low"`` keeps what it is surest of. The released
CLAP program keeps ``entropy``, ``variance:low`` and ``energy``, but computes the last two over
images and Monte Carlo draws mixed up.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from clapforget.strategies.selection.base import Candidates, selector, unsaid
from clapforget.uncertainty import SCORES

__all__ = ["energy", "expected_energy", "posterior_score"]


def posterior_score(name: str) -> Callable[[Candidates], Tensor]:
    """The score that is one field of the predictive."""

    def score(candidates: Candidates) -> Tensor:
        predictive = candidates.need_predictive(name)
        if getattr(predictive, name) is None:
            raise unsaid(name)
        return predictive.score(name)

    return score


@selector("energy")
def energy(candidates: Candidates) -> Tensor:
    """Energy of the mean logits, ``-logsumexp`` (Liu et al. 2020), [n]: high is unlike what was
    learned."""
    return -posterior_score("energy")(candidates)


@selector("expected_energy", field="expected_energy")
def expected_energy(candidates: Candidates) -> Tensor:
    """Energy averaged over draws of the logits, ``-E[logsumexp]``, [n]: what the released program
    means by energy."""
    return -posterior_score("expected_energy")(candidates)


for _name in SCORES:
    selector(_name, field=_name)(posterior_score(_name))
