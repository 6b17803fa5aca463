"""A small world, the built-in model, and strategies that live through a few requests in seconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from avalanche.training.plugins import EvaluationPlugin

from clapforget import Clip, load_clip
from clapforget.posterior.exact import ExactSettings
from clapforget.scenarios import ImageData, lab
from clapforget.strategies import ClapForget, UncertaintyBuffer
from clapforget.unlearn import Forgetter, make_forgetter

# Of the first ten labels 0, 1, 3, 4, 6, 7 are known from pretraining; 2, 5, 8 are new; 9 is unseen.
MakeStrategy = Callable[..., ClapForget]


@pytest.fixture(scope="session")
def clip() -> Clip:
    return load_clip("lab-tiny")


@pytest.fixture(scope="session")
def data() -> ImageData:
    return lab(train_per_class=20, test_per_class=25)


def quick_forgetter() -> Forgetter:
    """CLIPErase in fewer and smaller steps than by default: enough for one class of the lab."""
    return make_forgetter("cliperase", {"steps": 60, "vocabulary_batch": 48, "retain_batch": 32})


@pytest.fixture(scope="session")
def make_strategy(clip: Clip) -> MakeStrategy:
    """``make_strategy(**options)``: a ClapForget that is quick, quiet and without certificates
    unless told otherwise."""

    def make(**options: Any) -> ClapForget:
        options.setdefault("evaluator", EvaluationPlugin())
        options.setdefault("memory", UncertaintyBuffer(60))
        options.setdefault("certify", False)
        if options.get("posterior") == "exact":
            options.setdefault("head", ExactSettings(features=50))
        if "forgetter" not in options:
            options["forgetter"] = quick_forgetter()
        return ClapForget(clip, **options)

    return make
