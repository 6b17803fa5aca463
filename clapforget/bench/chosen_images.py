"""Which of a scenario's images a method learns from, and by which it is judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from clapforget.errors import UserError
from clapforget.scenarios import TensorImages
from clapforget.seeding import generator_for

__all__ = ["chosen_images"]


def chosen_images(per_class: int, validation: int, seed: int) -> Callable[[Any], Any]:
    """A change of a scenario: of each class's training images ``validation`` stand in for its test images,
    where asked for, and of the others ``per_class`` are learned from, or all (0).

    :raises UserError: where a class would be left without images.
    """

    def change(scenario: Any) -> Any:
        data = scenario.data
        rng = generator_for(seed, 31)
        canonical = torch.tensor(data.class_order)[data.train.targets]
        drawn = [
            own[torch.randperm(len(own), generator=rng)]
            for c in range(data.num_classes)
            for own in [(canonical == c).nonzero().flatten()]
        ]
        fewest = min(map(len, drawn))
        if fewest <= validation:
            raise UserError(
                f"{validation} validation images a class, where a class has {fewest} training images",
                f"hold out at most {fewest - 1}",
            )

        def images(split: Literal["train", "test"], parts: list[Tensor]) -> TensorImages:
            rows = torch.cat(parts).sort().values
            return TensorImages(data.train.images(rows), data.train.targets[rows], split)

        few = images("train", [own[validation:][: per_class or None] for own in drawn])
        test = images("test", [own[:validation] for own in drawn]) if validation else data.test
        return replace(scenario, data=replace(data, train=few, test=test, captions=None))

    return change
