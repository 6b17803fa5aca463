"""What every head has: the classes met so far, and what it says of images about them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clapforget.errors import UserError
from clapforget.posterior.predictive import Predictive
from clapforget.prompts.base import Prompt
from clapforget.registry import Registry

__all__ = ["HEADS", "Change", "Head", "OnePassHead"]


@dataclass
class Change:
    """What a forget request did to the images and features a head stands on."""

    labels: Sequence[int]
    """Classes to forget."""
    forget_before: Tensor
    """Features of the request's images as they were learned, [n, V, d] with V views."""
    forget_labels: Tensor
    """[n]"""
    forget_ids: Tensor
    """Sample ids, [n]."""
    forget_after: Tensor
    """The same images under the changed image tower, [n, V, d]; equal where it did not change."""
    memory_before: Tensor
    """Features of the exemplars that stay, [m, V, d]."""
    memory_after: Tensor
    memory_labels: Tensor
    """[m]"""
    tower: str
    """Fingerprint of the image tower now."""
    memory_ids: Tensor
    """Sample ids of the exemplars that stay, [m]."""


class Head(nn.Module, ABC):
    """Classes in columns, and a posterior predictive over them.

    A forgotten class stays a column (so that predicting it would show) but is *retired*: nothing
    later is learned for it, and its posterior is held at the prior. A subclass registers itself in
    :data:`HEADS` and names its options in ``Settings``.
    """

    Settings: ClassVar[type]
    settings_group: ClassVar[str]
    """Name of its settings on the command line: ``--set GROUP.NAME=VALUE``."""

    prompt: Prompt | None
    """Learned prompts that word the classes, if any."""
    templates: Tensor
    labels: Tensor
    task: Tensor
    retired: Tensor
    hidden: Tensor

    def __init__(self, width: int, scale: float, settings: Any = None, seed: int = 0) -> None:
        """:param width: d of the joint space. :param scale: CLIP's frozen ``exp(logit_scale)``.
        :param seed: of everything random in it.
        """
        super().__init__()
        self.settings = self.Settings() if settings is None else settings
        self.width, self.scale, self.seed = width, scale, seed
        self.register_module("prompt", None)
        self.register_buffer("templates", torch.zeros(0, 1, width))
        self.register_buffer("labels", torch.zeros(0, dtype=torch.long))
        self.register_buffer("task", torch.zeros(0, dtype=torch.long))
        self.register_buffer("retired", torch.zeros(0, dtype=torch.bool))
        self.register_buffer("hidden", torch.zeros(0, dtype=torch.bool))

    # ---- classes ---------------------------------------------------------------------------
    @property
    def text(self) -> Tensor:
        """Class text features t [C, d]: mean of the template features, or as prompts word them;
        unit norm."""
        return self.worded(F.normalize(self.templates.mean(1), dim=-1))

    def worded(self, plain: Tensor) -> Tensor:
        """Class texts as learned prompts word them; ``plain`` [C, d] where there are none, for
        retired classes, and where the wording depends on the image."""
        if self.prompt is None or self.prompt.by_image:
            return plain
        return torch.where(self.retired[:, None], plain, self.prompt.texts)

    def offset(self, v: Tensor) -> Tensor:
        """What prompts chosen by the image add to the logits of :attr:`text`, ``s v·(t_c(v) − t_c)``;
        zero for retired classes and other prompts. [B, d] to [B, C]"""
        if self.prompt is None or not self.prompt.by_image:
            return v.new_zeros(len(v), len(self.labels))
        return self.scale * (self.prompt.similarity(v) - v @ self.text.T).masked_fill(
            self.retired, 0.0
        )

    def shifted(self, logits: Tensor, v: Tensor) -> Tensor:
        """Logits [..., B, C] of :attr:`text` with :meth:`offset`, where prompts are chosen by image."""
        return (
            logits if self.prompt is None or not self.prompt.by_image else logits + self.offset(v)
        )

    @property
    def tasks(self) -> int:
        """Number of tasks opened so far."""
        return int(self.task.max()) + 1 if len(self.task) else 0

    def columns(self, labels: Sequence[int] | Tensor) -> Tensor:
        """Columns of class labels, [n]; every label must have one."""
        wanted = torch.as_tensor(labels, device=self.labels.device)
        match = wanted[:, None] == self.labels[None, :]
        assert match.any(1).all() if len(wanted) else True, "a label that the head has not met"
        return match.int().argmax(1) if len(wanted) else wanted.long()

    def met(self, labels: Sequence[int]) -> list[int]:
        """Those of the labels that have a column."""
        known = set(self.labels.tolist())
        return [label for label in labels if label in known]

    def grow(self, labels: Sequence[int], templates: Tensor) -> None:
        """Open a task for some classes. A class that was forgotten before joins the new task.

        :param labels: class labels. :param templates: their template features E [n, L, d].
        """
        newest = self.tasks
        kept = ~torch.isin(self.labels, torch.as_tensor(labels, device=self.labels.device))
        n, device = len(labels), self.labels.device
        old = self.templates[kept] if len(self.labels) else templates[:0]
        self.templates = torch.cat([old, templates.to(old)])
        self.labels = torch.cat(
            [self.labels[kept], torch.tensor(list(labels), dtype=torch.long, device=device)]
        )
        self.task = torch.cat([self.task[kept], torch.full((n,), newest, device=device)])
        awake = torch.zeros(n, dtype=torch.bool, device=device)
        self.retired = torch.cat([self.retired[kept], awake])
        self.hidden = torch.cat([self.hidden[kept], awake])

    def retire(self, labels: Sequence[int]) -> None:
        """Mark classes as forgotten."""
        self.retired = self.retired.clone()
        self.retired[self.columns(labels)] = True

    def hide(self, labels: Sequence[int]) -> None:
        """Never predict these classes, whatever the posterior says of them: what a forgetter that
        only pretends would do. Kept for the control of that name."""
        self.hidden = self.hidden.clone()
        self.hidden[self.columns(labels)] = True

    # ---- what a posterior says -------------------------------------------------------------
    @abstractmethod
    def predict(self, v: Tensor, batch_size: int = 1024) -> Predictive:
        """Posterior predictive of image features v [B, d] over all columns."""

    def probs(self, v: Tensor) -> Tensor:
        """The predictive's class probabilities alone, [B, C]: without uncertainty, where that is less work."""
        return self.predict(v).probs

    @abstractmethod
    def nats(self) -> Tensor:
        """KL of each class's posterior over its prior, in nats. [C]"""

    def guide(self, features: Tensor) -> None:
        """Take exemplars' features [K, d] as context, where a head uses any."""

    def reword(self, templates: Tensor) -> None:
        """Take new template features [C, L, d], after the text tower changed."""
        self.templates = templates.to(self.templates)

    # ---- forgetting ------------------------------------------------------------------------
    def hold(self) -> Any:
        """What the head needs to remember, through a forget request, of how it was before."""
        return None

    @abstractmethod
    def forget(
        self, change: Change, held: Any, settings: Any, generator: torch.Generator
    ) -> dict[str, Any]:
        """Forget classes; text and context are those after the request already.

        :param held: what :meth:`hold` gave before the request.
        :param settings: a :class:`~clapforget.posterior.forgetting.PosteriorForgetting`.
        :returns: losses by step, or other plain values, by name.
        """

    keeps_of_samples: str = "everything: it cannot forget single samples"
    """What the head still holds of samples after :meth:`forget_samples`, in words; empty: nothing."""

    def forget_samples(
        self, change: Change, held: Any, settings: Any, generator: torch.Generator
    ) -> dict[str, Any]:
        """Forget samples of classes that stay; arguments and result as :meth:`forget`.

        :param change: without labels; its ``forget_*`` rows are of classes learned and not forgotten.
        :raises UserError: if the head can't.
        """
        raise UserError(
            f"the posterior {type(self).__name__} cannot forget single samples",
            "forget the whole class, or use another posterior",
        )

    def settle(self) -> None:
        """Called after every Learn request: keep forgotten classes at the prior."""

    # ---- saved state -----------------------------------------------------------------------
    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Load a state of any number of classes and tasks."""
        for name, value in self.named_buffers():
            if name in state_dict and value.shape != state_dict[name].shape:
                owner, _, leaf = name.rpartition(".")
                setattr(
                    self.get_submodule(owner),
                    leaf,
                    torch.empty_like(state_dict[name], device=value.device),
                )
        return super().load_state_dict(state_dict, strict, assign)


class OnePassHead(Head):
    """A head that learns from an experience's features in one pass, without gradient steps."""

    @abstractmethod
    def learn(self, v: Tensor, labels: Tensor, ids: Tensor, tower: str) -> None:
        """Take an experience's data in.

        :param v: image features [n, V, d], V views of each image. :param labels: [n].
        :param ids: sample ids [n], by which samples can be deleted.
        :param tower: fingerprint of the image tower that made the features.
        """


HEADS: Registry[type[Head]] = Registry("posterior", "clapforget.posterior")
"""Posteriors by name."""
