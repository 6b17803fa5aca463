"""Forget requests for Avalanche's own strategies: ``Naive(plugins=[ReplayPlugin(...), ForgettingPlugin()])``."""

from __future__ import annotations

from collections.abc import Callable, Collection
from itertools import chain, islice
from typing import Any, Literal

import torch
from avalanche.core import BaseSGDPlugin, SupervisedPlugin
from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin
from avalanche.training.plugins.clock import Clock
from avalanche.training.storage_policy import BalancedExemplarsBuffer, ReservoirSamplingBuffer
from avalanche.training.templates.base_sgd import PeriodicEval

from clapforget.errors import UserError
from clapforget.strategies.buffer import UncertaintyBuffer
from clapforget.strategies.certify_plugin import ClassifierCertifier
from clapforget.strategies.classifier import ClipClassifier
from clapforget.strategies.forget_task import caption_pairs
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

_HARMLESS = (ReplayPlugin, EvaluationPlugin, Clock, PeriodicEval)
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

    Stands last among ``plugins``. Plugins that keep something of a task when it ends (importances,
    teachers) would take the request for a task and are refused.
    """

    def __init__(
        self,
        forgetter: str | Forgetter = DEFAULT_FORGETTER,
        retain_set: Pairs | None = None,
        seed: int = 0,
        certify: Literal["full", "quick", False] = "full",
        claim: Claim = "association",
    ) -> None:
        """:param forgetter: a registered name, ``"name:preset"``, or a forgetter.
        :param retain_set: data to retain on, in place of the replay memories.
        :param certify: the level at which requests are examined, or no certificates.
        :param claim: ``association``, or that the image tower holds the class no longer (``knowledge``).
        :raises UserError: for an unknown forgetter, level or claim.
        """
        super().__init__()
        self.forgetter = make_forgetter(forgetter) if isinstance(forgetter, str) else forgetter
        self.retain_set = retain_set
        self.seed = seed
        self.done: list[dict[str, Any]] = []
        """What each forget request came to."""
        self.certifier = ClassifierCertifier(certify, claim) if certify else None
        self.certificates: list[Certificate] = []
        self._silenced: list[Any] = []

    def after_train_dataset_adaptation(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Replay can't open an empty data set beside its own, and nothing is read from either."""
        forgets = getattr(strategy.experience, "kind", "learn") == "forget"
        if forgets and not len(strategy.adapted_dataset):
            held = [policy.buffer for policy in _policies(strategy) if len(policy.buffer)]
            strategy.adapted_dataset = held[0] if held else strategy.adapted_dataset

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        if getattr(strategy.experience, "kind", "learn") == "forget":
            self._check(strategy)
            self.done.append(self._forget(strategy, strategy.experience))

    def before_training_epoch(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        if getattr(strategy.experience, "kind", "learn") == "forget":
            strategy.dataloader = []

    def after_training(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        for buffer in self._silenced:
            del buffer.update
        self._silenced = []

    def _check(self, strategy: Any) -> None:
        if not isinstance(strategy.model, ClipClassifier):
            raise UserError(
                f"ForgettingPlugin cannot change a {type(strategy.model).__name__}",
                "give the strategy a ClipClassifier",
            )
        for plugin in strategy.plugins:
            own = getattr(type(plugin), "after_training_exp", None)
            silent = own is None or own in (
                SupervisedPlugin.after_training_exp, BaseSGDPlugin.after_training_exp
            )  # fmt: skip
            if not silent and not isinstance(plugin, _HARMLESS):
                raise UserError(
                    f"{type(plugin).__name__} would take a forget request for a task to learn",
                    "leave it out, or live through the stream with ClapForget",
                )

    def _forget(self, strategy: Any, experience: Any) -> dict[str, Any]:
        policies, model = _policies(strategy), strategy.model
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
            before = certifier.look(model)
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
            seed=self._seed(strategy.clock.train_exp_counter),
        )  # fmt: skip


def _policies(strategy: Any) -> list[Any]:
    return [p.storage_policy for p in strategy.plugins if isinstance(p, ReplayPlugin)]


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


def forget_in_buffer(buffer: Any, sample_ids: Collection[int], labels: Collection[int] = ()) -> int:
    """Delete samples from one of Avalanche's storage policies. :returns: how many.

    They are out of the buffer's data set; that is a view of your data, which is yours to delete.

    :param sample_ids: the data's ``sample_id``. :param labels: classes of which all are deleted.
    :raises UserError: for a policy that cannot forget, or a buffer without sample ids.
    """
    if isinstance(buffer, UncertaintyBuffer):
        return buffer.forget(labels, sample_ids)
    if isinstance(buffer, BalancedExemplarsBuffer):
        groups = buffer.buffer_groups
        deleted = sum(forget_in_buffer(group, sample_ids, labels) for group in groups.values())
        for name in [name for name, group in groups.items() if not len(group.buffer)]:
            del groups[name]
            for seen in ("seen_classes", "seen_groups"):
                getattr(buffer, seen, set()).discard(name)
        return deleted
    if not isinstance(buffer, ReservoirSamplingBuffer):
        raise UserError(
            f"{type(buffer).__name__} cannot delete samples",
            "use UncertaintyBuffer, or a class-balanced or reservoir buffer of Avalanche",
        )
    data = buffer.buffer
    if len(data) and not hasattr(data, "sample_id"):
        raise UserError("the replay memory has no sample ids", "learn from clapforget's streams")
    ids = list(data.sample_id) if len(data) else []
    kept = [
        i for i, (one, y) in enumerate(zip(ids, data.targets if ids else []))
        if one not in sample_ids and int(y) not in labels
    ]  # fmt: skip
    buffer.buffer = data.subset(kept) if ids else data
    buffer._buffer_weights = buffer._buffer_weights[kept]
    return len(ids) - len(kept)
