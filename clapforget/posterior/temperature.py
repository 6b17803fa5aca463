"""The temperature of a softmax, by minimum weighted negative log likelihood."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["best_temperature"]


def best_temperature(
    logits: Tensor, y: Tensor, weight: Tensor | None = None, doubt: float = 0.0
) -> float:
    """The T > 0 that minimises ``Σ w_i CE(logits_i / T, y_i)``, by Newton's method on log 1/T; in
    1/T the objective is convex (Guo et al., ICML 2017).

    :param logits: left-out logits [n, C]; ``-inf`` for classes that take no part.
    :param y: true column of each row [n]. :param weight: of each row [n].
    :param doubt: so many rows more whose label could be any class: each row's target is
        ``1 − ε`` its own and ε spread evenly, ``ε = doubt / (n + doubt)``. Rows that are all right
        say nothing against certainty; with one row of doubt, n of them do not make it certain.
    :returns: T, within [1e-3, 1e3] of the size of the logits' spread.
    """
    logits = logits.double()
    weight = torch.ones_like(logits[:, 0]) if weight is None else weight.double()
    logits = logits - logits.max(1, keepdim=True).values
    finite = torch.where(logits.isinf(), 0.0, logits)
    share = doubt / (len(y) + doubt) if doubt else 0.0
    anyone = finite.sum(1) / (~logits.isinf()).sum(1)
    true = (1 - share) * finite.gather(1, y[:, None])[:, 0] + share * anyone
    spread = float(finite.std().clamp_min(1e-12))

    def slope(beta: float) -> tuple[float, float]:
        p = (beta * logits).softmax(1)
        mean = (p * finite).sum(1)
        variance = (p * (finite - mean[:, None]).square()).sum(1)
        return float((weight * (mean - true)).sum()), float((weight * variance).sum())

    low, high = 1e-3 / spread, 1e3 / spread
    if slope(low)[0] >= 0:
        return 1 / low
    if slope(high)[0] <= 0:
        return 1 / high
    beta = 20 / spread
    for _ in range(100):  # Newton in log β, in a bracket that halves where a step would leave it
        first, second = slope(beta)
        low, high = (beta, high) if first < 0 else (low, beta)
        old, step = beta, min(-first / (beta * second), 20.0) if second > 0 else 20.0
        beta = old * math.exp(step)
        if not low < beta < high:
            beta = (low * high) ** 0.5
        if abs(beta - old) < 1e-10 * old:  # the last step squares it
            break
    return 1 / beta
