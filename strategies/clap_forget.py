"""ClapForget: live through a stream of requests to learn and to forget."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.plugins.evaluation import default_evaluator
from torch import Tensor

from clapforget.clip import Clip
from clapforget.posterior import Change, Head
from clapforget.posterior.forgetting import PosteriorForgetting
from clapforget.prompts import PromptSettings
from clapforget.strategies.buffer import UncertaintyBuffer
from clapforget.strategies.certify import Certifier, certifier_of
from clapforget.strategies.certify_samples import SampleCertifier
from clapforget.strategies.certify_until import check_until, unlearn_once, unlearn_until_verified
from clapforget.strategies.forget_task import pair_task
from clapforget.strategies.registry import StrategyOptions
from clapforget.strategies.request_learning import RequestLearning, sample_rows
from clapforget.strategies.training import TrainSettings
from clapforget.unlearn.base import DEFAULT_FORGETTER, Forgetter, Pairs, Unlearned, make_forgetter
from clapforget.verify.certificate import Certificate
from clapforget.verify.rules import Claim

__all__ = ["ClapForget", "build_clap_forget", "strategy_arguments"]


class ClapForget(RequestLearning):
    """A Bayesian text head on a frozen CLIP to learn, a forgetter on CLIP and head to forget.

    Learning: see :class:`~clapforget.strategies.learning.ClapLearning`.

    Forgetting: the memory drops the exemplars, the forgetter changes CLIP with the memory as
    retain data, features and texts are encoded again where a tower changed, the posterior of the
    forgotten classes goes back to the prior (:mod:`clapforget.posterior.forgetting`), and a
    certificate says what all that came to. A request by samples leaves their classes: memory, cache
    and posterior lose them (:meth:`~clapforget.posterior.Head.forget_samples`), CLIP, which was
    frozen when they were learned, is changed on demand. A request by pairs does both.
    """

    def __init__(
        self,
        *,
        model: Clip,
        forgetter: str | Forgetter = DEFAULT_FORGETTER,
        posterior: str = "variational",
        head: Any = None,
        prompt: PromptSettings | None = None,
        memory: UncertaintyBuffer | None = None,
        training: TrainSettings | None = None,
        posterior_forgetting: PosteriorForgetting | None = None,
        retain_set: Pairs | None = None,
        samples_in_clip: bool = False,
        certify: bool | Literal["full", "quick"] = True,
        claim: Claim = "association",
        until: Literal["once", "verified"] = "once",
        budget: int = 3,
        seed: int = 0,
        eval_mb_size: int = 256,
        device: str | torch.device | None = None,
        plugins: Sequence[Any] | None = None,
        evaluator: Any = default_evaluator,
        eval_every: int = -1,
        peval_mode: str = "epoch",
    ) -> None:
        """:param model: the frozen CLIP; the strategy works on a copy. May be given by position.
        :param forgetter: a registered name, ``"name:preset"``, or a forgetter.
        :param posterior: registered name of the head: ``variational`` (CLAP), ``exact``, ...
        :param head: its options, for instance :class:`~clapforget.posterior.ClapSettings`.
        :param prompt: learned prompts, for the heads ``variational`` and ``prompted``.
        :param memory: exemplar memory; default 2,000 by coverage.
        :param training: options of its training, where it is trained.
        :param posterior_forgetting: options of the variational posterior's own forgetting.
        :param retain_set: data from outside to retain on, in place of the memory.
        :param samples_in_clip: whether a request by sample also runs the forgetter on CLIP, with the
            samples' captions. Off, because learning here leaves CLIP as it is: nothing of a sample
            that was learned is in it. Requests by pairs always do.
        :param certify: level at which forget requests are examined, ``"full"`` (or True), ``"quick"``,
            or not at all. :param claim: see :class:`~clapforget.strategies.certify.Certifier`.
        :param until: ``"verified"`` repeats the forgetter until the quick level says forgotten, at most
            ``budget`` times, and takes the full certificate; see :mod:`clapforget.strategies.certify_until`.
        :param seed: of everything random here. :param device: default: where the model is.
        """
        super().__init__(
            model=model, posterior=posterior, head=head, prompt=prompt, memory=memory, training=training,
            seed=seed, eval_mb_size=eval_mb_size, device=device, plugins=plugins,
            evaluator=evaluator, eval_every=eval_every, peval_mode=peval_mode,
        )  # fmt: skip
        self.forgetter = make_forgetter(forgetter) if isinstance(forgetter, str) else forgetter
        self.posterior_forgetting = posterior_forgetting or PosteriorForgetting()
        self.retain_set = retain_set
        self.samples_in_clip = samples_in_clip
        self.certifier = certifier_of(certify, claim)
        check_until(until, budget, self.certifier.level if self.certifier else None)
        self.claim, self.until, self.budget = claim, until, budget
        self.certificates: list[Certificate] = []
        self.last_forgetting: dict[str, Any] | None = None

    on_progress = staticmethod(lambda step, steps: None)
    """Called with (step, steps) while a forgetter runs; a user interface may replace it."""

    @property
    def request_seed(self) -> int:
        """The seed of what is random in the current request."""
        return self._seed_now()

    def forget(self, experience: Any) -> None:
        """Carry out a forget request on memory, CLIP and posterior; then certify it."""
        began = time.monotonic()
        self.model.describe(experience.data.class_names, experience.data.templates)
        gone = set(experience.fresh_classes)
        memory_classes = [c for c in self.memory.classes if c not in gone]
        certifier = self._certifier_for(experience)
        before = certifier.observe(self, experience, memory_classes) if certifier else None
        if experience.nothing_to_do:
            notes: dict[str, Any] = {"steps": 0, "towers": [], "losses": {}}
            notes["nothing_to_do"] = experience.nothing_to_do
        else:
            notes = self._carry_out(experience)
        seconds = round(time.monotonic() - began, 2)
        notes |= {"forgetter": type(self.forgetter).__name__, "seconds": seconds}
        self.last_forgetting = notes
        if certifier and before is not None:
            seen = certifier.observe(self, experience, memory_classes)
            rows = sample_rows(experience)
            self.certificates.append(certifier.certify(self, experience, before, seen, rows, notes))

    def _certifier_for(self, experience: Any) -> Certifier | None:
        if self.certifier and experience.by_sample:
            return SampleCertifier(self.certifier.level)
        return self.certifier

    def _carry_out(self, experience: Any) -> dict[str, Any]:
        """:returns: steps, towers, losses, and the forgetter's own notes."""
        data, labels = experience.data, list(experience.fresh_classes)
        by_sample = experience.by_sample
        held = self.model.head.hold()
        rows = sample_rows(experience)
        forget_before = self.views(experience)
        self.drop_exemplars(labels, rows.tolist())
        clip, result = self.model.clip, Unlearned(self.model.clip)
        dropped = self._only_learned_for_now(experience)
        in_clip = rows[~torch.isin(data.train.targets[rows], torch.tensor(dropped).long())]
        if not by_sample and len(in_clip):
            how = unlearn_until_verified if self.until == "verified" else unlearn_once
            result = how(self, experience, in_clip)
        elif by_sample and (experience.request.pairs or self.samples_in_clip):
            result = self.forgetter.unlearn(clip, pair_task(self, experience, rows))
        losses: dict[str, Any] = dict(result.losses)
        emptied = self._emptied(experience, rows) if by_sample else []

        memory_before = self.memory_views
        self.seen.drop(data.train, rows)
        self.model.clip = result.clip
        moved = self.cache.use(result.clip)
        if moved:
            self.memory_views = self._encode(self.memory.images, data.flip)
        self.model.head.guide(self.memory_views.flatten(0, 1))
        if len(self.model.head.labels):
            self.model.refresh_text()
        unlearns = self.forgetter.unlearns_posterior
        if (unlearns and (labels or by_sample)) or moved:
            after = self._encode(data.train.images(rows), data.flip) if moved else forget_before
            change = self._change(
                labels if unlearns else [], data, rows, forget_before, after, memory_before
            )
            settings, rng = self.posterior_forgetting, self._generator(6)
            if by_sample and unlearns:
                change = _of_awake_classes(change, self.model.head)
                self.model.head.retire(self.model.head.met(emptied))
                losses |= self.model.head.forget_samples(change, held, settings, rng)
            else:
                losses |= self.model.head.forget(change, held, settings, rng)
        if self.forgetter.hides:
            self.model.head.hide(self.model.head.met(labels))
        towers = [t for t in ("image", "text") if clip.fingerprint(t) != result.clip.fingerprint(t)]
        return {
            "steps": result.steps, "towers": towers, "losses": losses, **result.notes,
            **self._scope(experience), **({"emptied": emptied} if emptied else {}),
        }  # fmt: skip

    @staticmethod
    def _emptied(experience: Any, rows: Tensor) -> list[int]:
        """Classes of which no learned image is left after a request by samples: with nothing behind it, a
        column at the prior would take other classes' images."""
        targets = experience.data.train.targets
        left = torch.ones(len(targets), dtype=torch.bool)
        left[rows] = False
        left[torch.tensor(experience.forgotten_samples, dtype=torch.long)] = False
        touched = targets[rows].unique()
        return touched[~torch.isin(touched, targets[left])].tolist()

    def _only_learned_for_now(self, experience: Any) -> list[int]:
        """Classes that were learned for now and that pretraining does not know: of them there is
        nothing in CLIP, which was frozen meanwhile, and nothing in the memory."""
        known = experience.data.known
        if known is None or not self.forgetter.unlearns_posterior:
            return []
        return [c for c in experience.learned_for_now if c not in known]

    def _scope(self, experience: Any) -> dict[str, Any]:
        """What the request covered and what it left, in words, where that is not plain."""
        scope: dict[str, Any] = {}
        for key in ("already_forgotten", "never_learned"):
            if classes := getattr(experience, key):
                scope[key] = list(classes)
        if dropped := self._only_learned_for_now(experience):
            scope["taken_back"] = dropped
        if experience.by_sample:
            scope["samples"] = len(experience.dataset)
            in_clip = bool(experience.request.pairs or self.samples_in_clip)
            scope["in_clip"] = in_clip
            if self.model.head.keeps_of_samples:
                scope["not_removed"] = self.model.head.keeps_of_samples
        return scope


