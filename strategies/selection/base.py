"""What a selector sees, and the table of selectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from clapforget.posterior import Predictive
from clapforget.registry import Registry

__all__ = ["SELECTORS", "Candidates", "Selector"]


@dataclass
class Candidates:
    """Samples a memory may keep."""

    labels: Tensor
    """[n]"""
    predictive: Predictive | None
    """What the strategy's posterior says of them; None where the strategy has no posterior."""
    generator: torch.Generator


Selector = Callable[[Candidates], Tensor]
"""Maps candidates to a score each, [n]; inside a class the highest are kept."""

SELECTORS: Registry[Selector] = Registry("exemplar score", "clapforget.strategies.selection")
