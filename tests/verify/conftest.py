"""Short real lives that end in certificates."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from avalanche.training.plugins import EvaluationPlugin

from clapforget import load_clip
from clapforget.scenarios import ImageData, lab, stream
from clapforget.strategies import ClapForget, UncertaintyBuffer
from clapforget.verify import Certificate

TEST_IMAGES = 40


@pytest.fixture(scope="session")
def data() -> ImageData:
    return lab(train_per_class=20, test_per_class=TEST_IMAGES)


@pytest.fixture(scope="session")
def certify(data: ImageData) -> Callable[[str, str], list[Certificate]]:
    """``certify(forgetter, sequence)``: the certificates of that life."""
    clip = load_clip("lab-tiny")

    def live(forgetter: str, sequence: str) -> list[Certificate]:
        strategy = ClapForget(
            clip, forgetter=forgetter, memory=UncertaintyBuffer(60), evaluator=EvaluationPlugin(),
            certify="quick",
        )  # fmt: skip
        strategy.train(stream(data, sequence).train_stream)
        return strategy.certificates

    return live
