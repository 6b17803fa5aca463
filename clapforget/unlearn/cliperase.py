"""CLIPErase (Yang et al., ACL 2025, arXiv 2410.23330), as published and as this project runs it.

With matched cosines ``cos_i = v_i · t_i``, scale s, θ⁰ the frozen reference:

==================  =============================================================================
forgetting  L_FM    ``dot``: mean cos_i over forget pairs, minimised without bound (published);
                    ``square``: mean (cos_i − c̄)², c̄ the reference's mean cosine of forget images
                    with other names, so that forgotten pairs end where unmatched pairs are;
                    ``floor``: mean max(0, cos_i − c̄), one-sided
retention   L_RM    symmetric contrastive loss on retain pairs
consistency L_CM    KL(p⁰ ‖ p) of the rows and of the columns of the retain batch's similarity
                    softmax, p⁰ of the reference (reading (a) of "unimodal output distributions")
vocabulary  L_V     mean (1 − cos) between a text's feature now and in the reference, over names that
                    are not to be forgotten; needs no images (ours: it is what protects the classes
                    that no exemplar shows)
total               λ_R L_RM + λ_F L_FM + λ_C L_CM + λ_V L_V
==================  =============================================================================
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from clapforget.clip import Clip
from clapforget.errors import UserError
from clapforget.unlearn.base import (
    FORGETTERS,
    ForgetTask,
    Forgetter,
    Pairs,
    Unlearned,
    generator_for,
)

__all__ = [
    "CLIPErase",
    "CLIPEraseSettings",
    "consistency_loss",
    "forgetting_loss",
    "retention_loss",
]


@dataclass(frozen=True)
class CLIPEraseSettings:
    """Weights, data and optimiser. Adam with betas (0.9, 0.98), constant rate."""

    forgetting: Literal["dot", "square", "floor"] = "square"
    forget_weight: float = 3.0
    retain_weight: float = 0.0
    """Published: 1. Off by default: on a stream's memory it is supervised fine-tuning, which teaches
    CLIP the memory's names and moves others; what it is to keep, consistency keeps."""
    consistency_weight: float = 3.0
    vocabulary_weight: float = 30.0
    train: Literal["all", "image", "text"] = "text"
    """Which tower's parameters change; ``all`` includes the logit scale."""
    positives: Literal["same-name", "diagonal"] = "same-name"
    """Whether pairs of the same name count as each other's positives in L_RM. With class names as
    captions ``diagonal``, as published, treats many true pairs as negatives."""
    lr: float = 5e-4
    steps: int = 150
    """Number of steps; 0: as many as ``epochs`` over the forget pairs take."""
    epochs: int = 20
    forget_batch: int = 16
    retain_batch: int = 64
    vocabulary_batch: int = 128
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        """:raises UserError: for numbers that cannot work."""
        if self.steps <= 0 and self.epochs < 1:
            raise UserError(
                "CLIPErase with no step and no epoch", "set steps or epochs to 1 or more"
            )
        for name in ("forget_batch", "retain_batch", "vocabulary_batch"):
            if getattr(self, name) < 1:
                raise UserError(f"setting {name}={getattr(self, name)}", "give 1 or more")
        for name in ("forget_weight", "retain_weight", "consistency_weight", "vocabulary_weight",
                     "weight_decay", "steps"):  # fmt: skip
            if getattr(self, name) < 0:
                raise UserError(f"setting {name}={getattr(self, name)}", "give 0 or more")
        if self.lr <= 0:
            raise UserError(f"setting lr={self.lr}", "give a positive number")


def forgetting_loss(cosines: Tensor, kind: str, level: float) -> Tensor:
    """L_FM of matched cosines [n]. :param level: c̄, used by ``square`` and ``floor``."""
    if kind == "dot":
        return cosines.mean()
    excess = cosines - level
    return excess.square().mean() if kind == "square" else excess.clamp_min(0).mean()


def retention_loss(v: Tensor, t: Tensor, scale: Tensor, group: Tensor | None) -> Tensor:
    """L_RM: ``½ [CE(s V Tᵀ) + CE(s T Vᵀ)]`` on pairs v, t [n, d].

    :param group: pairs with equal ids [n] are each other's positives; None: the diagonal only.
    """
    group = torch.arange(len(v), device=v.device) if group is None else group
    target = (group[:, None] == group[None, :]).to(v)
    target = target / target.sum(1, keepdim=True)
    logits = scale * v @ t.T
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def consistency_loss(logits: Tensor, reference: Tensor) -> Tensor:
    """L_CM: ``KL(p⁰ ‖ p)`` over rows plus over columns of similarities times scale, [n, n] each."""
    now, then = F.log_softmax(logits, 1), F.log_softmax(reference, 1)
    rows = F.kl_div(now, then, log_target=True, reduction="batchmean")
    now, then = F.log_softmax(logits.T, 1), F.log_softmax(reference.T, 1)
    return rows + F.kl_div(now, then, log_target=True, reduction="batchmean")


