"""The evidence of an exact head: the same as if made again from what remains."""

from __future__ import annotations

from typing import Any

import torch

from clapforget.posterior.exact import ExactHead
from clapforget.posterior.witness import refit_difference
from clapforget.verify import Evidence

__all__ = ["refit_evidence", "refit_words"]

_EXACT = 1e-6


def refit_evidence(strategy: Any, experience: Any, forgetting: dict[str, Any]) -> list[Evidence]:
    """What a request's certificate says of an exact head; nothing of other heads.

    The training images of the classes that remain are looked at for it, their features taken from
    the strategy's cache where it has them. Where sums were carried over to a changed image tower,
    they are not those of a refitted head: then the error of that is told instead.
    """
    head = strategy.model.head
    if not isinstance(head, ExactHead):
        return []
    if head.sums.carried.any():
        drift = forgetting.get("losses", {}).get("drift")
        if drift is None:
            return []
        error = drift["relative_error"]
        return [Evidence(
            "posterior_drift", "what the head knows, carried over to the changed image tower: squared "
            "error on exemplars left out, over their squared length", "head", error, (error, error),
            reference=0.0, reference_name="exact", n=drift["exemplars"],
        )]  # fmt: skip
    data = experience.data
    rows = data.rows("train", head.labels[head.sums.count > 0].tolist())
    deleted = torch.tensor(getattr(experience, "forgotten_samples", ()), dtype=torch.long)
    rows = rows[~torch.isin(rows, deleted)]
    if not len(rows):
        return []
    mirrored = [False, True] if data.flip else [False]
    v = torch.stack([strategy.cache(data.train, rows, m) for m in mirrored], 1)
    labels, ids = data.train.targets[rows].to(v.device), rows.to(v.device)
    value = refit_difference(head, v, labels, ids)
    return [Evidence(
        "posterior_refit_difference", "the head beside one made again from the remaining images: "
        "largest difference", "head", value, (value, value), reference=_EXACT,
        reference_name="rounding", n=len(rows), holds=value <= _EXACT,
        note="proves the head: class means, covariance, temperature, answers; nothing of the towers",
    )]  # fmt: skip


def refit_words(evidence: list[Evidence]) -> str:
    """The same in a sentence for someone who does not read tables; empty without that evidence."""
    found = next((e for e in evidence if e.name == "posterior_refit_difference"), None)
    if found is None:
        return ""
    if not found.holds:
        return (
            f" The head, which stores what was learned, differs by {found.value:.1e} from one made "
            "again without these images."
        )
    return (
        " The head, which stores what was learned, is the one that learning without these images "
        f"gives (largest difference {found.value:.1e}). That proves the head alone: it says nothing "
        "of CLIP's image and text towers."
    )
