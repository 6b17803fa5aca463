"""Small material and models for the verifier's tests."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch

from clapforget import lab, load_clip
from clapforget.clip import Clip
from clapforget.scenarios import ImageData
from clapforget.scenarios import lab as lab_data
from clapforget.seeding import generator_for
from clapforget.verify import WITNESSES, Material, Subject, material_from
from clapforget.verify.reading import Reading

FORGET = (6, 30)
RETAIN = tuple(c for c in lab.known_classes() if c not in FORGET)[:24]


@cache
def clip() -> Clip:
    return load_clip("lab-tiny")


@cache
def data() -> ImageData:
    return lab_data(train_per_class=8, test_per_class=20)


@cache
def material() -> Material:
    return material_from(
        data(), FORGET, retain=RETAIN, unseen_classes=6, test_images=15, unseen_images=8,
        retain_images=5, shots=5,
    )  # fmt: skip


@cache
def subject() -> Subject:
    return Subject(clip())


@cache
def scrambled() -> Clip:
    """The names' token embeddings drawn anew: their texts mean nothing, the images stay where they were."""
    other = clip().trainable_copy([])
    tokens = {int(t) for c in FORGET for t in other.tokenize([data().class_names[c]])[0]}
    rows = sorted(t for t in tokens if 0 < t < 49406)
    table = other.model.token_embedding.weight
    with torch.no_grad():
        table[rows] = (
            torch.randn(len(rows), table.shape[1], generator=generator_for(0, 1)) * table.std()
        )
    return other


def reading(
    forget: float, unseen: float, n: int = 60, classes: int = 10, **more: object
) -> Reading:
    """Shares: so much of n forgotten images right, of ten images each of unseen classes."""
    mine = (np.arange(n) < round(forget * n)).astype(float)
    theirs = np.tile((np.arange(10) < round(unseen * 10)).astype(float), classes)
    fields = {"group": "clip", **more}
    return Reading("thing", "a thing", forget=mine, labels=np.arange(n) % 2, unseen=theirs,
                   unseen_labels=np.repeat(np.arange(classes), 10), **fields)  # type: ignore[arg-type]  # fmt: skip


def find(readings: Sequence[Reading], name: str) -> Reading:
    return next(r for r in readings if r.name == name)


def call(witness: str, name: str, who: Subject | None = None) -> Reading:
    return find(WITNESSES.get(witness)(who or subject(), material(), 0), name)


def head_of(columns: Sequence[int], shown: bool = True, spoil: bool = False) -> Subject:
    """A head of class texts; or one whose forgotten columns answer by something that it does not show."""
    text = subject().names(material().names, material().templates)[list(columns)]

    def answer(v: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        logits = 30 * v @ text.T
        if spoil:
            noise = torch.randn(len(v), len(FORGET), generator=generator_for(0, 3))
            logits[:, : len(FORGET)] = -60 * (1 + noise.abs())
        return logits

    return Subject(clip(), answer, list(columns), text if shown else None)
