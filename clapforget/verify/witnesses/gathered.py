"""Whether a class's images were gathered: put together at a place, where they had lain as they fell."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clapforget.verify.material import Material, Part
from clapforget.verify.reading import Reading, read, witness
from clapforget.verify.subject import Subject

__all__ = ["gathered", "gathering"]

_LEAST = 1e-6  # of a distance: what is rounding


@witness("gathered")
def gathered(subject: Subject, m: Material, seed: int) -> list[Reading]:
    """:func:`gathering` of test images, and whether it rose by more than that of unseen classes since the model before.

    An edit that moves the images of a class to one new place, as near to kept names and images as unseen ones
    lie, leaves them a class: whoever has one of them finds the others. Training without a class may scatter its images
    or draw them together by less (seven requests, three twins: -0.4 to 0.5 units beside unseen classes). By 0.75: they
    lie two fifths closer.
    """
    return [read("gathered", "forgotten images drawn together since (log2 of how much closer they lie)", "visual", m,
                 lambda part: gathering(subject.features(part), part), share=False, change=True, absolute=True,
                 margin=0.75)]  # fmt: skip


def gathering(v: Tensor, part: Part) -> Tensor:
    """``−log2(1 − cos)`` with the mean of the other images of the same class, [n]: one more is half the distance.
    0 for the only image of a class.

    :param v: unit-norm features [n, d] of the images.
    """
    same = (part.labels[:, None] == part.labels).to(v)
    others = F.normalize(same @ v - v, dim=-1)
    near = -torch.log2((1 - (v * others).sum(1)).clamp_min(_LEAST))
    return torch.where(same.sum(1) > 1, near, 0)
