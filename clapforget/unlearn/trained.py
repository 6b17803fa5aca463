"""The template of forgetters that train: the loop, the optimiser, the losses by step.

A method names its options in a subclass of :class:`TrainedSettings` and overrides
:meth:`TrainedForgetter.terms`, which returns its loss by weighted terms. The rest is here.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from clapforget.clip import Clip
from clapforget.errors import UserError, check_least, check_most
from clapforget.seeding import generator_for
from clapforget.unlearn.base import ForgetTask, Forgetter, Unlearned
from clapforget.unlearn.batches import Batches
from clapforget.unlearn.parameters import Train, merge_low_rank, trainable_copy
from clapforget.unlearn.validation import Validation, hold_out_task

__all__ = ["SLUG_BASELINE", "Preparation", "Terms", "TrainedForgetter", "TrainedSettings"]

Terms = dict[str, tuple[float, Tensor]]
"""A loss by its terms: name to (weight, scalar). Their weighted sum is minimised."""

SLUG_BASELINE: Mapping[str, Any] = {
    "lr": 1e-6, "weight_decay": 0.1, "schedule": "cosine", "epochs": 10, "forget_batch": 32,
    "retain_batch": 32,
}  # fmt: skip
"""How SLUG's program trains the methods it is compared with (arXiv 2407.11867; lr 1e-6 or 1e-7)."""


@dataclass(frozen=True)
class TrainedSettings:
    """What trains, on how much at a time, how fast and how long."""

    train: Train = "all"
    """Which parameters change: see :mod:`clapforget.unlearn.parameters`."""
    blocks: int = 1
    """How many last blocks of a tower, where ``train`` says blocks."""
    rank: int = 4
    """Rank of the change, where ``train`` says lora."""
    lr: float = 1e-4
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate over the steps; ``cosine`` falls to 0."""
    steps: int = 0
    """Number of steps; 0: as many as ``epochs`` take."""
    epochs: int = 10
    forget_batch: int = 32
    retain_batch: int = 32
    weight_decay: float = 0.0
    validation: float = 0.0
    """Fraction of the forget and the retain pairs held out to choose the best epoch on, by
    ``Acc(retain) − Acc(forget)``; 0: train on all, keep the last step."""
    prefix_mb: float = 1024.0
    """Memory for activations before what trains, computed once (:mod:`clapforget.prefix`); 0: none
    is kept. The validation pairs have as much again."""

    def __post_init__(self) -> None:
        """:raises UserError: for numbers that cannot work."""
        if self.steps == 0 and self.epochs < 1:
            raise UserError("no step and no epoch to train", "set steps or epochs to 1 or more")
        for name, value in asdict(self).items():
            if (name.endswith("_batch") or name in ("blocks", "rank")) and value < 1:
                raise UserError(f"setting {name}={value}", "give 1 or more")
            if (name.endswith(("_weight", "_decay")) or name == "steps") and value < 0:
                raise UserError(f"setting {name}={value}", "give 0 or more")
        check_least(self, "forget", epochs=0, prefix_mb=0)
        check_most(self, "forget", blocks=1_000, rank=10_000, lr=10, weight_decay=10)
        if self.lr <= 0:
            raise UserError(f"setting lr={self.lr}", "give a positive number")
        if not 0 <= self.validation < 1:
            raise UserError(f"setting validation={self.validation}", "give 0 or more, below 1")


@dataclass(frozen=True)
class Preparation:
    """What a method has worked out before the first step."""

    notes: dict[str, Any] = field(default_factory=dict)
    """To be recorded beside the settings."""
    constrain: Callable[[], None] = lambda: None
    """Called after every step: puts the parameters where they may be."""


class TrainedForgetter(Forgetter):
    """A forgetter that minimises a loss over batches of the forget and the retain set.

    Where a setting ``validation`` is given, the model after the best epoch is returned.
    """

    Settings: ClassVar[type] = TrainedSettings
    settings: TrainedSettings
    needs_retain: ClassVar[bool] = False
    """Whether an empty retain set is a mistake."""
    make_optimizer: ClassVar[Callable[..., torch.optim.Optimizer]] = partial(
        torch.optim.AdamW, betas=(0.9, 0.98), eps=1e-6
    )
    """Called with the parameters, ``lr`` and ``weight_decay``. AdamW as in SLUG's baselines."""

    @abstractmethod
    def terms(self, clip: Clip, batches: Batches, step: int) -> Terms:
        """The loss of one step, by its terms.

        :param clip: the model in training.
        :param step: number of steps done.
        """

    def epoch(self, batches: Batches) -> int:
        """Steps in an epoch: one walk through the forget set."""
        return batches.steps("forget")

    def backward(self, terms: Terms, parameters: Sequence[nn.Parameter]) -> None:
        """Leave in each parameter's ``grad`` the direction that the optimiser is to descend."""
        torch.stack([weight * value for weight, value in terms.values()]).sum().backward()

    def prepare(
        self, clip: Clip, batches: Batches, parameters: Sequence[nn.Parameter]
    ) -> Preparation:
        """What is worked out once before the first step, ``clip`` being as it was given."""
        return Preparation()

    def unlearn(self, clip: Clip, task: ForgetTask) -> Unlearned:
        s = self.settings
        if not len(task.forget):
            raise UserError("the forget set is empty", "give the data to forget")
        if self.needs_retain and not len(task.retain):
            raise UserError(
                f"the retain set is empty, and {type(self).__name__} needs one",
                "give retain pairs (a stream's exemplar memory), or take a method without",
            )
        rng = generator_for(task.seed, 3)
        changed, chosen = trainable_copy(clip, s.train, s.blocks, s.rank, rng)
        validation = None
        if s.validation:
            task, held = hold_out_task(task, s.validation)
            validation = Validation(clip, held, chosen, s.prefix_mb)
        batches = Batches(clip, task, s.forget_batch, s.retain_batch, chosen, s.prefix_mb)
        parameters = list(chosen.values())
        prepared = self.prepare(changed, batches, parameters)
        optimizer = type(self).make_optimizer(parameters, lr=s.lr, weight_decay=s.weight_decay)
        epoch = self.epoch(batches)
        steps = s.steps or s.epochs * epoch
        rate = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_RATES[s.schedule], steps))
        losses: dict[str, list[float]] = {}
        for step in range(steps):
            terms = self.terms(changed, batches, step)
            optimizer.zero_grad(set_to_none=True)
            self.backward(terms, parameters)
            optimizer.step()
            prepared.constrain()
            rate.step()
            for name, (_, value) in terms.items():
                losses.setdefault(name, []).append(round(value.item(), 6))
            done = step + 1
            if validation is not None and (done % epoch == 0 or done == steps):
                validation.look(changed, done, chosen)
            task.progress(done, steps)
        notes = {"settings": asdict(s), **prepared.notes}
        if validation is not None:
            validation.restore(chosen)
            notes |= {"best_step": validation.best_step, "validation": validation.history}
        if s.train.endswith("lora"):
            changed = merge_low_rank(clip, changed)
        changed.requires_grad_(False)
        return Unlearned(changed, steps, losses, notes)


def _constant(steps: int, step: int) -> float:
    return 1.0


def _cosine(steps: int, step: int) -> float:
    return (1 + math.cos(math.pi * step / steps)) / 2


_RATES: dict[str, Callable[[int, int], float]] = {"constant": _constant, "cosine": _cosine}
