"""Exemplar memory as an Avalanche storage policy, which can forget."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from avalanche.benchmarks.utils import TaskAwareSupervisedClassificationDataset
from avalanche.training.storage_policy import ExemplarsBuffer
from torch import Tensor

from clapforget.errors import UserError
from clapforget.posterior import Predictive
from clapforget.scenarios.data import TensorImages
from clapforget.scenarios.interleave import avalanche_dataset
from clapforget.strategies.selection import SELECTORS, Candidates
from clapforget.unlearn.base import generator_for

__all__ = ["UncertaintyBuffer", "experience_samples"]


class UncertaintyBuffer(ExemplarsBuffer):
    """A memory of fixed total size, the same number for every class, filled by a score.

    It holds copies of its exemplars and nothing else, so a deleted sample is gone once
    :meth:`forget` returns: no view of a larger data set keeps it alive.

    Works with Avalanche's ``ReplayPlugin(storage_policy=...)`` as well; scores of a posterior then
    need a strategy that has ``exemplar_predictive``.
    """

    def __init__(
        self, max_size: int = 2000, score: str = "mutual_information", seed: int = 0
    ) -> None:
        """:param max_size: exemplars in all. :param score: a registered selector's name.
        :raises UserError: for an unknown score, or a size below 1.
        """
        if max_size < 1:
            raise UserError(f"a memory of {max_size} exemplars", "give at least 1")
        super().__init__(max_size)
        self.select = SELECTORS.get(score)
        self.score = score
        self.seed = seed
        self.rounds = 0
        """How many times samples were selected: each round has its own random numbers."""
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.images = torch.zeros(0, 3, 1, 1, dtype=torch.uint8)
        """uint8 [n, 3, h, w]."""
        self.labels = torch.zeros(0, dtype=torch.long)
        self.sample_ids = torch.zeros(0, dtype=torch.long)
        self.scores = torch.zeros(0)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def classes(self) -> list[int]:
        """Labels of which the memory holds exemplars, ascending."""
        return self.labels.unique().tolist()

    @property
    def buffer(self) -> TaskAwareSupervisedClassificationDataset:
        """The exemplars as a data set of (float image, label, task 0), with their sample ids."""
        images = TensorImages(self.images, self.labels, "train", fingerprint="memory")
        return avalanche_dataset(images, self.sample_ids.tolist())

    @buffer.setter
    def buffer(self, new_buffer: Any) -> None:
        raise UserError("the memory's buffer cannot be set", "use post_adapt() and forget()")

    def post_adapt(self, agent_state: Any, exp: Any) -> None:
        """Take the best samples of a learn experience, and shrink every class to its share."""
        if getattr(exp, "kind", "learn") != "learn":
            return
        images, labels, ids = experience_samples(exp)
        predict = getattr(agent_state, "exemplar_predictive", None)
        self.add(images, labels, ids, predict(exp) if predict is not None else None)

    def add(
        self, images: Tensor, labels: Tensor, ids: Tensor, predictive: Predictive | None
    ) -> None:
        """Score new samples and keep the best of old and new.

        :param images: uint8 [n, 3, h, w]. :param labels: [n]. :param ids: sample ids [n].
        :param predictive: what the posterior says of the new samples.
        """
        generator = generator_for(self.seed, 11, self.rounds)
        self.rounds += 1
        scores = self.select(Candidates(labels, predictive, generator)).float().cpu()
        fresh = ~torch.isin(ids, self.sample_ids)
        if len(self):
            images = torch.cat([self.images, images[fresh]])
        else:
            images = images[fresh]
        self._keep(
            images,
            torch.cat([self.labels, labels[fresh]]),
            torch.cat([self.sample_ids, ids[fresh]]),
            torch.cat([self.scores, scores[fresh]]),
        )

    def _keep(self, images: Tensor, labels: Tensor, ids: Tensor, scores: Tensor) -> None:
        classes = labels.unique().tolist()
        share, rest = divmod(self.max_size, max(len(classes), 1))
        rows = []
        for place, label in enumerate(classes):
            own = (labels == label).nonzero().flatten()
            best = scores[own].argsort(descending=True, stable=True)
            rows.append(own[best[: share + (place < rest)]])
        kept = torch.cat(rows) if rows else torch.zeros(0, dtype=torch.long)
        self.images, self.labels = images[kept].clone(), labels[kept]
        self.sample_ids, self.scores = ids[kept], scores[kept]

    def forget(self, labels: Iterable[int] = (), sample_ids: Iterable[int] = ()) -> int:
        """Delete exemplars by class and by sample id. :returns: how many were deleted.

        The room stays free until the next learn experience: there is nothing to fill it with.
        """
        gone = torch.isin(self.labels, torch.tensor(list(labels), dtype=torch.long))
        gone |= torch.isin(self.sample_ids, torch.tensor(list(sample_ids), dtype=torch.long))
        self.images, self.labels = self.images[~gone].clone(), self.labels[~gone].clone()
        self.sample_ids, self.scores = self.sample_ids[~gone].clone(), self.scores[~gone].clone()
        return int(gone.sum())

    def resize(self, strategy: Any, new_size: int) -> None:
        """Change the total size; what no longer fits is deleted, lowest scores first."""
        self.max_size = new_size
        self._keep(self.images, self.labels, self.sample_ids, self.scores)

    def state_dict(self) -> dict[str, Tensor]:
        """Everything it holds, as tensors."""
        return {
            "images": self.images, "labels": self.labels, "sample_ids": self.sample_ids,
            "scores": self.scores, "rounds": torch.tensor(self.rounds),
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up a state saved by :meth:`state_dict`."""
        self.images, self.labels = state["images"], state["labels"]
        self.sample_ids, self.scores = state["sample_ids"], state["scores"]
        self.rounds = int(state["rounds"])


def experience_samples(exp: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Images uint8, labels and sample ids of an experience, ours or any of Avalanche's."""
    labels = torch.tensor([int(y) for y in exp.dataset.targets])
    if hasattr(exp, "data") and hasattr(exp.dataset, "sample_id"):
        ids = torch.tensor(list(exp.dataset.sample_id))
        return exp.data.train.images(ids), labels, ids
    images = torch.stack([exp.dataset[i][0] for i in range(len(labels))])
    images = (images.clamp(0, 1) * 255 + 0.5).to(torch.uint8)
    first = getattr(exp, "current_experience", 0) * 10_000_000
    return images, labels, first + torch.arange(len(labels))
