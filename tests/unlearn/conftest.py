"""A request to forget one class that the built-in model knows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from clapforget import lab
from clapforget.unlearn import ForgetTask, Pairs


@pytest.fixture
def pairs() -> Callable[..., Pairs]:
    """``pairs(classes, each, split)``: lab images and the names of their classes."""

    def make(classes, each: int, split: str = "train") -> Pairs:
        index = np.array([c + 100 * i for c in classes for i in range(each)], dtype=int)
        return Pairs(lab.draw(split, index), [lab.class_names()[i % 100] for i in index])

    return make


@pytest.fixture
def task(pairs) -> Callable[..., ForgetTask]:
    """``task(**changes)``: forget class 0, keep five others, protect all names."""

    def make(**changes) -> ForgetTask:
        options = {
            "forget": pairs([0], 16), "retain": pairs([1, 3, 4, 6, 7], 6),
            "templates": lab.TEMPLATES, "vocabulary": lab.class_names(), "seed": 0,
        } | changes  # fmt: skip
        return ForgetTask(**options)

    return make
