"""Mini-batches of cached features, in place of a data loader over images; and of images, where what
is trained changes their features."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

__all__ = ["FeatureLoader", "ImageLoader"]


class FeatureLoader:
    """Yields ``[features, labels, task ids]`` as Avalanche's loaders do; task ids are all 0.

    With several views of an image (mirrored or not), each pass draws one at random.
    """

    def __init__(
        self,
        views: Tensor,
        labels: Tensor,
        batch_size: int,
        generator: torch.Generator | None = None,
    ) -> None:
        """:param views: features [N, V, d]. :param labels: [N].
        :param generator: shuffles and draws views; None keeps the order and the first view.
        """
        self.views, self.labels = views, labels.to(views.device)
        self.batch_size, self.generator = batch_size, generator

    def __len__(self) -> int:
        return math.ceil(len(self.labels) / self.batch_size)

    def __iter__(self) -> Iterator[list[Tensor]]:
        n, views = len(self.labels), self.views.shape[1]
        order = torch.arange(n)
        view = torch.zeros(n, dtype=torch.long)
        if self.generator is not None:
            order = torch.randperm(n, generator=self.generator)
            view = torch.randint(views, (n,), generator=self.generator)
        order, view = order.to(self.views.device), view.to(self.views.device)
        for rows in order.split(self.batch_size):
            labels = self.labels[rows]
            yield [self.views[rows, view[rows]], labels, torch.zeros_like(labels)]


class ImageLoader:
    """Yields ``[images, labels, task ids]``: uint8 images [B, 3, h, w], task ids all 0."""

    def __init__(
        self, fetch: Callable[[Tensor], Tensor], labels: Tensor, batch_size: int,
        generator: torch.Generator, flip: bool,
    ) -> None:  # fmt: skip
        """:param fetch: gives the images of positions [n]. :param labels: [N].
        :param generator: shuffles, and draws which images are mirrored. :param flip: whether any are.
        """
        self.fetch, self.labels, self.flip = fetch, labels, flip
        self.batch_size, self.generator = batch_size, generator

    def __len__(self) -> int:
        return math.ceil(len(self.labels) / self.batch_size)

    def __iter__(self) -> Iterator[list[Tensor]]:
        order = torch.randperm(len(self.labels), generator=self.generator)
        mirrored = torch.rand(len(order), generator=self.generator) < 0.5
        for rows in order.split(self.batch_size):
            images, labels = self.fetch(rows), self.labels[rows]
            if self.flip:
                images = torch.where(mirrored[rows][:, None, None, None], images.flip(-1), images)
            yield [images, labels, torch.zeros_like(labels)]
