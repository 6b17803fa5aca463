"""The classes of the built-in world: ten outlines times ten inner marks, and what each is called.

A class has a made-up name drawn from a seed, so that a model which never met the name cannot work
it out from its parts: its accuracy on that class is what *never having known* looks like. Composed
pictures give every class near neighbours (same outline, or same mark), on which forgetting too
much shows.
"""

from __future__ import annotations

from functools import cache

import numpy as np

__all__ = [
    "MARKS",
    "NUM_CLASSES",
    "OUTLINES",
    "TEMPLATES",
    "class_names",
    "describe",
    "known_classes",
    "neighbours",
    "new_classes",
    "unseen_classes",
]

OUTLINES = (
    "circle", "square", "triangle", "diamond", "pentagon",
    "star", "cross", "heart", "crescent", "half disc",
)  # fmt: skip
MARKS = (
    "plain", "hole", "horizontal bar", "vertical bar", "cross cut",
    "dot above", "dot at the left", "ring", "four holes", "notch",
)  # fmt: skip
NUM_CLASSES = len(OUTLINES) * len(MARKS)

TEMPLATES = (
    "a {}",
    "a picture of a {}",
    "this is a {}",
    "there is a {}",
    "one {}",
    "we see a {}",
)
"""Prompts for a bare class name: the wordings of the captions, without their attributes."""

_WORLD_SEED = 20410
_NEW_OFFSETS = (2, 5, 8)  # of (mark - outline) mod 10: new, taught only in a stream
_UNSEEN_OFFSET = 9  # new as well, and by convention never taught


@cache
def class_names() -> tuple[str, ...]:
    """The hundred made-up names, in order of the canonical class id ``10 * outline + mark``.

    Names are five letters long, and no two share a token of CLIP's vocabulary: else a model that
    learned one would answer to the other, and "never met" would not mean chance.
    """
    from open_clip import SimpleTokenizer

    tokenizer = SimpleTokenizer()
    rng = np.random.default_rng(_WORLD_SEED)
    consonants, vowels = list("bdfgklmnprstvz"), list("aeiou")
    names: list[str] = []
    used: set[int] = set()
    while len(names) < NUM_CLASSES:
        c, v = rng.choice(consonants, 3), rng.choice(vowels, 2)
        name = str(c[0] + v[0] + c[1] + v[1] + c[2])
        tokens = set(tokenizer.encode(name))
        if len(tokens) > 1 and not tokens & used:
            names.append(name)
            used |= tokens
    return tuple(names)


def _offset(label: int) -> int:
    return (label % len(MARKS) - label // len(MARKS)) % len(MARKS)


def unseen_classes() -> tuple[int, ...]:
    """Ten classes that neither pretraining nor a built-in stream teaches: the reference."""
    return tuple(c for c in range(NUM_CLASSES) if _offset(c) == _UNSEEN_OFFSET)


def new_classes() -> tuple[int, ...]:
    """Thirty classes that pretraining leaves out and a stream may teach."""
    return tuple(c for c in range(NUM_CLASSES) if _offset(c) in _NEW_OFFSETS)


def known_classes() -> tuple[int, ...]:
    """The sixty classes of pretraining. Every outline and every mark occurs in six of them."""
    left_out = {*unseen_classes(), *new_classes()}
    return tuple(c for c in range(NUM_CLASSES) if c not in left_out)


def neighbours(label: int) -> frozenset[int]:
    """The eighteen classes with the same outline or the same mark as ``label``."""
    outline, mark = divmod(label, len(MARKS))
    alike = {outline * len(MARKS) + m for m in range(len(MARKS))}
    alike |= {o * len(MARKS) + mark for o in range(len(OUTLINES))}
    return frozenset(alike - {label})


def describe(label: int) -> str:
    """What the class looks like, in words, for people: ``"star, four holes"``."""
    outline, mark = divmod(label, len(MARKS))
    return f"{OUTLINES[outline]}, {MARKS[mark]}"
