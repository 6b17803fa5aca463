"""Strategies by name, for the command line: one builder a strategy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from clapforget.clip import Clip
from clapforget.errors import UserError
from clapforget.posterior import ClapSettings
from clapforget.posterior.forgetting import PosteriorForgetting
from clapforget.registry import Registry
from clapforget.strategies.training import TrainSettings
from clapforget.unlearn.base import make_forgetter, make_settings

__all__ = ["STRATEGIES", "MemorySettings", "StrategyOptions"]


@dataclass(frozen=True)
class MemorySettings:
    """The exemplar memory."""

    size: int = 2000
    """Exemplars in all."""
    score: str = "mutual_information"


@dataclass(frozen=True)
class StrategyOptions:
    """Everything the command line can set, by group."""

    forgetter: str = "cliperase"
    clap: ClapSettings = field(default_factory=ClapSettings)
    training: TrainSettings = field(default_factory=TrainSettings)
    posterior: PosteriorForgetting = field(default_factory=PosteriorForgetting)
    memory: MemorySettings = field(default_factory=MemorySettings)
    forget: Mapping[str, Any] = field(default_factory=dict)

    GROUPS = ("clap", "training", "posterior", "memory", "forget")

    @classmethod
    def parse(cls, forgetter: str, values: Mapping[str, Any]) -> StrategyOptions:
        """From ``{"training.epochs": 3, "forget.lr": 1e-4}``.

        :raises UserError: for an unknown group, setting or kind of value.
        """
        groups: dict[str, dict[str, Any]] = {name: {} for name in cls.GROUPS}
        for key, value in values.items():
            group, dot, name = key.partition(".")
            if group not in groups or not dot:
                raise UserError(
                    f"unknown setting {key!r}",
                    f"write GROUP.NAME=VALUE, GROUP one of {', '.join(cls.GROUPS)}",
                )
            groups[group][name] = value
        make_forgetter(forgetter, groups["forget"])  # complains now rather than in mid-stream
        options = cls(
            forgetter,
            make_settings(ClapSettings, groups["clap"], "clap"),
            make_settings(TrainSettings, groups["training"], "training"),
            make_settings(PosteriorForgetting, groups["posterior"], "posterior"),
            make_settings(MemorySettings, groups["memory"], "memory"),
            groups["forget"],
        )
        options.check()
        return options

    def check(self) -> None:
        """:raises UserError: for numbers that make no sense."""
        for group, name, least in (
            ("memory", "size", 1), ("training", "epochs", 1), ("training", "batch_size", 1),
            ("clap", "samples", 1), ("posterior", "steps", 0), ("training", "consolidation_epochs", 0),
            ("clap", "feedforward", 1), ("clap", "dropout", 0), ("clap", "kl_weight", 0),
            ("clap", "language_weight", 0), ("posterior", "batch_size", 1), ("posterior", "lr", 0),
            ("training", "lr", 0), ("training", "consolidation_lr", 0), ("training", "warm_up", 0),
        ):  # fmt: skip
            value = getattr(getattr(self, group), name)
            if value < least:
                raise UserError(f"setting {group}.{name}={value}", f"give at least {least}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values of every setting, the forgetter's included."""
        settings = make_forgetter(self.forgetter, self.forget).settings
        plain = {name: asdict(getattr(self, name)) for name in self.GROUPS[:-1]}
        return {
            **plain,
            "forget": asdict(settings) if hasattr(settings, "__dataclass_fields__") else {},
        }


STRATEGIES: Registry[Callable[[Clip, StrategyOptions, int], Any]] = Registry(
    "strategy", "clapforget.strategies"
)
"""Builders ``(clip, options, seed) -> strategy``."""