@FORGETTERS.register("cliperase")
class CLIPErase(Forgetter):
    """Three losses over forget and retain pairs, and one over names."""

    Settings = CLIPEraseSettings
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {},
        "published": {
            "forgetting": "dot", "retain_weight": 1.0, "vocabulary_weight": 0.0, "train": "all",
            "positives": "diagonal", "lr": 1e-6, "steps": 0, "forget_batch": 16, "retain_batch": 16,
        },
    }  # fmt: skip
    settings: CLIPEraseSettings

    def unlearn(self, clip: Clip, task: ForgetTask) -> Unlearned:
        s = self.settings
        if not len(task.forget):
            raise UserError("the forget set is empty", "CLIPErase needs the data to forget")
        tower = None if s.train == "all" else s.train
        changed = clip.trainable_copy(clip.parameter_names(tower))
        parameters = [p for p in changed.model.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(
            parameters, lr=s.lr, betas=(0.9, 0.98), weight_decay=s.weight_decay
        )
        forgotten = set(task.forget.names)
        words = [name for name in task.vocabulary if name not in forgotten]
        data = _Batches(clip, task, s, words)
        level = data.unmatched_level(words)
        steps = s.steps or s.epochs * -(-len(task.forget) // s.forget_batch)
        losses: dict[str, list[float]] = {}
        for step in range(steps):
            terms = self._terms(changed, data, level)
            total = torch.stack([weight * value for weight, value in terms.values()]).sum()
            optimizer.zero_grad(set_to_none=True)
            total.backward()
            optimizer.step()
            for name, (_, value) in terms.items():
                losses.setdefault(name, []).append(round(value.item(), 6))
            task.progress(step + 1, steps)
        changed.requires_grad_(False)
        return Unlearned(changed, steps, losses, {"settings": asdict(s), "level": round(level, 6)})

    def _terms(self, clip: Clip, data: _Batches, level: float) -> dict[str, tuple[float, Tensor]]:
        s = self.settings
        v, t, _, _ = data.pairs("forget", clip)
        cosines = (v * t).sum(-1)
        terms = {"forgetting": (s.forget_weight, forgetting_loss(cosines, s.forgetting, level))}
        if len(data.task.retain) and (s.retain_weight or s.consistency_weight):
            v, t, group, reference = data.pairs("retain", clip)
            if s.retain_weight:
                positives = group if s.positives == "same-name" else None
                terms["retention"] = (s.retain_weight, retention_loss(v, t, clip.scale, positives))
            if s.consistency_weight:
                loss = consistency_loss(clip.scale * v @ t.T, reference)
                terms["consistency"] = (s.consistency_weight, loss)
        if s.vocabulary_weight and len(data.word_tokens):
            terms["vocabulary"] = (s.vocabulary_weight, data.vocabulary_loss(clip))
        return terms


class _Batches:
    """Random batches of a task, with all that is frozen computed once.

    Where the image tower stays as it is, the image features of both sets are encoded once; the
    reference's outputs always are.
    """

    def __init__(
        self, clip: Clip, task: ForgetTask, settings: CLIPEraseSettings, words: list[str]
    ) -> None:
        self.task, self.settings = task, settings
        self.rng = generator_for(task.seed, 1)
        self.frozen_images = settings.train == "text"
        self.size = {"forget": settings.forget_batch, "retain": settings.retain_batch}
        self.queue: dict[str, list[Tensor]] = {"forget": [], "retain": []}
        self.scale = clip.scale.detach()
        self.v: dict[str, Tensor] = {}
        self.t: dict[str, Tensor] = {}
        self.tokens: dict[str, Tensor] = {}
        self.group: dict[str, Tensor] = {}
        with torch.no_grad():
            for which, pairs in (("forget", task.forget), ("retain", task.retain)):
                names = list(dict.fromkeys(pairs.names))
                texts = [template.format(name) for name in names for template in task.templates]
                self.tokens[which] = clip.tokenize(texts) if texts else torch.zeros(0, 1).long()
                self.t[which] = clip.encode_tokens(self.tokens[which])
                self.v[which] = clip.encode_image(pairs.images)
                index = {name: i for i, name in enumerate(names)}
                self.group[which] = torch.tensor([index[n] for n in pairs.names], dtype=torch.long)
            texts = [template.format(word) for word in words for template in task.templates]
            self.word_tokens = clip.tokenize(texts) if texts else torch.zeros(0, 1).long()
            self.word_features = clip.encode_tokens(self.word_tokens)

    def _rows(self, which: str) -> Tensor:
        """The next rows of a shuffled walk through one set."""
        pairs: Pairs = getattr(self.task, which)
        if not self.queue[which]:
            order = torch.randperm(len(pairs), generator=self.rng)
            self.queue[which] = list(order.split(self.size[which]))
        return self.queue[which].pop(0)

    def pairs(self, which: str, clip: Clip) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A batch: image and text features now, name ids, and the reference's logits [n, n]."""
        rows = self._rows(which)
        group = self.group[which][rows]
        wording = torch.randint(len(self.task.templates), (len(rows),), generator=self.rng)
        prompts = group * len(self.task.templates) + wording
        distinct, back = prompts.unique(return_inverse=True)
        device = clip.device
        t = clip.encode_tokens(self.tokens[which][distinct.to(device)])[back.to(device)]
        v0 = self.v[which][rows.to(device)]
        images = getattr(self.task, which).images
        v = v0 if self.frozen_images else clip.encode_image(images[rows.to(images.device)])
        reference = self.scale * v0 @ self.t[which][prompts.to(device)].T
        return v, t, group.to(device), reference

    def vocabulary_loss(self, clip: Clip) -> Tensor:
        """Mean ``1 − cos`` of a random part of the vocabulary against the reference."""
        size = min(self.settings.vocabulary_batch, len(self.word_tokens))
        rows = torch.randperm(len(self.word_tokens), generator=self.rng)[:size].to(clip.device)
        now = clip.encode_tokens(self.word_tokens[rows])
        return (1 - (now * self.word_features[rows]).sum(-1)).mean()

    def unmatched_level(self, words: list[str]) -> float:
        """c̄: the reference's mean cosine of forget images with names that are not theirs."""
        others = self.word_features if len(words) else self.t["retain"]
        return float((self.v["forget"].mean(0) @ others.mean(0)).item()) if len(others) else 0.0
