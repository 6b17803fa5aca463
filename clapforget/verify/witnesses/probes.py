"""Probes on image features: what a few labelled images make of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from clapforget.verify.material import Material, Part
from clapforget.verify.reading import Reading, read, witness
from clapforget.verify.subject import Subject

__all__ = ["probes"]

_RIDGE = 1.0
_NEAREST = 5


@witness("probes")
def probes(subject: Subject, m: Material, seed: int) -> list[Reading]:
    """Nearest class mean from one and from five attack images, k nearest neighbours (k = 5), ridge
    regression (λ = 1) on one-hot targets; among the classes of all attack images.

    Good features separate even what was never learned: a probe proves nothing but beside a twin
    (or unseen classes of the very same difficulty), and is judged only there.
    """
    shots = [part for part in m.shots.values() if len(part)]
    if not shots:
        return []
    v = torch.cat([subject.features(p) for p in shots])
    y = torch.cat([p.labels for p in shots]).to(v.device)
    classes = y.unique()
    onehot = (y[:, None] == classes[None, :]).to(v)

    def prototypes(count: int) -> Tensor:
        return F.normalize(torch.stack([v[y == c][:count].mean(0) for c in classes]), dim=-1)

    gram = v.T @ v + _RIDGE * torch.eye(v.shape[1]).to(v)
    weights = torch.linalg.solve(gram, v.T @ (onehot - onehot.mean(0)))
    one, five = prototypes(1), prototypes(5)

    def neighbours(x: Tensor) -> Tensor:
        near = (x @ v.T).topk(min(_NEAREST, len(v)), 1)
        return (near.values[..., None] * onehot[near.indices]).sum(1)

    def right(score: Callable[[Tensor], Tensor], part: Part) -> Tensor:
        best = score(subject.features(part)).argmax(1)
        return (classes[best] == part.labels.to(v.device)).float()

    scores: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
        "nearest_mean_1": ("nearest mean of one image a class", lambda x: x @ one.T),
        "nearest_mean_5": ("nearest mean of five images a class", lambda x: x @ five.T),
        "nearest_neighbours": ("five nearest neighbours", neighbours),
        "linear_probe": ("linear probe", lambda x: x @ weights),
    }
    return [
        read(name, f"{title} on image features", "visual", m, partial(right, score), role="twin")
        for name, (title, score) in scores.items()
    ]
