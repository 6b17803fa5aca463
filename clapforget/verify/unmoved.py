"""Whether forgotten images still lie where they lay, and are answered as surely: what has not moved has not gone."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from clapforget.verify.evidence import Evidence
from clapforget.verify.material import Material
from clapforget.verify.subject import Subject

__all__ = ["as_sure_as_before", "linear_map", "unmoved_evidence"]

_RIDGE = 1e-4
"""Of the mean square of a feature dimension: what keeps the map at the identity where no image says otherwise."""
_ROUNDING = 1e-9  # of an energy: as near two sums of the same numbers, in another order, may lie


def linear_map(x: Tensor, y: Tensor) -> Tensor:
    """The matrix W [d, e] of least ``|xW − y|² + λ |W − I|²``: as near to the identity as images allow.

    The identity itself where all images are given out alike: they say nothing of the map.

    :param x: centred features [n, d]. :param y: of the same images [n, e].
    """
    x, y = x.double(), y.double()
    start = torch.eye(x.shape[1], y.shape[1]).to(x)
    if not x.any():
        return start
    ridge = _RIDGE * x.square().sum() / x.shape[1] * torch.eye(x.shape[1]).to(x)
    return start + torch.linalg.solve(x.T @ x + ridge, x.T @ (y - x @ start))


def unmoved_evidence(before: Subject, after: Subject, m: Material) -> list[Evidence]:
    """How much of the forgotten images' features before one linear map gives back from those after: ``R² = 1 − Σ
    |y − ŷ|² / Σ |y − ȳ|²``, ȳ the mean of the attacker's images of retained classes, to which the map is fitted
    as well: no forgotten image enters it.

    1: the image tower is as it was on these images, or turned in a way that whoever has a few other images
    turns back; the class vectors of before, or new ones from a few images, find them as before. A tower that was
    trained again without the class gives back about three quarters of them. Judged by rule 6 alone. The same of what
    the tower's last block makes of them, judged by rule 10 alone: where nothing below the last layer moved, that
    layer may have been all that was changed, and putting it back brings the class back.
    Its interval takes the map as given (delta method over the images). Empty without retained attack images;
    nothing of features that do not differ before, of which there is nothing to give back.
    """
    fitted_on, part = m.shots.get("retain"), m.test["forget"]
    if fitted_on is None or len(part) < 2:
        return []
    found = _given_back(
        "image_features_kept", "features of forgotten images that one linear map gives back",
        (before.features(fitted_on), before.features(part)), (after.features(fitted_on), after.features(part)),
    )  # fmt: skip
    inner = [side.inner(images) for side in (before, after) for images in (fitted_on, part)]
    shown = [x for x in inner if x is not None]
    if len(shown) == 4 and shown[0].shape[1] == shown[2].shape[1]:
        found += _given_back(
            "inner_features_kept", "what the last block makes of forgotten images that one linear map gives back",
            (shown[0], shown[1]), (shown[2], shown[3]),
        )  # fmt: skip
    return found


def as_sure_as_before(before: Subject, after: Subject, m: Material) -> list[Evidence]:
    """How much of what the forgotten columns gave to a head's energy is there still, image by image: ``R² = 1 −
    Σ (E − E')² / Σ (E − E₀)²`` over the forgotten images, E the ``logsumexp`` of all logits before, E₀ the same without
    the forgotten columns, E' that of all logits after.

    1: the head answers these images as surely as ever, by whatever column: one that is filed under a kept label now,
    or folded into a kept one. Where a class's columns are gone it is 0, and a head that was trained again without the
    class is surer of other answers than it was, and not the same image by image. Judged by rule 6 alone. Empty without
    a head before and after, or where none of its columns before was a forgotten class's.
    """
    if before.answer is None or after.answer is None:
        return []
    part = m.test["forget"]
    logits = before.logits(part, m.names, m.templates).double()
    gone = torch.isin(before.column_labels(len(m.names)), torch.tensor(m.forget)).to(logits.device)
    if not gone.any() or gone.all() or len(part) < 2:
        return []
    whole, without = logits.logsumexp(1), logits[:, ~gone].logsumexp(1)
    now = after.logits(part, m.names, m.templates).double().logsumexp(1).to(whole.device)
    energies = torch.stack([whole, without, now])
    if not energies.isfinite().all() or torch.allclose(whole, without, rtol=_ROUNDING, atol=_ROUNDING):
        return []
    missed, there = (whole - now).square(), (whole - without).square()
    return [_share_kept("head_energy_kept", "of what the forgotten columns gave to the head's energy on their images",
                        "head", missed, there, "by whatever column")]  # fmt: skip


def _given_back(
    name: str, title: str, before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor]
) -> list[Evidence]:
    """:param before: of the images the map is fitted to [n, d], and of the forgotten ones [m, d]."""
    x, y = after[0].double(), before[0].to(after[0].device).double()
    centre, middle = x.mean(0), y.mean(0)
    w = linear_map(x - centre, y - middle)
    then = before[1].to(w) - middle
    missed = (then - (after[1].to(w) - centre) @ w).square().sum(1)
    whole = then.square().sum(1)
    if not whole.any():
        return []
    return [_share_kept(name, title, "visual", missed, whole, "the map is fitted to images of retained classes")]


def _share_kept(
    name: str, title: str, group: Literal["visual", "head"], missed: Tensor, whole: Tensor, note: str
) -> Evidence:
    """``1 − Σ missed / Σ whole``, by image [n] each; the interval by the delta method over the images."""
    left = float(missed.sum() / whole.sum())
    error = float((missed - left * whole).std() / whole.mean()) / math.sqrt(len(whole))
    value = 1 - left
    interval = (value - 1.96 * error, min(1.0, value + 1.96 * error))
    return Evidence(name, title, group, value, interval, 1.0, direction="low", n=len(whole), note=note)
