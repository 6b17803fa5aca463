"""What a witness reads off one subject: a number an image, for forgotten and for unseen classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from torch import Tensor

from clapforget.registry import Registry
from clapforget.verify.material import Material, Part
from clapforget.verify.subject import Subject

__all__ = ["FULL", "WITNESSES", "Level", "Reading", "Role", "Witness", "array", "read", "witness"]

Level = Literal["quick", "full"]
Group = Literal["behaviour", "clip", "posterior", "head", "visual", "attack"]
Role = Literal["both", "accuses", "twin", "shown"]
"""``both``: must be shown equal to the reference, else nothing is called forgotten. ``accuses``: is
only heard where it is clearly above the reference. ``twin``: ``both`` beside a twin, else shown.
``shown``: never judged."""


@dataclass
class Reading:
    """One quantity, an entry an image."""

    name: str
    title: str
    group: Group
    forget: np.ndarray
    labels: np.ndarray
    """Class label of each entry of ``forget``."""
    unseen: np.ndarray | None = None
    unseen_labels: np.ndarray | None = None
    retain: np.ndarray | None = None
    """The same on retained classes, for drawing."""
    share: bool = True
    """Whether entries are yes or no (or a share); else any score."""
    role: Role = "both"
    margin: float = 0.25
    """The part of the lead (before − reference) that may be left ..."""
    absolute: bool = False
    """... or, absolute, how far above the reference the value may lie."""
    change: bool = False
    """Judged by what it rose by since the model before, image by image: for what differs more from class to class
    than it does from model to model."""
    minimum_lead: float = 0.15
    """A smaller lead of the model before over the reference can witness nothing."""
    known_is: Literal["high", "low"] = "high"
    """On which side of the reference a model that knows the class lies; a lead to the other side is
    chance."""
    note: str = ""
    curve: dict[str, list[float]] = field(default_factory=dict)
    """Mean accuracy of ``forget`` and ``unseen`` after each number of steps in ``curve_at``."""
    curve_at: tuple[int, ...] = ()


Witness = Callable[[Subject, Material, int], list[Reading]]
"""``witness(subject, material, seed)``."""

WITNESSES: Registry[Witness] = Registry("witness", "clapforget.verify.witnesses")
FULL: set[str] = set()
"""Names of those that only the full level calls."""


def witness(name: str, level: Level = "quick") -> Callable[[Witness], Witness]:
    """Register a witness. :param level: from which level on it is called."""
    if level == "full":
        FULL.add(name)
    return WITNESSES.register(name)


def read(
    name: str,
    title: str,
    group: Group,
    m: Material,
    look: Callable[[Part], Tensor],
    **more: Any,
) -> Reading:
    """A reading that treats the forgotten and the unseen classes' test images alike.

    :param look: one number an image. :param more: further fields of :class:`Reading`.
    """
    forget = m.test["forget"]
    reading = Reading(name, title, group, array(look(forget)), forget.labels.numpy(), **more)
    if unseen := m.test.get("unseen"):
        reading.unseen, reading.unseen_labels = array(look(unseen)), unseen.labels.numpy()
    if not reading.share:
        reading.retain = array(look(m.test["retain"]))
    return reading


def array(values: Tensor) -> np.ndarray:
    """Floats for statistics."""
    return values.detach().double().cpu().numpy()
