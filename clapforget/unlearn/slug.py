"""SLUG (Cai, Tan & Asif, ICML 2025, arXiv 2407.11867): one gradient, one tensor, one step.

For a concept, with L_f the mean ``1 − cos`` of its pairs, L_r CLIP's contrastive loss on the pairs
to keep, θ⁰ the weights before and l one named tensor:

==========  =======================================================================================
gradients   ``G_f = ∇L_f``, ``G_r = ∇L_r``, each once, at θ⁰
importance  ``‖G_f,l‖ / ‖θ_l‖``
alignment   ``|cos(G_f,l , G_r,l)|``
candidates  the Pareto front of each tower: no tensor both less aligned and more important
update      ``θ_l = θ⁰_l + λ G_f,l``, λ > 0: *up* the loss of the pairs to forget (the paper prints a
            minus and means the same)
λ           from ``‖θ_l‖ / (10 ‖G_f,l‖)``, doubled until the concept is gone and then halved between,
            ten evaluations for every candidate
outcome     of all evaluations, among those that leave no forget image at rank 1 the best accuracy on
            the rest, then the smaller ``λ‖G‖/‖θ‖`` (the program only logs; this rule is ours)
==========  =======================================================================================

The published program tunes λ on its test sets. Here part of the request's own pairs is held out:
no gradient sees it, and every accuracy of the search is measured on it.

Several concepts each choose a tensor and a λ on the original model, and all updates are applied at
once. Where some choose the same tensor, their updates are added and one common scale is searched.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
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
from clapforget.unlearn.batches import Batch, Batches, Which
from clapforget.unlearn.gradients import gradient_model, mean_gradient
from clapforget.unlearn.losses import matched_cosine_loss, retention_loss
from clapforget.unlearn.search import Judge, Trial, choose, hold_out, select, try_direction
from clapforget.unlearn.tensors import TensorScore, candidate_tensors, score_tensors

__all__ = ["Slug", "SlugSettings"]


@dataclass(frozen=True)
class SlugSettings:
    """Where to look, on what, and when a concept counts as gone."""

    towers: Literal["both", "image", "text"] = "both"
    batch_size: int = 16
    """Pairs in a batch of the gradient pass; the contrastive loss depends on it."""
    mode: Literal["eval", "train"] = "eval"
    """Published: ``train``. With ``eval`` batch statistics stay those of the model that is edited."""
    positives: Literal["same-name", "diagonal"] = "same-name"
    """Whether pairs of one name are each other's positives in L_r (published: the diagonal)."""
    norms: bool = True
    """Whether the scales of normalisation layers are candidates."""
    evaluations: int = 10
    """For each candidate tensor."""
    top: int = 5
    """A step suffices when no held-out forget image has its name among the first ``top``: 5, or 1
    where there are few names (always with five or less)."""
    margin: float = 0.0
    """Nats by which the name of every held-out forget image must be behind another's, in the search
    and in the outcome; 0 stops at the edge, where other images of the concept may still be known."""
    validation: float = 0.25
    """Share of the forget and of the retain pairs that is held out, in [0, 1); 0: judge by the
    pairs of the gradients."""
    concepts: Literal["auto", "names", "one"] = "auto"
    """``names``: each name of the forget set is a concept of its own; ``one``: the whole set is;
    ``auto``: by name, if the names are no captions and each has at least two pairs."""

    def __post_init__(self) -> None:
        """:raises UserError: for numbers that cannot work."""
        for name in ("batch_size", "evaluations"):
            if getattr(self, name) < 1:
                raise UserError(f"setting {name}={getattr(self, name)}", "give 1 or more")
        if self.top not in (1, 5):
            raise UserError(f"setting top={self.top}", "give 1 or 5")
        if self.margin < 0:
            raise UserError(f"setting margin={self.margin}", "give 0 or more")
        if not 0 <= self.validation < 1:
            raise UserError(f"setting validation={self.validation}", "give 0 or more, below 1")


@dataclass
class _Concept:
    """One thing to forget: its pairs, and what was found out about it."""

    name: str
    seen: Pairs
    held: Pairs
    gradient: dict[str, Tensor] = field(default_factory=dict)
    tensors: list[TensorScore] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)


