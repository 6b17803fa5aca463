"""Weights rounded to 8 and to 4 bits: does a change smaller than a bin fall away?"""

from __future__ import annotations

from typing import Literal

import torch

from clapforget.clip import Clip
from clapforget.verify.material import Material
from clapforget.verify.reading import Reading, read, witness
from clapforget.verify.subject import Subject
from clapforget.verify.witnesses.answers import hits

__all__ = ["round_weights", "rounding"]


_UNSEEN = 3  # images of each unseen class
_Scale = Literal["tensor", "row"]
_SCALES: dict[int, tuple[_Scale, ...]] = {8: ("tensor",), 4: ("tensor", "row")}


@witness("rounding")
def rounding(subject: Subject, m: Material, seed: int) -> list[Reading]:
    """Zero-shot accuracy after rounding (arXiv 2410.16454: rounding restores what was unlearned by changes smaller
    than a bin): to 8 bits by tensor, whose bins are the widest; to 4 bits, where those may leave nothing, by tensor or
    by row, whichever leaves more.
    """
    found, m = [], m.with_fewer(unseen=_UNSEEN)
    copy = subject.clip.trainable_copy([])
    parts = [part for k, part in m.test.items() if k in ("forget", "unseen")]
    for bits, scales in _SCALES.items():
        outcomes = []
        for scale in scales:
            rounded = Subject(round_weights(subject.clip, bits, scale, copy))
            outcomes.append({part: hits(rounded, m, 1, part) for part in parts})
        best = {part: max((o[part] for o in outcomes), key=lambda hit: float(hit.mean())) for part in parts}
        found.append(read(f"rounding_{bits}", f"zero-shot with weights rounded to {bits} bits",
                          "attack", m, best.__getitem__))  # fmt: skip
    return found


@torch.no_grad()
def round_weights(
    clip: Clip, bits: int, scale: _Scale, copy: Clip | None = None
) -> Clip:
    """A copy whose matrices and convolutions hold multiples of ``max|w| / (2^(bits−1) − 1)``
    (symmetric round to nearest), the maximum taken over the tensor or over each output row.

    :param copy: of the same model, which becomes the rounded one; None: a new one.
    """
    rounded = clip.trainable_copy([]) if copy is None else copy
    for exact, parameter in zip(clip.model.parameters(), rounded.model.parameters(), strict=True):
        if exact.ndim < 2:
            continue
        flat = exact.flatten(1) if scale == "row" else exact.flatten()[None]
        step = flat.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
        step = step.clamp_min(torch.finfo(flat.dtype).tiny)
        parameter.copy_((flat / step).round_().mul_(step).view_as(parameter))
    return rounded
