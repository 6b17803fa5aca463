"""The same images mirrored, recoloured, moved, blurred: is only the clean image forgotten?"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from clapforget.verify.material import Material, Part
from clapforget.verify.reading import Reading, read, witness
from clapforget.verify.subject import Subject
from clapforget.verify.witnesses.changes import Change, one_a_class, under_the_best

__all__ = ["TRANSFORMS", "transforms"]


def _shift(x: Tensor) -> Tensor:
    pad = max(1, x.shape[-1] // 16)
    moved = F.pad(x, (pad, 0, pad, 0), mode="replicate")
    return moved[..., : x.shape[-2], : x.shape[-1]]


def _zoom(x: Tensor) -> Tensor:
    cut = max(1, x.shape[-1] // 16)
    inner = x[..., cut:-cut, cut:-cut]
    return F.interpolate(inner, x.shape[-2:], mode="bilinear", antialias=True)


TRANSFORMS: dict[str, Change] = {
    "mirrored": lambda x: x.flip(-1),
    "channels turned": lambda x: x.roll(1, dims=1),
    "channels turned back": lambda x: x.roll(2, dims=1),
    "red and blue exchanged": lambda x: x.flip(1),
    "grey": lambda x: x.mean(1, keepdim=True).expand_as(x),
    "darker": lambda x: 0.6 * x,
    "brighter": lambda x: 1 - 0.7 * (1 - x),
    "less contrast": lambda x: 0.5 + 0.6 * (x - 0.5),
    "moved": _shift,
    "enlarged": _zoom,
    "blurred": lambda x: F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1),
}


_UNSEEN = 3  # images of each unseen class
_CHOOSE = 10  # images of each forgotten class


@witness("transforms")
def transforms(subject: Subject, m: Material, seed: int) -> list[Reading]:
    """Zero-shot accuracy under the transform that leaves most of it: the one under which ten images a class (one
    of some unseen ones) have their own names with most probability, chosen anew for forgotten and for unseen classes.
    """
    m, ways = m.with_fewer(unseen=_UNSEEN), list(TRANSFORMS.values())

    def best(part: Part) -> Tensor:
        few = part.first(_CHOOSE) if part is m.test["forget"] else one_a_class(part, seed)
        return under_the_best(subject.bare(), m, part, ways, few)[0]

    return [read("transforms_best", "zero-shot on images transformed in the way that works best",
                 "attack", m, best)]  # fmt: skip
