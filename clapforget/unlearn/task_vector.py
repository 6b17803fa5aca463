"""NegMerge (Kim, Han & Choe, ICML 2025, arXiv 2410.05583): subtract what all fine-tunings agree on.

K models are fine-tuned *on* the forget set with different settings, ``τ_k = θ_k − θ⁰``, and merged by
the sign of each weight's change:

    ``τ = mean_k τ_k``  where all K signs agree, else 0            ``θ = θ⁰ − c τ``

c is the one of a grid with the lowest accuracy on held-out forget pairs among those that keep 95 % of
the accuracy on held-out retain pairs, the smallest of equals; with none, θ⁰ is left as it is. One model
is plain task-vector negation (Ilharco et al., ICLR 2023, arXiv 2212.04089).

Published: image tower against a frozen text head, some thirty models that differ in augmentation, and
c from 0 to 1. Here the models differ in their learning rate and in the order of their batches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from clapforget.clip import Clip
from clapforget.errors import UserError, check_least, check_most
from clapforget.seeding import generator_for
from clapforget.unlearn.base import FORGETTERS, ForgetTask, Forgetter, Unlearned
from clapforget.unlearn.batches import Batches
from clapforget.unlearn.search import Judge, hold_out
from clapforget.unlearn.trained import Terms, TrainedForgetter, TrainedSettings

__all__ = ["NegMerge", "NegMergeSettings", "sign_consensus"]


@dataclass(frozen=True)
class NegMergeSettings:
    """How the models are fine-tuned, and how much of what they agree on is subtracted."""

    models: int = 4
    """K."""
    train: Literal["image", "text", "all"] = "image"
    lr: float = 1e-4
    """Geometric mean of the models' learning rates, which run from ``lr/spread`` to ``lr·spread``."""
    spread: float = 3.0
    epochs: int = 10
    batch_size: int = 32
    weight_decay: float = 0.1
    scales: int = 20
    """c is searched at 0 and at this many equal steps up to ``largest``."""
    largest: float = 1.0
    keep: float = 0.95
    """Share of the accuracy on retain pairs that must remain, in [0, 1]."""
    validation: float = 0.25
    """Share of the forget and of the retain pairs that is held out, in [0, 1); 0: judge by the
    pairs of the fine-tuning."""

    def __post_init__(self) -> None:
        """:raises UserError: for numbers that cannot work."""
        for name in ("models", "epochs", "batch_size", "scales"):
            if getattr(self, name) < 1:
                raise UserError(f"setting {name}={getattr(self, name)}", "give 1 or more")
        for name in ("lr", "largest"):
            if getattr(self, name) <= 0:
                raise UserError(f"setting {name}={getattr(self, name)}", "give a positive number")
        check_least(self, "forget", spread=1, weight_decay=0)
        check_most(
            self, "forget", models=1_000, scales=100_000, lr=10, spread=1_000, largest=1_000, weight_decay=10,
        )  # fmt: skip
        if not 0 <= self.keep <= 1:
            raise UserError(f"setting keep={self.keep}", "give a number from 0 to 1")
        if not 0 <= self.validation < 1:
            raise UserError(f"setting validation={self.validation}", "give 0 or more, below 1")

    @property
    def rates(self) -> list[float]:
        """Each model's learning rate."""
        exponents = torch.linspace(-1, 1, self.models).tolist() if self.models > 1 else [0.0]
        return [self.lr * self.spread**exponent for exponent in exponents]


def sign_consensus(vectors: Tensor) -> Tensor:
    """τ of stacked task vectors [K, ...]: their mean where all K have one sign (0 is none), else 0."""
    signs = vectors.sign()
    agree = (signs[0] != 0) & (signs == signs[0]).all(0)
    return torch.where(agree, vectors.mean(0), 0)


