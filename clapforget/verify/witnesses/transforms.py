"""The same images mirrored, recoloured, moved, blurred: is only the clean image forgotten?"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from clapforget.verify.material import Material, Part
from clapforget.verify.reading import Reading, witness
from clapforget.verify.subject import Subject
from clapforget.verify.witnesses.changes import Change, by_way, one_a_class, under_the_best

__all__ = ["TRANSFORMS", "transforms"]


def _shift(x: Tensor) -> Tensor:
    pad = max(1, x.shape[-1] // 16)
    moved = F.pad(x, (pad, 0, pad, 0), mode="replicate")
    return moved[..., : x.shape[-2], : x.shape[-1]]


def _enlarge(x: Tensor, part: int) -> Tensor:
    """What is left where so much of a side is cut off at each end: the side over ``part``."""
    cut = max(1, x.shape[-1] // part)
    inner = x[..., cut:-cut, cut:-cut]
    return F.interpolate(inner, x.shape[-2:], mode="bilinear", antialias=True)


def _pixelate(x: Tensor) -> Tensor:
    """A quarter of the resolution."""
    small = [max(1, side // 4) for side in x.shape[-2:]]
    return F.interpolate(F.interpolate(x, small, mode="area"), x.shape[-2:], mode="nearest")


def _shrink(x: Tensor) -> Tensor:
    """Half as large, in the middle of grey."""
    h, w = x.shape[-2:]
    small = F.interpolate(x, (max(1, h // 2), max(1, w // 2)), mode="bilinear", antialias=True)
    top, left = (h - small.shape[-2]) // 2, (w - small.shape[-1]) // 2
    rest = (left, w - left - small.shape[-1], top, h - top - small.shape[-2])
    return F.pad(small, rest, value=0.5)


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
    "enlarged": lambda x: _enlarge(x, 16),
    "inverted": lambda x: 1 - x,
    "posterised": lambda x: (x > 0.5).to(x),
    "pixelated": _pixelate,
    "shrunk": _shrink,
    "the middle": lambda x: _enlarge(x, 4),
    "blurred": lambda x: F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1),
}


_UNSEEN = 3  # images of each unseen class
_CHOOSE = 10  # images of each forgotten class


@witness("transforms")
def transforms(subject: Subject, m: Material, seed: int) -> list[Reading]:
    """Whether images are answered under the transform that leaves most of it, by bare CLIP and by the head where
    there is one: the one under which ten images a class (one of some unseen ones) have their own names with most
    probability, chosen anew for forgotten and for unseen classes.
    """
    m, ways = m.with_fewer(unseen=_UNSEEN), list(TRANSFORMS.values())

    def best(part: Part) -> list[Tensor]:
        few = part.first(_CHOOSE) if part is m.test["forget"] else one_a_class(part, seed)
        return under_the_best(subject, m, part, ways, few)

    how = "images transformed in the way that works best"
    return by_way(subject, m, "transforms_best", how, best, ("both", "accuses"))
