"""Batches of a forget task's pairs, with all that is frozen computed once."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from clapforget.clip import Clip
from clapforget.prefix import Budget, Prefix
from clapforget.seeding import generator_for
from clapforget.unlearn.base import ForgetTask, Pairs

__all__ = ["Batch", "Batches", "Which"]

Which = Literal["forget", "retain"]
"""One of the two sets of a task."""


@dataclass(frozen=True)
class Batch:
    """Pairs of one set: their features by the model in training, and who they are."""

    v: Tensor
    """Unit-norm image features [n, d]."""
    t: Tensor
    """Unit-norm text features [n, d], each pair's name in a template drawn for it."""
    group: Tensor
    """Name ids [n], equal where the name is, in the forget and the retain set alike."""
    v0: Tensor
    """Image features [n, d] of the reference."""
    t0: Tensor
    """Text features [n, d] of the reference."""

    def __len__(self) -> int:
        return len(self.group)

    @property
    def cosines(self) -> Tensor:
        """Matched cosines [n]."""
        return (self.v * self.t).sum(-1)


class Batches:
    """Endless random batches of a task's two sets; each is walked whole before it is shuffled anew.

    The reference's features are computed once, when first asked for, and so is all that comes before
    what may change (:mod:`clapforget.prefix`): where the image tower stays as it is, no image is
    encoded twice. All of it goes when this object goes.
    """

    def __init__(
        self,
        clip: Clip,
        task: ForgetTask,
        forget_batch: int,
        retain_batch: int,
        changing: Collection[str] | None = None,
        megabytes: float = 1024,
    ) -> None:
        """:param clip: the reference: the model before anything is forgotten.
        :param forget_batch: pairs in a batch of the forget set; the last of a walk may have fewer.
        :param retain_batch: pairs in a batch of the retain set.
        :param changing: names of the parameters in which the model in training may differ from the
            reference; None: all.
        :param megabytes: memory for activations before those parameters.
        """
        self.clip, self.task = clip, task
        self.rng = generator_for(task.seed, 1)
        self.scale = clip.scale.detach()
        self.size: dict[Which, int] = {"forget": forget_batch, "retain": retain_batch}
        self._queue: dict[Which, list[Tensor]] = {"forget": [], "retain": []}
        forgotten = set(task.forget.names)
        self.words = [word for word in task.vocabulary if word not in forgotten]
        """The vocabulary's names that are not to be forgotten."""
        self.names = list(dict.fromkeys([*task.forget.names, *task.retain.names]))
        """Distinct names of both sets; a pair's name id is its position here."""
        ids = {name: i for i, name in enumerate(self.names)}
        self._group: dict[Which, Tensor] = {}
        self._name: dict[Which, Tensor] = {}
        self._texts: dict[Which, Prefix] = {}
        self._images: dict[Which, Prefix] = {}
        budget = Budget(megabytes)
        which: Which
        for which in ("forget", "retain"):
            names = self.set(which).names
            distinct = list(dict.fromkeys(names))
            index = {name: i for i, name in enumerate(distinct)}
            self._name[which] = torch.tensor([index[name] for name in names], dtype=torch.long)
            self._group[which] = torch.tensor([ids[name] for name in names], dtype=torch.long)
            texts, images = self._tokenize(distinct), self.set(which).images
            self._texts[which] = Prefix(clip, "text", texts, changing, budget)
            self._images[which] = Prefix(clip, "image", images, changing, budget)
        self._words = Prefix(clip, "text", self._tokenize(self.words), changing, budget)

    def _tokenize(self, names: list[str]) -> Tensor:
        texts = [template.format(name) for name in names for template in self.task.templates]
        return self.clip.tokenize(texts) if texts else torch.zeros(0, 1).long()

    def set(self, which: Which) -> Pairs:
        """All pairs of one set."""
        return self.task.forget if which == "forget" else self.task.retain

    def steps(self, which: Which) -> int:
        """Batches in one walk through a set."""
        return -(-len(self.set(which)) // self.size[which])

    def reference(self, which: Which) -> tuple[Tensor, Tensor]:
        """The reference's image features [n, d] of a set, and text features [m, d] of its distinct
        names in every template."""
        return self._images[which].reference, self._texts[which].reference

    @property
    def word_features(self) -> Tensor:
        """The reference's text features [m, d] of :attr:`words` in every template."""
        return self._words.reference

    def _rows(self, which: Which) -> Tensor:
        if not self._queue[which]:
            order = torch.randperm(len(self.set(which)), generator=self.rng)
            self._queue[which] = list(order.split(self.size[which]))
        return self._queue[which].pop(0)

    def next(self, which: Which, clip: Clip) -> Batch:
        """The next pairs of a set, seen by ``clip``, the model in training.

        Equal texts of a batch are encoded once.
        """
        rows, device = self._rows(which), clip.device
        wording = torch.randint(len(self.task.templates), (len(rows),), generator=self.rng)
        prompts = self._name[which][rows] * len(self.task.templates) + wording
        distinct, back = prompts.unique(return_inverse=True)
        t = self._texts[which](clip, distinct)[back.to(device)]
        v = self._images[which](clip, rows)
        v_all, t_all = self.reference(which)
        v0, t0 = v_all[rows.to(device)], t_all[prompts.to(device)]
        return Batch(v, t, self._group[which][rows].to(device), v0, t0)

    def next_words(self, clip: Clip, size: int) -> tuple[Tensor, Tensor]:
        """Text features [min(size, m), d] of a random part of the vocabulary: by ``clip``, and by
        the reference."""
        size = min(size, len(self._words))
        rows = torch.randperm(len(self._words), generator=self.rng)[:size]
        return self._words(clip, rows), self.word_features[rows.to(clip.device)]

    @cached_property
    def unmatched_level(self) -> float:
        """c̄: the reference's mean cosine of forget images with names that are not theirs: the
        vocabulary's or, without one, the retain set's; 0 where neither is given."""
        others = self.word_features if self.words else self.reference("retain")[1]
        v, _ = self.reference("forget")
        return float((v.mean(0) @ others.mean(0)).item()) if len(others) else 0.0
