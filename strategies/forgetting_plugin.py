"""Forget requests for Avalanche's own strategies: ``Naive(plugins=[ReplayPlugin(...), ForgettingPlugin()])``."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import chain, islice
from typing import Any, Literal

import torch
from avalanche.core import SupervisedPlugin

from clapforget.errors import UserError
from clapforget.strategies.certify_plugin import ClassifierCertifier
from clapforget.strategies.classifier import ClipClassifier
from clapforget.strategies.forget_checks import check_strategy
from clapforget.strategies.forget_task import caption_pairs
from clapforget.strategies.replay_memory import forget_in_buffer, replay_policies
from clapforget.unlearn.base import (
    DEFAULT_FORGETTER,
    ForgetTask,
    Forgetter,
    Pairs,
    make_forgetter,
)
from clapforget.verify import Certificate
from clapforget.verify.rules import Claim

__all__ = ["ForgettingPlugin", "forget_in_buffer"]

_MOST_RETAINED = 512


class ForgettingPlugin(SupervisedPlugin, supports_distributed=False):  # type: ignore[call-arg]
    """Carries out forget experiences in a strategy whose model is a :class:`ClipClassifier`.

    Such an experience trains nothing. The samples leave every replay memory, which does not learn
    from the experience either; the forgetter changes CLIP with the memories as retain set (not for
    requests by sample: CLIP was frozen when they were learned); the classifier drops what training
    taught of the classes; the optimiser's state is emptied. Not removed: what the samples taught the
    classifier of other classes. :attr:`done` says so of each request. A request of what is gone
    already changes nothing, and says that.

    Every request that has something to do ends in a certificate (:attr:`certificates`): by the witnesses and
    rules of ``clapforget verify``, or where it names samples or pairs by those of
    :mod:`clapforget.verify.samples`.

    Stands last among ``plugins``. Before anything is trained it refuses a plugin that it does not know
    to be harmless (one that keeps importances or teachers would take the request for a task), and a
    strategy that chooses or keeps its own training data (``Cumulative``, ``JointTraining``, ``GDumb``,
    ``DER``, ...): :mod:`~clapforget.strategies.forget_checks`. Should the model change after a request
    although nothing was learned, training ends in an error and the request's certificate is withdrawn.
    """

    def __init__(
        self,
        forgetter: str | Forgetter = DEFAULT_FORGETTER,
        retain_set: Pairs | None = None,
        seed: int = 0,
        certify: Literal["full", "quick", False] = "full",
        claim: Claim = "association",
        harmless: Sequence[type] = (),
    ) -> None:
        """:param forgetter: a registered name, ``"name:preset"``, or a forgetter.
        :param retain_set: data to retain on, in place of the replay memories.
        :param certify: the level at which requests are examined, or no certificates.
        :param claim: ``association``, or that the image tower holds the class no longer (``knowledge``).
        :param harmless: classes of plugins and strategies beside Avalanche's that you vouch for: they
            neither keep what a request takes away nor put it back. ``LRSchedulerPlugin`` is one such.
        :raises UserError: for an unknown forgetter, level or claim, or plugins in place of their classes.
        """
        super().__init__()
        self.forgetter = make_forgetter(forgetter) if isinstance(forgetter, str) else forgetter
        self.retain_set = retain_set
        self.seed = seed
        self.done: list[dict[str, Any]] = []
        """What each forget request came to."""
        self.certifier = ClassifierCertifier(certify, claim) if certify else None
        self.certificates: list[Certificate] = []
        self.harmless = tuple(harmless)
        if not all(isinstance(each, type) for each in self.harmless):
            raise UserError(
                f"harmless={harmless!r} of ForgettingPlugin", "give classes, not plugins"
            )
        self._silenced: list[Any] = []
        self._left: tuple[str, int, str] | None = None
        """The last request's title and event, and the model's fingerprint after it; None once learning."""

    def before_training(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        check_strategy(strategy, self, self.harmless)

    def before_train_dataset_adaptation(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self._hear()
        self._confirm(strategy)

    def after_train_dataset_adaptation(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Replay can't open an empty data set beside its own, and nothing is read from either."""
        if _forgets(strategy) and not len(strategy.adapted_dataset):
            held = [policy.buffer for policy in replay_policies(strategy) if len(policy.buffer)]
            strategy.adapted_dataset = held[0] if held else strategy.adapted_dataset

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        if not _forgets(strategy):
            return
        check_strategy(strategy, self, self.harmless)  # it may have come to hold something since
        self.done.append(self._forget(strategy, strategy.experience))
        title, event = strategy.experience.request.title, strategy.clock.train_exp_counter
        self._left = (title, event, strategy.model.fingerprint())

    def before_training_epoch(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        if _forgets(strategy):
            strategy.dataloader = []

    def after_training(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self._hear()
        self._confirm(strategy)

    def _hear(self) -> None:
        """Let replay learn again."""
        for policy in self._silenced:
            del policy.update
        self._silenced = []

    def _confirm(self, strategy: Any) -> None:
        """:raises UserError: if the model is not as the last request left it, and nothing was learned."""
        if self._left is None:
            return
        title, event, fingerprint = self._left
        self._left = None
        model = strategy.model
        if isinstance(model, ClipClassifier) and model.fingerprint() == fingerprint:
            return
        if self.certificates and self.certificates[-1].event == event:
            self.certificates.pop()
        raise UserError(
            f"something changed the model after {title} was carried out, so it has no certificate",
            "leave out the plugin or strategy that does, and forget again",
        )

    def _forget(self, strategy: Any, experience: Any) -> dict[str, Any]:
        policies, model = replay_policies(strategy), strategy.model
        ids, labels = set(experience.dataset.sample_id), set(experience.classes)
        deleted = 0
        for policy in policies:
            deleted += forget_in_buffer(policy, ids, labels)
            policy.update = lambda *_, **__: None  # replay keeps nothing of this experience
            self._silenced.append(policy)
        notes: dict[str, Any] = {"request": experience.request.title, "exemplars_deleted": deleted}
        if done := experience.nothing_to_do:
            return notes | {"steps": 0, "nothing_to_do": done}
        certify = self._before(experience, model, policies) if ids else None
        changed, steps = model.clip, 0
        if (labels or experience.request.pairs) and ids:
            result = self.forgetter.unlearn(changed, self._task(strategy, experience, policies))
            changed, steps, notes = result.clip, result.steps, notes | result.notes
        model.forget(changed, labels or set(experience.dataset.targets))
        strategy.optimizer.state.clear()
        what = "what the samples taught the classifier of other classes"
        notes |= {"steps": steps, "not_removed": what}
        if certify:
            self.certificates.append(certify(notes, strategy.clock.train_exp_counter))
        return notes

    def _before(
        self, experience: Any, model: ClipClassifier, policies: list[Any]
    ) -> Callable[[dict[str, Any], int], Certificate] | None:
        """Look at the classifier. :returns: what looks again and writes the certificate."""
        certifier = self.certifier
        if certifier is None:
            return None
        held = sorted({int(y) for policy in policies for y in policy.buffer.targets})
        views, by_class = certifier.views(experience, held), bool(experience.classes)
        if by_class:
            before = certifier.look(copy.deepcopy(model))  # the model's own tensors change
        else:
            seen = certifier.look_at_samples(experience, model, views)

        def certify(notes: dict[str, Any], event: int) -> Certificate:
            seed = self._seed(event)
            if by_class:
                after = certifier.look(model)
                return certifier.certify(experience, views, before, after, notes, event, seed)
            now = certifier.look_at_samples(experience, model, views)
            return certifier.certify_samples(experience, model, seen, now, notes, event, seed)

        return certify

    def _seed(self, event: int) -> int:
        return self.seed * 1_000_003 + event

    def _task(self, strategy: Any, experience: Any, policies: list[Any]) -> ForgetTask:
        """Images with their class's name; of a request by pairs with their captions."""
        data, by_pair = experience.data, bool(experience.request.pairs)
        rows = torch.tensor(sorted(experience.dataset.sample_id), dtype=torch.long)
        if by_pair:
            forget = caption_pairs(experience, rows)
        else:
            names = [data.class_names[c] for c in data.train.targets[rows].tolist()]
            forget = Pairs(data.train.images(rows), names)
        templates, words = strategy.model.templates, list(data.class_names)
        return ForgetTask(
            forget, self.retain_set or _held(policies, data, by_pair),
            ["{}"] if by_pair else templates,
            [templates[0].format(word) for word in words] if by_pair else words,
            seed=self._seed(strategy.clock.train_exp_counter), captions=by_pair,
        )  # fmt: skip


def _forgets(strategy: Any) -> bool:
    return getattr(strategy.experience, "kind", "learn") == "forget"


def _held(policies: list[Any], data: Any, captions: bool) -> Pairs:
    """Exemplars of the replay memories, at most 512, with their class's names or their captions."""
    buffers = [policy.buffer for policy in policies if len(policy.buffer)]
    samples = list(islice(chain.from_iterable(buffers), _MOST_RETAINED))
    if not samples:
        return Pairs(torch.zeros(0, 3, 1, 1), [])
    images = torch.stack([sample[0] for sample in samples])
    names = [data.class_names[int(sample[1])] for sample in samples]
    if captions:
        ids = [i for buffer in buffers for i in buffer.sample_id][: len(samples)]
        names = [said[0] for said in data.captions("train", torch.tensor(ids))]
    return Pairs(images, names)
