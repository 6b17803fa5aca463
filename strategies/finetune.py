"""Naive fine-tuning with replay: the image tower is trained on each task's data and the memory.

Class weights are the text features, so that the loss is the cross-entropy of CLIP's own answer among
the classes met (Goyal et al., "Finetune like you pretrain", CVPR 2023, with classes for captions)::

    L = mean_b −log softmax_c(s v(image_b) · t_c)[y_b]        AdamW on the image tower

``finetune.train=head`` trains class weights that start at the texts in its place, on a frozen tower:
then it is ``--strategy linear``.

Forgetting: the memory drops the exemplars, the forgetter changes the CLIP as it is now. What the
image tower learned from the deleted images stays in it, unless the forgetter changes that tower.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from clapforget.clip import Clip
from clapforget.errors import UserError, check_least, check_most
from clapforget.strategies.buffer import experience_samples
from clapforget.strategies.clap_forget import ClapForget, strategy_arguments
from clapforget.strategies.registry import STRATEGIES, StrategyEntry, StrategyOptions
from clapforget.strategies.training import warm_up_and_cosine
from clapforget.unlearn.parameters import trainable_copy

__all__ = ["Finetune", "FinetuneSettings"]


@dataclass(frozen=True)
class FinetuneSettings:
    """What fine-tuning changes, and how fast. ``training.epochs``, ``training.batch_size`` and
    ``training.warm_up`` count here too; there is no second stage."""

    train: Literal["image", "image-blocks", "head"] = "image"
    """The image tower, its last blocks, or class weights alone."""
    blocks: int = 1
    """How many last blocks."""
    lr: float = 1e-3
    """Peak rate; for the built-in models. A large CLIP wants 1e-6 to 1e-5."""
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        """:raises UserError: for numbers that make no sense."""
        check_least(self, "finetune", blocks=1, lr=0, weight_decay=0)
        check_most(self, "finetune", blocks=1_000, lr=10, weight_decay=10)


class Finetune(ClapForget):
    """Fine-tuning of the image tower along a stream, answered by zero-shot comparison with the texts.

    A feature cannot be kept across experiences that train: each encodes its images again.
    """

    learned_in_tower = "the image tower, which was trained on them"
    """What deleted images leave behind, in words."""

    def __init__(
        self, *, model: Clip, finetune: FinetuneSettings | None = None, **options: Any
    ) -> None:
        """:param finetune: what is trained. The others as :class:`ClapForget`'s; its ``posterior`` is
        zero-shot.
        :raises UserError: for ``train="head"``, which is ``ClapForget(posterior="linear")``.
        """
        super().__init__(model=model, posterior="zero-shot", **options)
        self.finetune = finetune or FinetuneSettings()
        if self.finetune.train == "head":
            raise UserError("Finetune trains the tower", 'use ClapForget(posterior="linear")')
        self.model.head.keeps_of_samples = self.learned_in_tower

    # ---- learning --------------------------------------------------------------------------
    def check_model_and_optimizer(self, **kwargs: Any) -> None:
        """Columns for the experience's classes, and an optimiser of what is trained."""
        super().check_model_and_optimizer(**kwargs)
        self._open_tower()

    def _open_tower(self) -> None:
        s = self.finetune
        rng = self._generator(7)
        clip, chosen = trainable_copy(self.model.clip, s.train, s.blocks, 0, rng)  # type: ignore[arg-type]
        self.model.clip = clip
        self.optimizer = torch.optim.AdamW(chosen.values(), lr=s.lr, weight_decay=s.weight_decay)
        steps = self.training_settings.epochs * len(self.dataloader)  # type: ignore[arg-type]
        self.schedule = warm_up_and_cosine(
            self.optimizer, steps, self.training_settings.warm_up, self.training_settings.final_lr
        )

    def make_train_dataloader(self, **kwargs: Any) -> None:
        images, labels = self._images()
        self.dataloader = self._image_loader(images.__getitem__, labels, 1)

    def _fit(self, experience: Any, eval_streams: Any, **kwargs: Any) -> None:
        self._run_epochs(self.train_epochs, **kwargs)
        self._close_tower()
        self._select(experience, experience_samples(experience))

    def _close_tower(self) -> None:
        """Freeze the tower, and encode the memory again by it."""
        self.model.clip.requires_grad_(False)
        self.model.clip.zero_grad(set_to_none=True)
        if self.cache.use(self.model.clip) and len(self.memory):
            self.memory_views = self._encode(self.memory.images, self._flips)

    def forward(self) -> Tensor:
        if not self.is_training:
            return super().forward()
        head = self.model.head
        logits = head.logits(self.model.clip.encode_image(self.mb_x))
        self.mb_logits = logits.masked_fill(head.retired, -torch.inf)
        return self.model.by_label(self.mb_logits.detach().softmax(-1))

    def criterion(self) -> Tensor:
        if not self.is_training:
            return super().criterion()
        assert self.mb_logits is not None
        return F.cross_entropy(self.mb_logits, self.model.head.columns(self.mb_y))


def _build(clip: Clip, options: StrategyOptions, seed: int) -> ClapForget:
    arguments = strategy_arguments(clip, options, seed)
    settings: FinetuneSettings = options.extra["finetune"]
    if settings.train == "head":
        return ClapForget(posterior="linear", **arguments)
    return Finetune(finetune=settings, **arguments)


STRATEGIES.register("finetune")(
    StrategyEntry(_build, "zero-shot", extra={"finetune": FinetuneSettings}, reads="memory")
)
