"""SSD: selective synaptic dampening (Foster, Schoepf & Brintrup, AAAI 2024, arXiv 2308.07707).

With D_f and D_r the diagonal Fisher information of the data to forget and of the data to keep, the
weights that matter far more to the first shrink, once and without training:

    ``θ_i ← min(λ D_r,i / D_f,i , 1) θ_i``    where    ``D_f,i > α D_r,i``

The paper's D_r is of all training data, which no model here still has: it is of the retain pairs.

By default the losses are those of SLUG's comparison on CLIP (arXiv 2407.11867): ``1 − cos`` for D_f and
the contrastive loss for D_r. Their scales differ, so α has not the meaning it has in the paper, whose
one loss is a classifier's cross-entropy: preset ``paper``, of an image among all names of the task.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from clapforget.clip import Clip
from clapforget.errors import UserError
from clapforget.unlearn.base import FORGETTERS, ForgetTask, Forgetter, Unlearned
from clapforget.unlearn.batches import Batch, Batches
from clapforget.unlearn.gradients import Loss, fisher_diagonal, gradient_model
from clapforget.unlearn.losses import matched_cosine_loss, retention_loss

__all__ = ["SSD", "SSDSettings", "dampen"]


@dataclass(frozen=True)
class SSDSettings:
    """Thresholds, and what the Fisher information is of."""

    selection: float = 10.0
    """α: how many times more a weight must matter to the forget set."""
    damping: float = 1.0
    """λ. SLUG's comparison tries 0.1 to 5."""
    batch_size: int = 8
    """Pairs in a batch whose mean gradient is squared (1: the empirical Fisher information). Larger
    ones leave few squares to average where the retain set is an exemplar memory."""
    loss: Literal["pairs", "cross-entropy"] = "pairs"
    train: Literal["all", "image", "text"] = "all"
    """Which tower's weights may shrink; never the logit scale."""

    def __post_init__(self) -> None:
        """:raises UserError: for numbers that cannot work."""
        if self.batch_size < 1:
            raise UserError(f"setting batch_size={self.batch_size}", "give 1 or more")
        for name in ("selection", "damping"):
            if getattr(self, name) < 0:
                raise UserError(f"setting {name}={getattr(self, name)}", "give 0 or more")


def dampen(weight: Tensor, forget: Tensor, retain: Tensor, alpha: float, damping: float) -> Tensor:
    """SSD's rule for one tensor: a new tensor. All of one shape.

    :param forget: D_f, not negative. :param retain: D_r, not negative.
    """
    factor = (damping * retain / forget.clamp_min(torch.finfo(forget.dtype).tiny)).clamp_max(1)
    return torch.where(forget > alpha * retain, weight * factor.to(weight), weight)


@FORGETTERS.register("ssd")
class SSD(Forgetter):
    """Shrinks the weights that the forget set needs and the retain set does not."""

    Settings = SSDSettings
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {},
        "slug": {"batch_size": 32},
        "paper": {"loss": "cross-entropy", "batch_size": 1},
    }
    settings: SSDSettings

    def unlearn(self, clip: Clip, task: ForgetTask) -> Unlearned:
        s = self.settings
        if not len(task.forget) or not len(task.retain):
            empty = "retain" if len(task.forget) else "forget"
            raise UserError(f"the {empty} set is empty", "SSD weighs one against the other")
        names = clip.parameter_names(None if s.train == "all" else s.train)
        names = [name for name in names if not name.startswith("logit_")]
        model = gradient_model(clip, names)
        batches = Batches(clip, task, s.batch_size, s.batch_size, names)
        if s.loss == "pairs":
            d_f = fisher_diagonal(model, batches, "forget", _matched)
            d_r = fisher_diagonal(model, batches, "retain", _contrastive)
        else:
            loss = _cross_entropy(clip, task, batches)
            d_f = fisher_diagonal(model, batches, "forget", loss)
            d_r = fisher_diagonal(model, batches, "retain", loss)
        changed = clip.trainable_copy([])
        dampened: dict[str, int] = {}
        with torch.no_grad():
            for name, forget in d_f.items():
                parameter = changed.model.get_parameter(name)
                now = dampen(parameter, forget, d_r[name], s.selection, s.damping)
                count = int((now != parameter).sum())
                if count:
                    dampened[name] = count
                parameter.copy_(now)
        return Unlearned(changed, 1, {}, {
            "settings": asdict(s), "dampened": dampened, "weights": sum(p.numel() for p in d_f.values()),
        })  # fmt: skip


def _matched(clip: Clip, batch: Batch) -> Tensor:
    return matched_cosine_loss(batch.cosines)


def _contrastive(clip: Clip, batch: Batch) -> Tensor:
    return retention_loss(batch.v, batch.t, clip.scale, None)


def _cross_entropy(clip: Clip, task: ForgetTask, batches: Batches) -> Loss:
    """Negative log-likelihood of each image's name among all names, in one template a batch, the
    templates taking turns."""
    names = list(dict.fromkeys([*batches.names, *task.vocabulary]))
    if len(names) == 1:
        raise UserError("one name alone has no cross-entropy", "give a vocabulary, or loss=pairs")
    tokens = [clip.tokenize([t.format(name) for name in names]) for t in task.templates]
    turn = 0

    def loss(now: Clip, batch: Batch) -> Tensor:
        nonlocal turn
        t = now.encode_tokens(tokens[turn % len(tokens)])
        turn += 1
        return F.cross_entropy(now.scale * batch.v @ t.T, batch.group)

    return loss
