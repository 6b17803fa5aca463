"""The same images mirrored, recoloured, moved, blurred: is only the clean image forgotten?"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from clapforget.verify.material import Material, Part
from clapforget.verify.reading import Reading, read, witness
from clapforget.verify.subject import Subject

__all__ = ["TRANSFORMS", "transforms"]


def _shift(x: Tensor) -> Tensor:
    pad = max(1, x.shape[-1] // 16)
    moved = F.pad(x, (pad, 0, pad, 0), mode="replicate")
    return moved[..., : x.shape[-2], : x.shape[-1]]


def _zoom(x: Tensor) -> Tensor:
    cut = max(1, x.shape[-1] // 16)
    inner = x[..., cut:-cut, cut:-cut]
    return F.interpolate(inner, x.shape[-2:], mode="bilinear", antialias=True)


TRANSFORMS: dict[str, Callable[[Tensor], Tensor]] = {
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
"""Images [n, 3, h, w] in [0, 1] to the same."""


_UNSEEN = 3  # images of each unseen class


@witness("transforms")
def transforms(subject: Subject, m: Material, seed: int) -> list[Reading]:
    """Zero-shot accuracy under the transform that leaves most of it, chosen anew for forgotten and
    for unseen classes.
    """
    text, m = subject.names(m.names, m.templates), m.with_fewer(unseen=_UNSEEN)

    @torch.no_grad()
    def best(part: Part) -> Tensor:
        images = part.unit
        right = torch.stack([
            (subject.clip.encode_image(change(images)) @ text.T).argmax(1) == part.labels.to(text.device)
            for change in TRANSFORMS.values()
        ])  # fmt: skip
        return right[right.float().mean(1).argmax()].float()

    return [read("transforms_best", "zero-shot on images transformed in the way that works best",
                 "attack", m, best)]  # fmt: skip
