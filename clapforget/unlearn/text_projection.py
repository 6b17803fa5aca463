"""Text projection only (Kravets & Namboodiri, TMLR 2025): move a name to where no name is.

With h a text before the projection W, W₀ its original and ``W = W₀ + B A`` (LoRA of rank r), e_∅ the
unit feature of the empty text, f the names to forget and p those to preserve:

    ``λ_f ‖e_∅ − W h_f‖ + λ_p ‖W₀ h_p − W h_p‖ + λ_w ‖B A‖``        Frobenius norms, not squared

minimised by Adam over full batches. If the first norm has not fallen by ``reduction``, λ_f grows by
0.05 and training starts again; should e_∅ itself be nearest to a name to forget, noise is added.

W h is not normalised, e_∅ is: the distance falls by shortening W h_f alone, so that much ``reduction``
can leave a name's direction, and with it its cosines, near where they were.

As in the published program, but for three things: the result is the last step's weights (its "best"
loss is never updated, which comes to the same), B A is not scaled, and the names to preserve are the
task's vocabulary, where the program has lists of neighbours written by a language model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from clapforget.clip import Clip
from clapforget.errors import UserError, check_most
from clapforget.seeding import generator_for
from clapforget.unlearn.base import FORGETTERS, ForgetTask, Forgetter, Unlearned
from clapforget.unlearn.projection import find_projection, without_text_projection
from clapforget.unlearn.trained import Terms

__all__ = ["TextProjection", "TextProjectionSettings"]


@dataclass(frozen=True)
class TextProjectionSettings:
    """Weights of the terms, rank and optimiser. Published: λ_f 1.1 to 1.3, λ_p 0.25 to 0.4."""

    rank: int = 5
    forget_weight: float = 1.1
    preserve_weight: float = 0.3
    change_weight: float = 1.0
    lr: float = 0.01
    steps: int = 2000
    reduction: float = 0.7
    """The share by which ``‖e_∅ − W h_f‖`` has to fall, in [0, 1)."""
    trials: int = 100
    """How often at most to train, each time with λ_f larger by 0.05."""

    def __post_init__(self) -> None:
        """:raises UserError: for numbers that cannot work."""
        for name in ("rank", "steps", "trials"):
            if getattr(self, name) < 1:
                raise UserError(f"setting {name}={getattr(self, name)}", "give 1 or more")
        for name in ("forget_weight", "preserve_weight", "change_weight"):
            if getattr(self, name) < 0:
                raise UserError(f"setting {name}={getattr(self, name)}", "give 0 or more")
        check_most(self, "forget", rank=10_000, lr=10)
        if self.lr <= 0:
            raise UserError(f"setting lr={self.lr}", "give a positive number")
        if not 0 <= self.reduction < 1:
            raise UserError(f"setting reduction={self.reduction}", "give 0 or more, below 1")


@FORGETTERS.register("text-projection")
class TextProjection(Forgetter):
    """A low-rank change of the text projection that maps forgotten names to the empty text."""

    Settings = TextProjectionSettings
    presets: ClassVar[dict[str, dict[str, Any]]] = {"default": {}}
    settings: TextProjectionSettings

    def unlearn(self, clip: Clip, task: ForgetTask) -> Unlearned:
        s = self.settings
        names = list(dict.fromkeys(task.forget.names))
        if not names:
            raise UserError("the forget set is empty", "text-projection needs the names to forget")
        others = [name for name in dict.fromkeys(task.vocabulary) if name not in set(names)]
        changed = clip.trainable_copy([])
        projection = find_projection(changed, "text")
        rng = generator_for(task.seed, 5)
        matrix = projection.matrix.float()
        forget, preserve = (_before_projection(changed, task, part) for part in (names, others))
        target = _nowhere(clip, names, others, rng).expand(len(forget), -1)
        if projection.bias is not None:
            target = target - projection.bias.float()

        def distance(change: Tensor) -> Tensor:
            return (target - forget @ (matrix + change)).norm()

        def terms(change: Tensor) -> Terms:
            return {
                "forgetting": (weight, distance(change)),
                "preservation": (s.preserve_weight, (preserve @ change).norm()),
                "change": (s.change_weight, change.norm()),
            }

        start = distance(torch.zeros_like(matrix)).item()
        weight, reduction, trial = s.forget_weight, -math.inf, 0
        while reduction < s.reduction and trial < s.trials:
            weight = s.forget_weight + 0.05 * trial
            trial += 1
            change, losses = _train(terms, matrix, s, rng, task.progress)
            reduction = 1 - distance(change).item() / start
        projection.add(change)
        return Unlearned(changed, s.steps, losses, {
            "settings": asdict(s), "trials": trial, "forget_weight": round(weight, 6),
            "reduction": round(reduction, 6), "enough": reduction >= s.reduction,
        })  # fmt: skip


def _train(
    terms: Callable[[Tensor], Terms], matrix: Tensor, s: TextProjectionSettings,
    rng: torch.Generator, progress: Callable[[int, int], None],
) -> tuple[Tensor, dict[str, list[float]]]:  # fmt: skip
    """The low-rank change [width, d] that minimises the terms, and their values by step."""
    width, d = matrix.shape
    bound = width**-0.5
    down = (2 * torch.rand(width, s.rank, generator=rng) - 1).mul(bound).to(matrix)
    up = matrix.new_zeros(s.rank, d)
    factors = [down.requires_grad_(), up.requires_grad_()]
    optimizer = torch.optim.Adam(factors, lr=s.lr)
    history: dict[str, list[Tensor]] = {}
    for step in range(s.steps):
        parts = terms(down @ up)
        optimizer.zero_grad(set_to_none=True)
        torch.stack([weight * value for weight, value in parts.values()]).sum().backward()
        optimizer.step()
        for name, (_, value) in parts.items():
            history.setdefault(name, []).append(value.detach())
        progress(step + 1, s.steps)
    losses = {name: torch.stack(values).tolist() for name, values in history.items()}
    return (down @ up).detach(), losses


@torch.no_grad()
def _before_projection(clip: Clip, task: ForgetTask, names: Sequence[str]) -> Tensor:
    """h [n, width] of every name in every template, in single precision."""
    texts = [template.format(name) for name in names for template in task.templates]
    if not texts:
        return torch.zeros(0, len(find_projection(clip, "text").matrix), device=clip.device)
    encode: Any = clip.model.encode_text
    with without_text_projection(clip):
        return encode(clip.tokenize(texts)).float()


@torch.no_grad()
def _nowhere(
    clip: Clip, names: Sequence[str], others: Sequence[str], rng: torch.Generator
) -> Tensor:
    """e_∅ [1, d]: the empty text's unit feature, with noise if that is nearest to a name to forget.

    Noise is half a unit a coordinate on the feature before normalisation, as published.
    """
    known = clip.encode_text([*names, *others])
    encode: Any = clip.model.encode_text
    empty = encode(clip.tokenize([""]))
    while True:
        feature = F.normalize(empty, dim=-1)
        if not others or int((known @ feature[0]).argmax()) >= len(names):
            return feature.float()
        empty = empty + 0.5 * torch.randn(empty.shape, generator=rng).to(empty)
