"""How sharp a softmax should be, by minimum weighted negative log likelihood of left-out samples: one
temperature, or a rate for each of several models in one log-linear pool."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["best_rates", "best_temperature", "pooled", "spread_of"]

_SHARPEST, _FLATTEST = 1e3, 1e-3  # of the logits' spread
_STEPS, _HALVINGS = 100, 40
_START = 10.0  # of the rates' sum, in units of 1 / spread: where they often end, and Newton's method climbs slowly
_SETTLED = 1e-11  # a relative step this small is rounding
_CLOSE = 1e-6  # a whole step of Newton's this small, relatively, leaves an error of its square
_ROUNDING = 1e-14  # of the loss: beside the minimum, steps are right where the loss tells nothing any more


def best_temperature(
    logits: Tensor, y: Tensor, weight: Tensor | None = None, doubt: float = 0.0
) -> float:
    """The T > 0 that minimises ``Σ w_i CE(logits_i / T, y_i)`` (Guo et al., ICML 2017): one over the
    :func:`best_rates` of a single model.

    :param logits: left-out logits [n, C]. The others as there.
    :returns: T, within [1e-3, 1e3] of the size of the logits' spread.
    """
    rate = float(best_rates(logits[None], y, weight, doubt)[0])
    return 1 / max(rate, _FLATTEST / float(spread_of(logits[None])[0]))


def best_rates(
    logits: Tensor, y: Tensor, weight: Tensor | None = None, doubt: float = 0.0
) -> Tensor:
    """The rates β ≥ 0 that minimise ``Σ w_i CE(Σ_k β_k logits_k,i, y_i)``: a log-linear pool of K models
    (Genest and Zidek, 1986), stacked by what they say of left-out samples. The objective is convex in β; Newton's
    method, projected on the bounds (Bertsekas, 1982).

    :param logits: left-out logits [K, n, C]; ``-inf`` for classes that take no part.
    :param y: true column of each row [n]. :param weight: of each row [n].
    :param doubt: so many rows more whose label could be any class: each row's target is
        ``1 − ε`` its own and ε spread evenly, ``ε = doubt / (n + doubt)``. Rows that are all right
        say nothing against certainty; with one row of doubt, n of them do not make it certain.
    :returns: β [K], float64; none above 1e3 over the spread of its model's logits.
    """
    logits = logits.double()
    spread = spread_of(logits)
    absent = logits.isinf().any(0)
    unit = (logits - logits.max(2, keepdim=True).values) / spread[:, None, None]
    unit = unit.masked_fill(absent, 0.0)
    weight = torch.ones_like(unit[0, :, 0]) if weight is None else weight.double()
    weight = weight / weight.sum()
    share = doubt / (len(y) + doubt) if doubt else 0.0
    target = share * (~absent).double() / (~absent).sum(1, keepdim=True)
    target[torch.arange(len(y), device=y.device), y] += 1 - share
    true = (unit * target).sum(2)
    flat, some_absent = unit.flatten(1), bool(absent.any())

    def look(beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, gradient [K] and Hessian [K, K]."""
        scores = (beta @ flat).view(target.shape)
        scores = scores.masked_fill_(absent, -torch.inf) if some_absent else scores
        largest = scores.max(1, keepdim=True).values
        p = scores.sub_(largest).exp_()
        whole = p.sum(1, keepdim=True)
        p /= whole
        loss = weight @ ((largest + whole.log())[:, 0] - beta @ true)
        weighted = flat * (p * weight[:, None]).flatten()
        mean = (p * unit).sum(2)
        return loss, (mean - true) @ weight, weighted @ flat.T - (mean * weight) @ mean.T

    sharpest = torch.full_like(spread, _SHARPEST)
    if (look(sharpest)[1] <= 0).all():
        return sharpest / spread  # every row is right by all of them: convex, so this corner is the minimum
    beta = torch.full_like(spread, _START / len(spread))
    loss, slope, bend = look(beta)
    for _ in range(_STEPS):
        free = ~((beta <= 0) & (slope >= 0)) & ~((beta >= _SHARPEST) & (slope <= 0))
        if not free.any():
            break
        step = torch.zeros_like(beta)
        inner = bend[free][:, free]
        ridge = 1e-12 * inner.diagonal().max().clamp_min(1e-12)
        inner = inner + ridge * torch.eye(len(inner)).to(inner)
        step[free] = -torch.linalg.solve(inner, slope[free])
        found = None
        for halving in range(_HALVINGS):
            new = (beta + step * 0.5**halving).clamp(0, _SHARPEST)
            seen = look(new)
            if seen[0] <= loss + 1e-4 * slope @ (new - beta) + _ROUNDING * (1 + loss):
                found = new, seen
                break
        if found is None:
            break  # no lower for all the precision there is
        moved = (found[0] - beta).abs().max()
        beta, (loss, slope, bend) = found
        if moved <= (_CLOSE if halving == 0 else _SETTLED) * beta.max():
            break
    return beta / spread


def pooled(rates: Tensor, logits: Tensor) -> Tensor:
    """``Σ_k β_k logits_k`` [n, C] of [K, n, C]; ``-inf`` where any is, whatever its rate."""
    absent = logits.isinf().any(0)
    whole = logits.masked_fill(absent, 0.0)
    return torch.einsum("k,knc->nc", rates.to(logits), whole).masked_fill(absent, -torch.inf)


def spread_of(logits: Tensor) -> Tensor:
    """Standard deviation of each model's logits below their row's largest, those of absent classes as 0; [K] of
    [K, n, C]. The unit of its rate's inverse."""
    below = (logits - logits.max(2, keepdim=True).values).double()
    return below.masked_fill(logits.isinf(), 0.0).flatten(1).std(1).clamp_min(1e-12)
