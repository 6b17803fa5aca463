"""What a strategy may be made of, for a forget request to hold in it."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from typing import Any

from avalanche.benchmarks import CLExperience
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.training.plugins import EarlyStoppingPlugin, EvaluationPlugin, ReplayPlugin
from avalanche.training.plugins.clock import Clock
from avalanche.training.storage_policy import ExemplarsBuffer
from avalanche.training.templates import SupervisedTemplate
from avalanche.training.templates.base_sgd import PeriodicEval
from torch.utils.data import DataLoader, Dataset

from clapforget.errors import UserError
from clapforget.strategies.classifier import ClipClassifier
from clapforget.strategies.replay_memory import check_policy, replay_policies

__all__ = ["check_strategy"]

_APPENDED = (ReplayPlugin, EvaluationPlugin, PeriodicEval, Clock)
"""Avalanche puts them after the user's plugins."""
_PLUGINS = (*_APPENDED, EarlyStoppingPlugin)
"""Known to keep nothing of what is forgotten and to put nothing back, themselves and no subclass."""
_MAY_DIFFER = {"forward", "criterion", "backward", "optimizer_step", "make_optimizer"}
"""Methods by which a strategy may differ from Avalanche's template, beside those of evaluation."""
_OF_NOW = {"experience", "adapted_dataset", "dataloader", "current_eval_stream", "_eval_streams"}
"""Attributes of the template that every experience sets anew."""
_DATA = (AvalancheDataset, Dataset, DataLoader, CLExperience, ExemplarsBuffer)


def check_strategy(strategy: Any, forgetting: Any, harmless: tuple[type, ...] = ()) -> None:
    """Refuse a strategy that may keep, put back or teach again what a request takes away.

    :param forgetting: the plugin that carries out requests.
    :param harmless: classes of plugins and of strategies that the user vouches for.
    :raises UserError: for another model than a :class:`ClipClassifier`, exemplars that cannot be
        deleted, a plugin that is not known, one after ``forgetting``, a strategy that chooses or keeps
        its own training data.
    """
    if not isinstance(strategy.model, ClipClassifier):
        raise UserError(
            f"ForgettingPlugin cannot change a {type(strategy.model).__name__}",
            "give the strategy a ClipClassifier",
        )
    _check_exemplars(strategy)
    _check_plugins(strategy, forgetting, harmless)
    if not isinstance(strategy, harmless):
        _check_training(strategy)


def _check_exemplars(strategy: Any) -> None:
    policies = replay_policies(strategy)
    for policy in policies:
        check_policy(policy)
    known = {id(each) for each in (*policies, *strategy.plugins)}
    for holder in (strategy, *strategy.plugins):
        for name, value in _held(holder):
            if isinstance(value, (ExemplarsBuffer, ReplayPlugin)) and id(value) not in known:
                raise UserError(
                    f"{_name(holder)} keeps exemplars ({name}) that ForgettingPlugin cannot delete",
                    "keep them in a ReplayPlugin, or live through the stream with ClapForget",
                )


def _check_plugins(strategy: Any, forgetting: Any, harmless: tuple[type, ...]) -> None:
    place = strategy.plugins.index(forgetting)
    for number, plugin in enumerate(strategy.plugins):
        if plugin is forgetting:
            continue
        if type(plugin) not in _PLUGINS and not isinstance(plugin, harmless):
            raise UserError(
                f"{_name(plugin)} may keep or put back what a forget request takes away",
                f"leave it out, or vouch for it: ForgettingPlugin(harmless=({_name(plugin)},))",
            )
        own = isinstance(plugin, _APPENDED) or plugin is getattr(strategy, "_criterion", None)
        if number > place and not own:
            raise UserError(
                f"{_name(plugin)} stands after ForgettingPlugin",
                "give ForgettingPlugin last in plugins=[...]",
            )


def _check_training(strategy: Any) -> None:
    name, way_out = _name(strategy), "use Naive or Replay"
    if not isinstance(strategy, SupervisedTemplate):
        raise UserError(f"{name} does not train as Avalanche's SupervisedTemplate does", way_out)
    way_out += f", or vouch for it: ForgettingPlugin(harmless=({name},))"
    for own in _overridden(type(strategy)):
        raise UserError(f"{name} may teach again what is forgotten: its own {own}()", way_out)
    for attribute, value in _held(strategy):
        if isinstance(value, _DATA) and attribute not in _OF_NOW:
            raise UserError(f"{name} keeps data of its own ({attribute})", way_out)


def _overridden(kind: type) -> Iterator[str]:
    """Methods of training that a strategy's classes define in place of the template's."""
    for cls in kind.__mro__:
        if cls.__module__.startswith("avalanche.training.templates"):
            continue
        for name in vars(cls):
            method = inspect.getattr_static(SupervisedTemplate, name, None)
            hidden = name.startswith("__") or name in _MAY_DIFFER or "eval" in name
            if inspect.isfunction(method) and not hidden:
                yield name


def _held(holder: Any) -> Iterator[tuple[str, Any]]:
    """An object's attributes by name; of collections also each member."""
    for name, value in vars(holder).items():
        yield name, value
        members: Iterable[Any] = ()
        if isinstance(value, dict):
            members = value.values()
        elif isinstance(value, (list, tuple, set)):
            members = value
        for member in members:
            yield name, member


def _name(thing: Any) -> str:
    return type(thing).__name__
