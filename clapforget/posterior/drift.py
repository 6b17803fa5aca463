"""Carry sums over to a changed image tower, by a linear map fitted on exemplars."""

from __future__ import annotations

import torch
from torch import Tensor

from clapforget.errors import UserError
from clapforget.posterior.feature_map import FeatureMap
from clapforget.posterior.head import Change
from clapforget.posterior.reservoir import Reservoir
from clapforget.posterior.sums import FeatureSums

__all__ = ["transport"]

_RIDGES = (1e-9, 1e-6, 1e-3, 1e-1, 10.0)


def transport(
    sums: FeatureSums,
    reservoir: Reservoir,
    feature_map: FeatureMap,
    change: Change,
    columns: Tensor,
) -> dict[str, float | int]:
    """Change the sums in place from the old image tower's features to the new one's.

    On plain features ``v' ≈ v M`` with M by ridge regression (around the identity) of the exemplars'
    new features on their old ones; then ``Σφ' = Σφ M``, ``Σφφᵀ' = Mᵀ Σφφᵀ M``. Random features are
    not linear in v: there sums and reservoir are made again from the exemplars alone, each class's
    weighed up to its count, and a class without an exemplar is left without data.

    :param columns: of the memory's exemplars [m].
    :returns: ``exemplars``, their number, and ``relative_error``: the mean squared error of the map
        on exemplars that it was not fitted to (five folds), over the features' squared length, with
        the ridge for which that is least. With random features the map is not used: there it says
        how much of the change it would have missed.
    :raises UserError: without exemplars.
    """
    before, after = change.memory_before.double(), change.memory_after.double()
    if not len(before):
        raise UserError(
            "the image tower changed and the memory has no exemplar to carry the posterior over",
            "use a forgetter that changes the text tower only, or keep a memory",
        )
    error, ridge = min((_held_out_error(before, after, ridge), ridge) for ridge in _RIDGES)
    if feature_map.features:
        _rebuild(sums, feature_map, after, columns)
        reservoir.restart(change.memory_after, change.memory_labels, change.memory_ids)
    else:
        matrix = _fit(before, after, ridge)
        reservoir.v = (reservoir.v.double() @ matrix).to(reservoir.v)
        sums.transform(matrix)
    sums.carried = sums.count > 0
    return {"exemplars": len(before), "relative_error": round(error, 6)}


def _fit(before: Tensor, after: Tensor, ridge: float) -> Tensor:
    """M [d, d] with ``before M ≈ after``, both [m, V, d]: ridge around the identity.

    :param ridge: over the mean eigenvalue of the old features' second moment.
    """
    old, new = before.flatten(0, 1), after.flatten(0, 1)
    gram = old.T @ old
    eye = torch.eye(len(gram)).to(gram)
    pull = ridge * gram.diagonal().mean() * eye
    return eye + torch.linalg.solve(gram + pull, old.T @ (new - old))


def _held_out_error(before: Tensor, after: Tensor, ridge: float) -> float:
    """Of one exemplar alone: the error of the identity."""
    folds = torch.arange(len(before), device=before.device) % 5
    wrong = 0.0
    for fold in range(min(5, len(before))):
        test = folds == fold
        matrix = torch.eye(before.shape[-1]).to(before)
        if not test.all():
            matrix = _fit(before[~test], after[~test], ridge)
        wrong += float((before[test] @ matrix - after[test]).square().sum())
    return wrong / float(after.square().sum())


def _rebuild(sums: FeatureSums, feature_map: FeatureMap, after: Tensor, columns: Tensor) -> None:
    held = torch.bincount(columns, minlength=len(sums.count))
    counts = torch.where(held > 0, sums.count, 0.0)
    share = (counts / held.clamp_min(1))[columns]
    phi = feature_map(after)
    sums.empty()
    sums.add(phi * share.sqrt()[:, None, None], columns)
    sums.first.zero_().index_add_(0, columns, phi.mean(1) * share[:, None])
    sums.count.copy_(counts)
