"""A piece of evidence is one number with its 95 % interval, its value before, a reference and the
direction that speaks for forgetting (or, for what is to be kept, for keeping).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from clapforget.verify import statistics

__all__ = ["Evidence"]

Direction = Literal["low", "high", "equal"]


@dataclass
class Evidence:
    """One number and what it is held against."""

    name: str
    title: str
    group: Literal["behaviour", "clip", "posterior", "head", "twin", "visual", "attack"]
    value: float
    interval: statistics.Interval
    before: float | None = None
    reference: float | None = None
    reference_interval: statistics.Interval | None = None
    reference_name: str = ""
    direction: Direction = "low"
    """Which values are good: at most the reference, at least it, or near it."""
    n: int = 0
    drop: float | None = None
    """Before − after, where the same images were looked at twice ..."""
    drop_interval: statistics.Interval | None = None
    """... and its paired interval."""
    holds: bool | None = None
    """Whether it speaks for a good outcome; set by the rules. Of a piece that only accuses: whether it does not.
    None: shown, not judged."""
    note: str = ""
    lead: float | None = None
    """Before − reference: what there was to lose."""
    residue: float | None = None
    """(value − reference) / lead: 1 as before, 0 as the reference, below 0 beyond it."""
    margin: float | None = None
    """Residue that the rules allow, or (``absolute``) distance from the reference."""
    absolute: bool = False
    role: str = "shown"
    """See :data:`clapforget.verify.reading.Role`."""
    p_inside: float | None = None
    """Against ``at most the margin above the reference``: small means it is still inside."""
    p_beyond: float | None = None
    """Against ``at least minus the margin``: small means pushed beyond the reference."""
    p_above: float | None = None
    """Against ``above the margin``: one half of the equivalence test (TOST) ..."""
    p_below: float | None = None
    """... against ``below minus the margin``: the other."""
    scar: bool = False
    """Clearly beyond the reference on the other side: this gives the request away."""
    images_needed: int | None = None
    """How many images in all would settle it, where it is open."""
    unit: str = ""
    """``fraction`` of a share; set when a certificate is written."""
    curve: dict[str, list[float]] = field(default_factory=dict)
    """Accuracies by step of a training attack, by ``forget`` and ``unseen`` (after),
    ``before`` and ``twin`` ..."""
    curve_at: tuple[int, ...] = ()
    """... after so many steps."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, rounded to six digits."""
        return {key: _rounded(value) for key, value in asdict(self).items()}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, (tuple, list)) else value
