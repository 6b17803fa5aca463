"""Dropout whose masks cost little on a processor.

PyTorch draws one number an entry there, one after the other: with two threads an eighth of a whole training step
of CLAP. Here four entries share a draw of 64 bits, 16 bits each.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["dropout"]

_LEVELS = 2**16


def dropout(x: Tensor, p: float) -> Tensor:
    """Each entry zero with probability p, the others over ``1 − p``; x itself for p = 0 (Srivastava et al., JMLR
    2014). The probability is rounded to 16 bits, and the scale is of the rounded one, so that the mean stays.

    Draws from PyTorch's global generator. Elsewhere than on a processor it is PyTorch's own.

    :param p: in [0, 1).
    """
    if p == 0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, p)
    gone = min(round(p * _LEVELS), _LEVELS - 1)
    draws = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    kept = draws.view(torch.int16)[: x.numel()] >= gone - _LEVELS // 2
    return x * kept.view(x.shape).to(x.dtype).mul_(_LEVELS / (_LEVELS - gone))
