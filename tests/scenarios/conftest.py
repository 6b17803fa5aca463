"""Small real data for the tests of this room."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clapforget.scenarios import ImageData, lab


@pytest.fixture(scope="session")
def small_lab() -> ImageData:
    """Four train and two test images of each of the hundred classes."""
    return lab(train_per_class=4, test_per_class=2)


def _write_image(
    path: Path, size: tuple[int, int] = (8, 8), mode: str = "RGB", seed: int = 0
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


@pytest.fixture(scope="session")
def write_image() -> Callable[..., None]:
    """``write_image(path, size, mode, seed)``: a random image; the suffix decides the format."""
    return _write_image


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes a folder of class folders and returns its path."""

    def make(
        classes: tuple[str, ...] = ("ant_hill", "bee", "cow"),
        train: int = 3,
        test: int = 2,
        size: tuple[int, int] = (8, 8),
    ) -> Path:
        root = tmp_path / "things"
        for k, name in enumerate(classes):
            for split, number in (("train", train), ("test", test)):
                for i in range(number):
                    seed = 1000 * k + 10 * i + (split == "test")
                    _write_image(root / split / name / f"{i}.png", size, seed=seed)
        return root

    return make
