"""Weights rounded to 8 and to 4 bits: does a change smaller than a bin fall away?"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from clapforget.clip import Clip
from clapforget.verify.material import Material, Part
from clapforget.verify.reading import Reading, read, witness
from clapforget.verify.subject import Subject

__all__ = ["round_weights", "rounding"]


_UNSEEN = 3  # images of each unseen class


@witness("rounding")
def rounding(subject: Subject, m: Material, seed: int) -> list[Reading]:
    """Zero-shot accuracy after rounding, by tensor or by row, whichever leaves more (arXiv
    2410.16454: rounding restores what was unlearned by changes smaller than a bin).
    """
    found, m = [], m.with_fewer(unseen=_UNSEEN)
    for bits in (8, 4):
        rounded = [Subject(round_weights(subject.clip, bits, scale)) for scale in ("tensor", "row")]

        def best(part: Part, rounded: list[Subject] = rounded) -> Tensor:
            right = torch.stack([
                s.zero_shot(part, m.names, m.templates).argmax(1) == part.labels.to(s.clip.device)
                for s in rounded
            ])  # fmt: skip
            return right[right.float().mean(1).argmax()].float()

        found.append(read(f"rounding_{bits}", f"zero-shot with weights rounded to {bits} bits",
                          "attack", m, best))  # fmt: skip
    return found


@torch.no_grad()
def round_weights(clip: Clip, bits: int, scale: Literal["tensor", "row"]) -> Clip:
    """A copy whose matrices and convolutions hold multiples of ``max|w| / (2^(bits−1) − 1)``
    (symmetric round to nearest), the maximum taken over the tensor or over each output row.
    """
    rounded = clip.trainable_copy([])
    for parameter in rounded.model.parameters():
        if parameter.ndim < 2:
            continue
        flat = parameter.flatten(1) if scale == "row" else parameter.flatten()[None]
        step = flat.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
        step = step.clamp_min(torch.finfo(flat.dtype).tiny)
        parameter.copy_(((flat / step).round() * step).view_as(parameter))
    return rounded
