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
from clapforget.strategies.selection import Candidates, Reads, find_selector
from clapforget.unlearn.base import generator_for

__all__ = ["UncertaintyBuffer", "experience_samples"]


class UncertaintyBuffer(ExemplarsBuffer):
    """A memory of fixed total size, the same number for every class, filled by a score.

    It holds copies of its exemplars, their scores and how many samples each stands for, and nothing
    else, so a deleted sample is gone once :meth:`forget` returns: no view of a larger data set, and
    no running mean, keeps it alive.

    Works with Avalanche's ``ReplayPlugin(storage_policy=...)`` as well; scores of a posterior then
    need a strategy that has ``exemplar_predictive``, and those of features one of ours. Nothing is
    known there of the exemplars already held: a class that arrives in several experiences has its
    old scores compared with the new ones, though another state of the posterior made them. Other
    benchmarks' images must be of three channels, uint8 or floats in [0, 1]: normalise in the model.
    """

    def __init__(
        self, max_size: int = 2000, score: str = "coverage", seed: int = 0
    ) -> None:
        """:param max_size: exemplars in all. :param score: a registered selector's name, which keeps
            the highest scores, or ``"name:low"``, which keeps the lowest.
        :raises UserError: for an unknown score or direction, or a size below 1.
        """
        if max_size < 1:
            raise UserError(f"a memory of {max_size} exemplars", "give at least 1")
        super().__init__(max_size)
        self.select = find_selector(score)
        self.reads: Reads = self.select.reads
        """What the score reads of the posterior's predictive."""
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
        self.mass = torch.zeros(0)
        """How many samples of the stream each exemplar stands for: those dropped in its favour too."""

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
        """Take the best samples of a learn experience, and shrink every class to its share.

        :raises UserError: for images that :func:`experience_samples` refuses.
        """
        if getattr(exp, "kind", "learn") != "learn":
            return
        images, labels, ids = experience_samples(exp)
        predict = getattr(agent_state, "exemplar_predictive", None)
        self.add(images, labels, ids, predict(exp) if predict is not None else None)

    def add(
        self, images: Tensor, labels: Tensor, ids: Tensor, predictive: Predictive | None = None,
        features: Tensor | None = None, columns: Tensor | None = None, with_held: bool = False,
    ) -> None:  # fmt: skip
        """Score samples and keep the best of old and new.

        Exemplars of classes that no new sample came for keep their order.

        :param images: uint8 [n, 3, h, w]. :param labels: [n]. :param ids: sample ids [n].
        :param predictive: what the posterior says, as much as :attr:`reads` names.
        :param features: unit-norm image features.
        :param columns: the predictive's column of each sample's class.
        :param with_held: whether these three describe the memory's exemplars, followed by the new
            samples. Then exemplars of a class that new samples came for are scored again, together
            with them; otherwise their scores stay as they are.
        :raises UserError: for scores that are not numbers.
        """
        generator = generator_for(self.seed, 11, self.rounds)
        self.rounds += 1
        held = len(self)
        fresh = (~torch.isin(ids, self.sample_ids)).nonzero().flatten()
        images = torch.cat([self.images, images[fresh]]) if held else images[fresh]
        labels = torch.cat([self.labels, labels[fresh]])
        scores = torch.cat([self.scores, torch.full((len(fresh),), torch.nan)])
        mass = torch.cat([self.mass, torch.ones(len(fresh))])
        rows = torch.arange(0 if with_held else held, len(labels))
        rows = rows[torch.isin(labels[rows], labels[held:])]
        described = torch.cat([torch.arange(held), (held if with_held else 0) + fresh])[rows]

        def of(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[described.to(values.device)]

        share, rest = divmod(self.max_size, max(len(labels.unique()), 1))
        candidates = Candidates(
            labels[rows], None if predictive is None else predictive.take(described), generator,
            of(features), of(columns), share + (rest > 0), mass[rows], scores[rows],
        )  # fmt: skip
        if len(rows):
            scores[rows] = self.select(candidates).float().cpu()
        if scores.isnan().any():
            raise UserError(
                f"exemplar score {self.score!r} is not a number: training has diverged",
                "lower its rate",
            )
        self._keep(images, labels, torch.cat([self.sample_ids, ids[fresh]]), scores, mass)

    def _keep(
        self, images: Tensor, labels: Tensor, ids: Tensor, scores: Tensor, mass: Tensor
    ) -> None:
        """Keep each class's best; from then on they stand for all of it, in equal parts."""
        classes, inverse, counts = labels.unique(return_inverse=True, return_counts=True)
        share, rest = divmod(self.max_size, max(len(classes), 1))
        quota = share + (torch.arange(len(classes)) < rest).long()
        order = scores.argsort(descending=True, stable=True)
        order = order[inverse[order].argsort(stable=True)]
        place = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[inverse[order]]
        kept = order[place < quota[inverse[order]]]
        whole = torch.zeros(len(classes)).index_add_(0, inverse, mass)
        left = inverse[kept].bincount(minlength=len(classes))
        self.images, self.labels, self.sample_ids = images[kept], labels[kept], ids[kept]
        self.scores, self.mass = scores[kept], (whole / left)[inverse[kept]]

    def forget(self, labels: Iterable[int] = (), sample_ids: Iterable[int] = ()) -> int:
        """Delete exemplars by class and by sample id. :returns: how many were deleted.

        The room stays free until the next learn experience: there is nothing to fill it with.
        """
        gone = torch.isin(self.labels, torch.tensor(list(labels), dtype=torch.long))
        gone |= torch.isin(self.sample_ids, torch.tensor(list(sample_ids), dtype=torch.long))
        self.images, self.labels = self.images[~gone], self.labels[~gone]  # copies, not views
        self.sample_ids, self.scores = self.sample_ids[~gone], self.scores[~gone]
        self.mass = self.mass[~gone]
        return int(gone.sum())

    def resize(self, strategy: Any, new_size: int) -> None:
        """Change the total size; what no longer fits is deleted, lowest scores first."""
        self.max_size = new_size
        self._keep(self.images, self.labels, self.sample_ids, self.scores, self.mass)

    def state_dict(self) -> dict[str, Tensor]:
        """Everything it holds, as tensors."""
        return {
            "images": self.images, "labels": self.labels, "sample_ids": self.sample_ids,
            "scores": self.scores, "mass": self.mass, "rounds": torch.tensor(self.rounds),
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up a state saved by :meth:`state_dict`."""
        self.images, self.labels = state["images"], state["labels"]
        self.sample_ids, self.scores = state["sample_ids"], state["scores"]
        self.mass = state["mass"]
        self.rounds = int(state["rounds"])


def experience_samples(exp: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Images uint8 [n, 3, h, w], labels and sample ids of an experience, ours or any of Avalanche's.

    :raises UserError: for images that are neither uint8 nor within [0, 1], or not of three channels.
    """
    labels = torch.tensor([int(y) for y in exp.dataset.targets])
    if hasattr(exp, "data") and hasattr(exp.dataset, "sample_id"):
        ids = torch.tensor(list(exp.dataset.sample_id))
        return exp.data.train.images(ids), labels, ids
    number = getattr(exp, "current_experience", 0)
    images = torch.stack([exp.dataset[i][0] for i in range(len(labels))])
    images = _as_bytes(images, f"images of experience {number}")
    return images, labels, number * 10_000_000 + torch.arange(len(labels))


def _as_bytes(images: Tensor, what: str) -> Tensor:
    if images.dim() != 4 or images.shape[1] != 3:
        raise UserError(
            f"{what} are {list(images.shape[1:])}", "give them three channels, [3, h, w]"
        )
    if images.dtype == torch.uint8:
        return images
    bytes_ = images * 255 + 0.5
    if not ((bytes_ >= 0) & (bytes_ < 256)).all():  # half a step outside rounds to what is inside
        low, high = float(images.min()), float(images.max())
        raise UserError(
            f"{what} reach from {low:.2f} to {high:.2f}",
            "give floats in [0, 1] or uint8, and normalise in the model",
        )
    return bytes_.to(torch.uint8)
