"""Where the truth bench takes place: the lab, its forget requests, its models that never knew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from clapforget import lab
from clapforget.clip import Clip
from clapforget.loading import load_clip
from clapforget.scenarios import ImageData
from clapforget.scenarios import lab as lab_data
from clapforget.seeding import generator_for
from clapforget.strategies.twin import twin_backbone
from clapforget.unlearn.base import ForgetTask, Pairs
from clapforget.verify.material import Material, Part, material_from
from clapforget.verify.subject import Subject

__all__ = ["EXCLUDED", "REQUESTS", "World"]

EXCLUDED = ((6, 30), (11, 28, 45, 52, 63, 93), (29, 33, 41, 44, 89))
"""Classes that the twins never saw: three trainings of the built-in backbone."""
REQUESTS = (
    (0, (6, 30)), (1, (11, 28)), (1, (45, 52)), (1, (63, 93)), (1, (11, 45, 63)),
    (2, (29, 33)), (2, (41, 44, 89)),
)  # fmt: skip
"""By seed: which twin, and what is to be forgotten."""


@dataclass(frozen=True, eq=False)
class World:
    """One seed of the bench."""

    seed: int
    data: ImageData
    base: Clip
    request: tuple[int, ...] = ()
    """Instead of the seed's: some of the classes that its twin lacks."""

    @classmethod
    def of(cls, seed: int, request: tuple[int, ...] = ()) -> World:
        """Images of another seed, the built-in model."""
        data = lab_data(train_per_class=20, test_per_class=40, seed=seed)
        return cls(seed, data, load_clip(), request)

    @cached_property
    def before(self) -> Subject:
        """The built-in model as a subject."""
        return Subject(self.base)

    @property
    def forget(self) -> tuple[int, ...]:
        """Known classes to forget."""
        return self.request or REQUESTS[self.seed % len(REQUESTS)][1]

    @property
    def new(self) -> tuple[int, ...]:
        """Two classes that the backbone never knew, to be taught and forgotten."""
        order = torch.randperm(len(lab.new_classes()), generator=generator_for(self.seed, 41))
        return tuple(lab.new_classes()[i] for i in order[:2].tolist())

    def strangers(self, count: int) -> list[int]:
        """Classes that the model never knew, others than :attr:`new`, drawn at random."""
        taken = {*lab.known_classes(), *self.new}
        free = [c for c in self.data.class_order if c not in taken]
        order = torch.randperm(len(free), generator=generator_for(self.seed, 54))
        return [free[i] for i in order[:count].tolist()]

    @cached_property
    def retain(self) -> tuple[int, ...]:
        """Known classes that no twin lacks."""
        gone = EXCLUDED[REQUESTS[self.seed % len(REQUESTS)][0]]
        return tuple(c for c in lab.known_classes() if c not in gone)

    @cached_property
    def twin(self) -> Clip:
        """The backbone trained again without the forgotten classes (minutes, once: then cached)."""
        gone = EXCLUDED[REQUESTS[self.seed % len(REQUESTS)][0]]
        scenario = cast(Any, SimpleNamespace(data=self.data))
        return twin_backbone(self.base, scenario, set(gone), progress=True)[0]

    def material(
        self, forget: Sequence[int], verifier_seed: int, also_kept: Sequence[int] = ()
    ) -> Material:
        """What the verifier is given for a request. :param also_kept: beside :attr:`retain`."""
        unseen = [
            c for c in self.data.class_order if c not in lab.known_classes() and c not in forget
        ]
        return material_from(
            self.data,
            forget,
            retain=[c for c in (*self.retain, *also_kept) if c not in forget],
            unseen=unseen,
            seed=verifier_seed,
        )

    def images(self, classes: Sequence[int], each: int, first: int = 0) -> Part:
        """Images for whoever makes the case: of a split that the verifier never sees. :param first: so many of
        each class are passed over."""
        index = np.concatenate([c + 100 * np.arange(first, first + each) for c in classes])
        return Part(lab.draw("validation", index, self.seed), torch.from_numpy(index % 100))

    def task(self, forget_images: int, retain_images: int) -> ForgetTask:
        """The request as a forgetter sees it. :param forget_images: of each class, as the other."""
        forget = self.images(self.forget, forget_images)
        retain = self.images(self.retain, retain_images)
        return ForgetTask(
            Pairs(forget.images, self.names(forget.labels)),
            Pairs(retain.images, self.names(retain.labels)),
            self.data.templates, self.data.class_names, seed=self.seed,
        )  # fmt: skip

    @cached_property
    def text(self) -> Tensor:
        """Class text features [C, d] of the built-in model; copy before writing."""
        return self.base.class_features(self.data.class_names, self.data.templates).detach()

    def names(self, labels: Sequence[int] | Tensor) -> list[str]:
        """Class names."""
        return [self.data.class_names[int(c)] for c in labels]
