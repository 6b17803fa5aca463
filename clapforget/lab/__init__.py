"""The built-in world: a hundred classes whose truth about forgetting is known."""

from clapforget.lab.draw import IMAGE_SIZE, SPLITS, attributes, captions, draw
from clapforget.lab.world import (
    MARKS,
    NUM_CLASSES,
    OUTLINES,
    TEMPLATES,
    class_names,
    describe,
    known_classes,
    neighbours,
    new_classes,
    unseen_classes,
)

__all__ = [
    "IMAGE_SIZE",
    "MARKS",
    "NUM_CLASSES",
    "OUTLINES",
    "SPLITS",
    "TEMPLATES",
    "attributes",
    "captions",
    "class_names",
    "describe",
    "draw",
    "known_classes",
    "neighbours",
    "new_classes",
    "unseen_classes",
]
