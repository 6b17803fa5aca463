"""Small real models, shared by the tests of the method."""

from __future__ import annotations

from collections.abc import Callable

import open_clip
import pytest
import torch
from hypothesis import settings
from open_clip.model import CLIP

from clapforget.clip import Clip
from clapforget.loading import build_clip, load_clip

# A busy machine is no failure: no test here is about how long an example takes.
settings.register_profile("clapforget", deadline=None)
settings.load_profile("clapforget")


@pytest.fixture(scope="session")
def lab_clip() -> Clip:
    """The built-in model. Shared by all tests: never change it."""
    return load_clip("lab-tiny")


@pytest.fixture
def random_clip() -> Clip:
    """An untrained model of the built-in architecture, for the test alone."""
    return build_clip("lab-tiny", seed=3)


@pytest.fixture
def make_transformer() -> Callable[..., Clip]:
    """``make_transformer(kind, seed, **text)``: an untrained vision transformer of four blocks and a
    text transformer of three."""

    def make(kind: type = CLIP, seed: int = 0, **text) -> Clip:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = kind(
                32, {"image_size": 32, "patch_size": 8, "layers": 4, "width": 64, "head_width": 16},
                {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 3, **text},
            )  # fmt: skip
            for parameter in model.parameters():  # fresh towers are symmetric in places
                torch.nn.init.normal_(parameter, std=0.2)
        return Clip(model, open_clip.SimpleTokenizer(context_length=24), "small")

    return make
