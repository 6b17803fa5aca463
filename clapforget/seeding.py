"""Random numbers come from generators made for one seed and one purpose."""

from __future__ import annotations

import numpy as np
import torch

from clapforget.errors import UserError

__all__ = ["MAX_SEED", "check_seed", "generator_for"]

MAX_SEED = 2**32 - 1
"""Seeds are multiplied by up to a million and then have to fit into 63 bits."""


def check_seed(seed: int) -> None:
    """:raises UserError: if a seed is below 0 or too large for whoever multiplies it."""
    if not 0 <= seed <= MAX_SEED:
        raise UserError(f"the seed is {seed}", f"use a whole number from 0 to {MAX_SEED}")


def generator_for(seed: int, *purpose: int) -> torch.Generator:
    """An independent generator for one purpose: same seed and purpose, same numbers."""
    state = np.random.SeedSequence([seed, *purpose]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) & (2**63 - 1))
