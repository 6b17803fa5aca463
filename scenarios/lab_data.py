"""The built-in world as a data set: drawn, not downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from clapforget.errors import UserError
from clapforget.lab import (
    NUM_CLASSES,
    TEMPLATES,
    captions,
    class_names,
    draw,
    known_classes,
    neighbours,
)
from clapforget.scenarios.data import ImageData, Split, TensorImages

__all__ = ["lab"]


def lab(
    train_per_class: int = 100,
    test_per_class: int = 60,
    class_order: Sequence[int] | None = None,
    seed: int = 0,
) -> ImageData:
    """A hundred classes of 32 x 32 images (about 0.3 ms an image to draw).

    :param class_order: canonical class of each label; ``None`` keeps the canonical order.
    :param seed: of the images. Labels, names and what is known do not depend on it.
    :raises UserError: for less than one image a class, or an order that is no permutation.
    """
    if min(train_per_class, test_per_class) < 1:
        raise UserError(
            f"the lab was asked for {train_per_class} train and {test_per_class} test images "
            "a class",
            "ask for one at least",
        )
    data = ImageData(
        name="lab",
        class_names=class_names(),
        train=_draw("train", train_per_class, seed),
        test=_draw("test", test_per_class, seed),
        known=frozenset(known_classes()),
        neighbour_sets=tuple(neighbours(label) for label in range(NUM_CLASSES)),
        templates=TEMPLATES,
        captions=partial(_captions, seed),
    )
    return data if class_order is None else data.reorder(class_order)


def _draw(split: Split, per_class: int, seed: int) -> TensorImages:
    index = np.arange(per_class * NUM_CLASSES)  # the class goes round: label = index % 100
    return TensorImages(draw(split, index, seed), torch.from_numpy(index % NUM_CLASSES), split)


def _captions(seed: int, split: Split, rows: Tensor) -> list[tuple[str, ...]]:
    """Two an image: everything said in the first wording, and a part of it in another."""
    index = rows.numpy()
    return list(zip(captions(split, index, seed), captions(split, index, seed, variant=0)))
