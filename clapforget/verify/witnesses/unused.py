"""Whether the class is told by directions of feature space that kept images leave unused."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clapforget.verify.material import Material, Part
from clapforget.verify.reading import Reading, read, witness
from clapforget.verify.subject import Subject

__all__ = ["unused_directions", "whitening"]

_SHOTS = 5
_FLOOR = 1e-3  # of the mean variance: what a direction counts at least


@witness("unused_directions")
def unused_directions(subject: Subject, m: Material, seed: int) -> list[Reading]:
    """Share of five attack images a class of which each finds a test image's class alone, nearest among one image
    of every class, on features whitened by kept images; and whether it rose since the model before, beside unseen
    classes.

    Whitening (Mahalanobis' distance by the covariance of *all* kept images, not within classes) makes least of what
    tells kept classes apart and most of directions in which they do not differ. Known or not, a class is found there
    as seldom as any other (0.1 to 0.25 in the built-in model and its twins; with a fresh twin in its place -0.19 to
    0.07 more often than before, beside unseen classes). One that an edit marked, though by a thirtieth of its images'
    length, in a direction that nothing else uses, is found at once (0.55 to 0.65).
    """
    kept = m.shots.get("retain")
    if kept is None:
        return []
    mean, white = whitening(subject.features(kept))

    def seen(part: Part) -> Tensor:
        v = subject.features(part)
        return F.normalize((v - mean.to(v)) @ white.to(v), dim=-1)

    shots = m.shots.values()
    places = torch.cat([seen(part) for part in shots])
    labels = torch.cat([part.labels for part in shots]).to(places.device)
    turns = torch.cat([_turns(part.labels) for part in shots]).to(places.device)

    def found(part: Part) -> Tensor:
        cosine, own = seen(part) @ places.T, part.labels.to(places.device)
        alone = [turns == k for k in range(min(_SHOTS, int(turns.max()) + 1))]
        right = [labels[one][cosine[:, one].argmax(1)] == own for one in alone]
        return torch.stack(right).to(cosine).mean(0)

    return [read("unused_directions", "found by directions that kept images leave unused, since", "visual", m, found,
                 share=False, change=True, absolute=True, margin=0.2)]  # fmt: skip


def whitening(v: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [d] and ``Σ^(−½)``, up to a rotation, [d, d] of features [n, d]; of no direction is less counted than a
    thousandth of the mean variance."""
    v = v.double()
    mean = v.mean(0)
    variances, axes = torch.linalg.eigh((v - mean).T @ (v - mean) / len(v))
    variances = variances.clamp_min(0)
    return mean, axes * (variances + _FLOOR * variances.mean().clamp_min(1e-12)).rsqrt()


def _turns(labels: Tensor) -> Tensor:
    """How many earlier entries have the same label, [n]."""
    same = labels[:, None] == labels
    return same.tril(-1).sum(1)
