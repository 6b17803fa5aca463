"""A progress bar for every experience."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from clapforget.strategies.template import UnlearningPlugin

__all__ = ["ProgressPlugin"]


class ProgressPlugin(UnlearningPlugin, supports_distributed=False):  # type: ignore[call-arg]
    """Shows training steps of a learn experience and the forgetter's steps of a forget one."""

    def __init__(self) -> None:
        super().__init__()
        self.bar: tqdm | None = None

    @classmethod
    @contextmanager
    def on(cls, strategy: Any) -> Iterator[None]:
        """Attach to a strategy for as long as the context lasts."""
        plugin = cls()
        strategy.plugins.insert(0, plugin)
        before, strategy.on_progress = strategy.on_progress, plugin._forgetting
        try:
            yield
        finally:
            plugin._close()
            strategy.plugins.remove(plugin)
            strategy.on_progress = before

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        steps = strategy.train_epochs * len(strategy.dataloader)
        self._open(strategy.experience, steps)

    def before_forgetting_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self._open(strategy.experience, 0)

    def after_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.update()

    def after_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self._close()

    def after_forgetting_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self._close()

    def _open(self, experience: Any, steps: int) -> None:
        self._close()
        request = getattr(experience, "request", None)
        title = getattr(request, "text", "learning")
        self.bar = tqdm(total=steps or None, desc=title, unit="step", leave=False, mininterval=0.3)

    def _forgetting(self, step: int, steps: int) -> None:
        if self.bar is not None:
            self.bar.total = steps
            self.bar.update(step - self.bar.n)

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