def _of_awake_classes(change: Change, head: Head) -> Change:
    """The change without the images of classes that the head does not hold now."""
    awake = head.labels[~head.retired]
    own = torch.isin(change.forget_labels, awake.to(change.forget_labels))
    forget = ("forget_before", "forget_labels", "forget_ids", "forget_after")
    return replace(change, **{name: getattr(change, name)[own] for name in forget})


_keyword_init = ClapForget.__init__


@functools.wraps(_keyword_init)
def _init(self: ClapForget, model: Clip, **kwargs: Any) -> None:
    _keyword_init(self, model=model, **kwargs)


# Avalanche warns of every positional argument; the model may stand first all the same.
ClapForget.__init__ = _init  # type: ignore[method-assign]


def strategy_arguments(clip: Clip, options: StrategyOptions, seed: int) -> dict[str, Any]:
    """What :class:`ClapForget` and strategies derived from it take from the command line."""
    memory = options.memory
    return {
        "model": clip,
        "forgetter": make_forgetter(options.forgetter, options.forget),
        "memory": UncertaintyBuffer(memory.size, memory.score, seed),
        "training": options.training,
        "posterior_forgetting": options.posterior,
        **vars(options.requests),
        "seed": seed,
        "evaluator": EvaluationPlugin(),
    }


def build_clap_forget(clip: Clip, options: StrategyOptions, seed: int) -> ClapForget:
    """The strategy with the options of the command line."""
    return ClapForget(
        posterior=options.posterior_name, head=options.head, prompt=options.extra.get("prompt"),
        **strategy_arguments(clip, options, seed),
    )  # fmt: skip
