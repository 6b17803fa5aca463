"""Cells of the benches' tables: a mean over seeds with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from clapforget.verify.statistics import mean

__all__ = ["cell", "cell_text"]


def cell(values: Sequence[float]) -> dict[str, float]:
    """Mean and 95 % t interval, rounded, as plain values."""
    centre, (low, high) = mean(np.array(values))
    return {"mean": round(centre, 5), "low": round(low, 5), "high": round(high, 5)}


def cell_text(of: dict[str, float], digits: int = 3, sign: str = "", spread: bool = True) -> str:
    """``mean ± half the interval``; a dash for no number. :param spread: whether to show the half."""
    half = (of["high"] - of["low"]) / 2
    shown = f" ± {half:.{digits}f}" if spread else ""
    return "–" if math.isnan(of["mean"]) else f"{of['mean']:{sign}.{digits}f}{shown}"