class _Learn(TrainedForgetter):
    """Fine-tuning on the forget set: each image's cross-entropy among all names."""

    make_optimizer = torch.optim.AdamW

    def __init__(self, settings: TrainedSettings, tokens: list[Tensor]) -> None:
        """:param tokens: of every name [C, L] by template; the forget set's names in their order."""
        super().__init__(settings)
        self.tokens = tokens
        self.frozen: list[Tensor] = []

    def terms(self, clip: Clip, batches: Batches, step: int) -> Terms:
        turn = step % len(self.tokens)
        if self.settings.train == "image":
            if not self.frozen:
                with torch.no_grad():
                    self.frozen = [clip.encode_tokens(tokens) for tokens in self.tokens]
            t = self.frozen[turn]
        else:
            t = clip.encode_tokens(self.tokens[turn])
        batch = batches.next("forget", clip)
        loss = F.cross_entropy(clip.scale * batch.v @ t.T, batch.group)
        return {"cross-entropy": (1.0, loss)}


@FORGETTERS.register("negmerge")
class NegMerge(Forgetter):
    """Task-vector negation with sign consensus over several fine-tuned models."""

    Settings = NegMergeSettings
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {},
        "task-vector": {"models": 1},
    }
    settings: NegMergeSettings

    def unlearn(self, clip: Clip, task: ForgetTask) -> Unlearned:
        s = self.settings
        if not len(task.forget) or not len(task.retain):
            empty = "retain" if len(task.forget) else "forget"
            raise UserError(f"the {empty} set is empty", "NegMerge needs it to choose the scale")
        rng = generator_for(task.seed, 4)
        forget, forget_held = hold_out(task.forget, s.validation, rng)
        retain, retain_held = hold_out(task.retain, s.validation, rng)
        seen = replace(task, forget=forget, retain=retain)
        merged, losses = self._merge(clip, seen)

        judge = Judge(clip, forget_held, retain_held, task.vocabulary, task.templates, merged)
        changed = clip.trainable_copy([])
        before = judge(changed)
        scales = [s.largest * i / s.scales for i in range(s.scales + 1)]
        tried: list[dict[str, float]] = []
        for scale in scales:
            _subtract(changed, clip, merged, scale)
            tried.append({"scale": scale} | asdict(judge(changed)))
        kept = [row for row in tried if row["retain_top1"] >= s.keep * before.retain_top1]
        best = min(kept, key=lambda row: (row["forget_top1"], row["scale"]))
        _subtract(changed, clip, merged, best["scale"])
        total = sum(vector.numel() for vector in merged.values())
        return Unlearned(changed, s.models, losses, {
            "settings": asdict(s), "rates": s.rates, "before": asdict(before), "scales": tried, "choice": best,
            "agreement": sum(int(vector.count_nonzero()) for vector in merged.values()) / total,
        })  # fmt: skip

    def _merge(
        self, clip: Clip, task: ForgetTask
    ) -> tuple[dict[str, Tensor], dict[str, list[float]]]:
        """τ by parameter name, and the losses of each fine-tuning by step."""
        s = self.settings
        names = list(dict.fromkeys([*task.forget.names, *task.retain.names, *task.vocabulary]))
        tokens = [clip.tokenize([t.format(name) for name in names]) for t in task.templates]
        weights = dict(clip.model.named_parameters())
        stacks: dict[str, list[Tensor]] = {}
        losses: dict[str, list[float]] = {}
        for k, rate in enumerate(s.rates):
            settings = TrainedSettings(
                train=s.train, lr=rate, epochs=s.epochs, forget_batch=s.batch_size,
                weight_decay=s.weight_decay,
            )  # fmt: skip
            seed = int(generator_for(task.seed, 6, k).initial_seed())
            result = _Learn(settings, tokens).unlearn(clip, replace(task, seed=seed))
            losses[f"model {k + 1}"] = result.losses["cross-entropy"]
            for name, parameter in result.clip.model.named_parameters():
                if not torch.equal(parameter, weights[name]):
                    stacks.setdefault(name, []).append(parameter - weights[name])
        full = {name: vectors for name, vectors in stacks.items() if len(vectors) == s.models}
        return {n: sign_consensus(torch.stack(vectors)) for n, vectors in full.items()}, losses


@torch.no_grad()
def _subtract(changed: Clip, clip: Clip, vectors: Mapping[str, Tensor], scale: float) -> None:
    """Set ``θ⁰ − scale τ``."""
    for name, vector in vectors.items():
        original = clip.model.get_parameter(name)
        changed.model.get_parameter(name).copy_(original - scale * vector)
