"""Avalanche's supervised template, extended by a second kind of experience: to forget."""

from __future__ import annotations

from typing import Any

from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.plugins.clock import Clock
from avalanche.training.templates import SupervisedTemplate
from avalanche.training.templates.base_sgd import PeriodicEval
from avalanche.training.utils import trigger_plugins

__all__ = ["UnlearningPlugin", "UnlearningTemplate"]


class UnlearningPlugin(SupervisedPlugin, supports_distributed=False):  # type: ignore[call-arg]
    """A plugin that also hears of forget experiences."""

    def before_forgetting_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Called before a forget experience is carried out."""

    def after_forgetting_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Called when a forget experience has been carried out."""


class UnlearningTemplate(SupervisedTemplate):
    """A strategy whose train stream may hold forget experiences (``kind == "forget"``).

    On those, :meth:`forget` runs in place of the training loop. Plugins hear
    ``before_forgetting_exp`` and ``after_forgetting_exp``; of the usual ``*_training_exp`` only
    the book-keeping ones (evaluator, periodic evaluation, clock) are told, so that a plugin which
    knows nothing of forgetting does not take the request for a task to learn, and the clock still
    counts every experience.
    """

    PLUGIN_CLASS = UnlearningPlugin

    def forget(self, experience: Any) -> None:
        """Carry out a forget experience. Not abstract: on a stream that only learns it is never asked.

        :raises NotImplementedError: where a subclass meets a forget experience without it.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how to forget")

    @property
    def is_forgetting(self) -> bool:
        """Whether the current experience is a forget one."""
        return getattr(self.experience, "kind", "learn") == "forget"

    def _before_training_exp(self, **kwargs: Any) -> None:
        if self.is_forgetting:
            self._tell_bookkeepers("before_training_exp", **kwargs)
            trigger_plugins(self, "before_forgetting_exp", **kwargs)
        else:
            super()._before_training_exp(**kwargs)

    def _train_exp(self, experience: Any, eval_streams: Any = None, **kwargs: Any) -> None:
        if self.is_forgetting:
            self.forget(experience)
        else:
            super()._train_exp(experience, eval_streams, **kwargs)

    def _after_training_exp(self, **kwargs: Any) -> None:
        if self.is_forgetting:
            trigger_plugins(self, "after_forgetting_exp", **kwargs)
            self._tell_bookkeepers("after_training_exp", **kwargs)
        else:
            super()._after_training_exp(**kwargs)

    def _tell_bookkeepers(self, event: str, **kwargs: Any) -> None:
        for plugin in self.plugins:
            if isinstance(plugin, (EvaluationPlugin, PeriodicEval, Clock)):
                getattr(plugin, event, lambda *_, **__: None)(self, **kwargs)
