"""What small CLIP models are trained from nothing on: the lab, or class folders."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clapforget import lab

__all__ = ["FolderSource", "LabSource", "Source"]


class Source(ABC):
    """Where training batches come from, and what the finished model is tested on."""

    data: str
    names: tuple[str, ...]
    templates: tuple[str, ...]
    classes: tuple[int, ...]
    excluded: tuple[int, ...]

    images: Tensor
    """Training images, uint8 [n, 3, h, w]."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the training pixels, as hex."""
        return hashlib.sha256(self.images.numpy().tobytes()).hexdigest()

    @abstractmethod
    def __len__(self) -> int:
        """Number of training images."""

    @abstractmethod
    def batch(
        self, rows: Tensor, epoch: int, rng: torch.Generator
    ) -> tuple[Tensor, list[str], Tensor]:
        """Images [n, 3, h, w], captions, and group ids [n]: equal ids are each other's positives."""

    @abstractmethod
    def test_images(self) -> tuple[Tensor, Tensor]:
        """Images uint8 [n, 3, h, w] of every class and their labels [n]."""

    def retrieval_pairs(self) -> tuple[Tensor, list[str]] | None:
        """Images and distinct captions for retrieval, where captions are richer than names."""
        return None


class LabSource(Source):
    """The lab: images of the known classes, captions in varying wordings."""

    templates = lab.TEMPLATES

    def __init__(self, excluded: Sequence[int] = (), per_class: int = 670, seed: int = 0) -> None:
        """:param excluded: known classes to leave out (canonical ids): the way to make a twin.
        :param per_class: images a class. :param seed: world seed of the images.
        """
        self.data = "lab"
        self.names = lab.class_names()
        self.excluded = tuple(sorted(excluded))
        self.classes = tuple(c for c in lab.known_classes() if c not in self.excluded)
        index = np.arange(per_class * lab.NUM_CLASSES)
        self.index = index[np.isin(index % lab.NUM_CLASSES, self.classes)]
        self.seed = seed
        self.images = lab.draw("pretrain", self.index, seed)

    def __len__(self) -> int:
        return len(self.index)

    def batch(
        self, rows: Tensor, epoch: int, rng: torch.Generator
    ) -> tuple[Tensor, list[str], Tensor]:
        texts = lab.captions("pretrain", self.index[rows.numpy()], self.seed, variant=epoch)
        group = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        return self.images[rows], texts, torch.tensor([group[text] for text in texts])

    def test_images(self) -> tuple[Tensor, Tensor]:
        index = np.arange(50 * lab.NUM_CLASSES)
        return lab.draw("test", index, self.seed), torch.from_numpy(index % lab.NUM_CLASSES)

    def retrieval_pairs(self) -> tuple[Tensor, list[str]]:
        index = np.arange(50 * lab.NUM_CLASSES)
        index = index[np.isin(index % lab.NUM_CLASSES, self.classes)]
        texts = lab.captions("test", index, self.seed)
        first = {text: i for i, text in reversed(list(enumerate(texts)))}
        rows = np.array(sorted(first.values()))[:1000]
        return lab.draw("test", index[rows], self.seed), [texts[row] for row in rows]


class FolderSource(Source):
    """Images with class labels; a caption is the class name in a random template."""

    def __init__(
        self,
        data: str,
        train: tuple[Tensor, Tensor],
        test: tuple[Tensor, Tensor],
        names: Sequence[str],
        templates: Sequence[str],
        classes: Sequence[int],
        excluded: Sequence[int] = (),
        flip: bool = True,
    ) -> None:
        """:param train: images uint8 [n, 3, h, w] and labels [n]. :param test: the same.
        :param names: of all classes. :param classes: labels to train on, before ``excluded``.
        """
        self.data = data
        self.names, self.templates = tuple(names), tuple(templates)
        self.excluded = tuple(sorted(excluded))
        self.classes = tuple(c for c in classes if c not in self.excluded)
        keep = torch.isin(train[1], torch.tensor(self.classes))
        self.images, self.labels = train[0][keep], train[1][keep]
        self.test = test
        self.flip = flip

    @classmethod
    def of(cls, data: Any, excluded: Sequence[int] = (), flip: bool | None = None) -> FolderSource:
        """The known classes of an :class:`~clapforget.scenarios.ImageData`, or all of them."""
        train, test = (
            (split.images(torch.arange(len(split))), split.targets)
            for split in (data.train, data.test)
        )
        classes = range(data.num_classes) if data.known is None else sorted(data.known)
        return cls(
            data.name, train, test, data.class_names, data.templates, classes, excluded,
            data.flip if flip is None else flip,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.labels)

    def batch(
        self, rows: Tensor, epoch: int, rng: torch.Generator
    ) -> tuple[Tensor, list[str], Tensor]:
        labels = self.labels[rows]
        wording = torch.randint(len(self.templates), (len(rows),), generator=rng)
        texts = [
            self.templates[w].format(self.names[c])
            for w, c in zip(wording.tolist(), labels.tolist())
        ]
        return _augment(self.images[rows], self.flip, rng), texts, labels

    def test_images(self) -> tuple[Tensor, Tensor]:
        return self.test


def _augment(images: Tensor, flip: bool, rng: torch.Generator, pad: int = 4) -> Tensor:
    """Random shift by up to ``pad`` pixels, mirror, brightness, contrast, and one grey square."""
    n, _, height, width = images.shape
    x = F.pad(images.float() / 255, (pad,) * 4, mode="reflect")
    dy, dx = torch.randint(0, 2 * pad + 1, (2, n, 1), generator=rng)
    rows, columns = dy + torch.arange(height), dx + torch.arange(width)
    if flip:
        mirrored = torch.rand(n, 1, generator=rng) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    x = x[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(
        0, 3, 1, 2
    )
    gain, shift = torch.rand(2, n, 1, 1, 1, generator=rng)
    mean = x.mean((1, 2, 3), keepdim=True)
    x = (x - mean) * (0.7 + 0.6 * gain) + mean * (0.7 + 0.6 * shift)
    side = height // 4
    top = torch.randint(-side // 2, height - side // 2, (n, 1), generator=rng)
    left = torch.randint(-side // 2, width - side // 2, (n, 1), generator=rng)
    down, across = torch.arange(height)[None] - top, torch.arange(width)[None] - left
    hidden = ((down >= 0) & (down < side))[:, :, None] & ((across >= 0) & (across < side))[
        :, None, :
    ]
    return x.clamp(0, 1).masked_fill(hidden[:, None], 0.5)