@FORGETTERS.register("slug")
class Slug(Forgetter):
    """A single step along a single gradient, in the one tensor that costs least."""

    Settings = SlugSettings
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {},
        "published": {"mode": "train", "positives": "diagonal"},
    }
    settings: SlugSettings

    def unlearn(self, clip: Clip, task: ForgetTask) -> Unlearned:
        s = self.settings
        if not len(task.forget) or not len(task.retain):
            empty = "retain" if len(task.forget) else "forget"
            raise UserError(f"the {empty} set is empty", "SLUG needs the gradients of both")
        rng = generator_for(task.seed, 3)
        concepts = [
            _Concept(name, *hold_out(pairs, s.validation, rng))
            for name, pairs in _split(task, s.concepts)
        ]
        retain, retain_held = hold_out(task.retain, s.validation, rng)
        self._differentiate(clip, task, concepts, retain)

        def judge(members: Sequence[_Concept]) -> Judge:
            images = torch.cat([c.held.images for c in members])
            held = Pairs(images, [name for c in members for name in c.held.names])
            return Judge(clip, held, retain_held, task.vocabulary, task.templates)

        total = s.evaluations * sum(row.front for c in concepts for row in c.tensors)
        ticks = itertools.count(1)
        changed = clip.trainable_copy([])
        for c in concepts:
            judged = judge([c])
            for row in c.tensors:
                if row.front:
                    c.trials += try_direction(
                        judged, changed, c.name, row.tensor, row.tower, c.gradient[row.tensor],
                        s.evaluations, s.top, tick=lambda: task.progress(next(ticks), total), margin=s.margin,
                    )  # fmt: skip
        shared = self._apply(changed, concepts, judge)
        everything = judge(concepts)
        choices = [(c, *choose(c.trials, s.margin)) for c in concepts]
        return Unlearned(changed, len({trial.tensor for _, trial, _ in choices}), {}, {
            "settings": asdict(s),
            "held_out": {"forget": everything.forget, "retain": len(retain_held)},
            "front": _rows(concepts, front=True),
            "dominated": _rows(concepts, front=False),
            "evaluations": [trial.as_json() for c in concepts for trial in c.trials],
            "choice": [trial.as_json() | {"gone": gone} for _, trial, gone in choices],
            "common_scale": [trial.as_json() for trial in shared],
            "before": asdict(everything(clip)),
            "after": asdict(everything(changed)),
            "remarks": [
                f"no step took {c.name} from the first rank of all held-out images:"
                f" {trial.score.forget_top1:.3f} of them keep it"
                for c, trial, gone in choices if not gone
            ],
        })  # fmt: skip

    def _differentiate(
        self, clip: Clip, task: ForgetTask, concepts: Sequence[_Concept], retain: Pairs
    ) -> None:
        """Give every concept its gradient and its tensors' scores; the retain gradient is shared."""
        s = self.settings
        candidates = candidate_tensors(clip, s.towers, s.norms)
        model = gradient_model(clip, candidates, s.mode == "train")

        def forgetting(now: Clip, batch: Batch) -> Tensor:
            return matched_cosine_loss(batch.cosines)

        def retention(now: Clip, batch: Batch) -> Tensor:
            group = batch.group if s.positives == "same-name" else None
            return retention_loss(batch.v, batch.t, now.scale, group)

        def gradient(which: Which, forget: Pairs) -> dict[str, Tensor]:
            part = replace(task, forget=forget, retain=retain, vocabulary=())
            changing = candidates if s.mode == "eval" else None
            batches = Batches(clip, part, s.batch_size, s.batch_size, changing)
            loss = forgetting if which == "forget" else retention
            return mean_gradient(model, batches, which, loss)

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(task.seed)  # for dropout in train mode, which has no generator
            kept = gradient("retain", concepts[0].seen)
            for c in concepts:
                c.gradient = gradient("forget", c.seen)
                c.tensors = score_tensors(clip, c.gradient, kept)
                if not c.tensors:
                    raise UserError(
                        f"no tensor of the chosen towers has a gradient for {c.name}",
                        "choose other towers",
                    )

    def _apply(
        self, changed: Clip, concepts: Sequence[_Concept],
        judge: Callable[[Sequence[_Concept]], Judge],
    ) -> list[Trial]:  # fmt: skip
        """Add every concept's update to ``changed``; return the evaluations of common scales."""
        s = self.settings
        chosen = [(c, choose(c.trials, s.margin)[0]) for c in concepts]
        steps: dict[str, Tensor] = {}
        trials: list[Trial] = []
        for tensor in dict.fromkeys(trial.tensor for _, trial in chosen):
            members = [(c, trial) for c, trial in chosen if trial.tensor == tensor]
            update = torch.stack([t.step * c.gradient[tensor] for c, t in members]).sum(0)
            if len(members) > 1:
                found = try_direction(
                    judge([c for c, _ in members]), changed, " + ".join(c.name for c, _ in members),
                    tensor, members[0][1].tower, update, s.evaluations, s.top, 1.0, margin=s.margin,
                )  # fmt: skip
                trials += found
                update = choose(found, s.margin)[0].step * update
            steps[tensor] = update
        with torch.no_grad():
            for tensor, update in steps.items():
                parameter = changed.model.get_parameter(tensor)
                parameter.copy_(parameter + update)
        return trials


def _split(task: ForgetTask, how: str) -> list[tuple[str, Pairs]]:
    """The forget set by concept."""
    forget = task.forget
    names = list(dict.fromkeys(forget.names))
    rows = [[i for i, name in enumerate(forget.names) if name == wanted] for wanted in names]
    single = task.of_captions or min(map(len, rows)) < 2
    if how == "one" or (how == "auto" and single):
        return [(names[0] if len(names) == 1 else "the forget set", forget)]
    return [(name, select(forget, torch.tensor(own))) for name, own in zip(names, rows)]


def _rows(concepts: Sequence[_Concept], front: bool) -> list[dict[str, Any]]:
    return [
        {"concept": c.name} | row.as_json()
        for c in concepts
        for row in c.tensors
        if row.front == front
    ]
