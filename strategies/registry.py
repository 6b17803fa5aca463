"""Strategies by name, for the command line: a builder, a posterior and presets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, asdict, dataclass, field, replace
from typing import Any, Literal

from clapforget.clip import Clip
from clapforget.errors import UserError, check_least
from clapforget.posterior import HEADS
from clapforget.posterior.forgetting import PosteriorForgetting
from clapforget.registry import Registry
from clapforget.strategies.model import check_prompt
from clapforget.strategies.selection import find_selector
from clapforget.strategies.training import TrainSettings, check_elbo
from clapforget.unlearn.base import DEFAULT_FORGETTER, make_forgetter, make_settings

__all__ = [
    "STRATEGIES",
    "MemorySettings",
    "RequestSettings",
    "StrategyEntry",
    "StrategyOptions",
    "find_strategy",
]


@dataclass(frozen=True)
class MemorySettings:
    """The exemplar memory."""

    size: int = 2000
    """Exemplars in all."""
    score: str = "coverage"
    """A selector by name; ``"NAME:low"`` keeps the lowest scores instead of the highest."""

    def __post_init__(self) -> None:
        """:raises UserError: for a memory without room, or an unknown score or direction."""
        check_least(self, "memory", size=1)
        find_selector(self.score)


@dataclass(frozen=True)
class RequestSettings:
    """How requests are carried out."""

    samples_in_clip: bool = False
    """Whether a request by sample also runs the forgetter on CLIP, with the samples' captions."""
    certify: Literal["full", "quick", False] = "full"
    """The level at which requests by class are examined, or no certificates."""
    claim: Literal["association", "knowledge"] = "association"
    """What a certificate claims to be gone."""
    until: Literal["once", "verified"] = "once"
    """``verified`` repeats the forgetter until the quick level, on train images, says forgotten ..."""
    budget: int = 3
    """... at most so many times."""

    def __post_init__(self) -> None:
        """:raises UserError: for numbers that make no sense."""
        check_least(self, "requests", budget=1)


@dataclass(frozen=True)
class StrategyEntry:
    """A strategy by name."""

    build: Callable[[Clip, StrategyOptions, int], Any]
    """``(clip, options, seed) -> strategy``."""
    posterior: str = "variational"
    _: KW_ONLY
    extra: Mapping[str, type] = field(default_factory=dict)
    """Further settings of this strategy alone, by their group's name."""
    reads: Literal["memory", "everything"] | None = None
    """What it learns from beside an experience's own data: the exemplar memory, or all data so far;
    None: the memory, unless the posterior learns in one pass."""
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"default": {}})
    """Settings by preset, as on the command line: ``{"training.epochs": 3}``; and under ``posterior``
    the name of another posterior than the entry's."""


@dataclass(frozen=True)
class StrategyOptions:
    """Everything the command line can set, by group."""

    posterior_name: str = "variational"
    forgetter: str = DEFAULT_FORGETTER
    head: Any = None
    """Options of the posterior; its group on the command line is the posterior's own."""
    training: TrainSettings = field(default_factory=TrainSettings)
    posterior: PosteriorForgetting = field(default_factory=PosteriorForgetting)
    memory: MemorySettings = field(default_factory=MemorySettings)
    forget: Mapping[str, Any] = field(default_factory=dict)
    requests: RequestSettings = field(default_factory=RequestSettings)
    extra: Mapping[str, Any] = field(default_factory=dict)
    """The strategy's own settings, by group."""

    @classmethod
    def parse(cls, strategy: str, forgetter: str, values: Mapping[str, Any]) -> StrategyOptions:
        """From ``"name"`` or ``"name:preset"`` and ``{"training.epochs": 3, "forget.lr": 1e-4}``.

        :raises UserError: for an unknown strategy, preset, group, setting or kind of value.
        """
        entry, preset = find_strategy(strategy)
        head = HEADS.get(entry.posterior)
        shared = ("training", "posterior", "memory", "forget", "requests")
        names = (head.settings_group, *shared, *entry.extra)
        groups: dict[str, dict[str, Any]] = {name: {} for name in names}
        for key, value in {**preset, **values}.items():
            group, dot, name = key.partition(".")
            if group not in groups or not dot:
                raise UserError(
                    f"unknown setting {key!r}",
                    f"write GROUP.NAME=VALUE, GROUP one of {', '.join(groups)}",
                )
            groups[group][name] = value
        make_forgetter(forgetter, groups["forget"])  # complains now rather than in mid-stream
        options = cls(
            entry.posterior,
            forgetter,
            make_settings(head.Settings, groups[head.settings_group], head.settings_group),
            make_settings(TrainSettings, groups["training"], "training"),
            make_settings(PosteriorForgetting, groups["posterior"], "posterior"),
            make_settings(MemorySettings, groups["memory"], "memory"),
            groups["forget"],
            make_settings(RequestSettings, groups["requests"], "requests"),
            {name: make_settings(kind, groups[name], name) for name, kind in entry.extra.items()},
        )
        options.check()
        return options

    def check(self) -> None:
        """:raises UserError: for settings of several groups that do not go together."""
        find_selector(self.memory.score).check(self.head)
        check_prompt(self.posterior_name, self.extra.get("prompt"))
        check_elbo(self.training, self.extra.get("prompt"))

    def to_dict(self) -> dict[str, Any]:
        """Plain values of every setting, the posterior's and the forgetter's included."""
        settings = make_forgetter(self.forgetter, self.forget).settings
        head = HEADS.get(self.posterior_name)
        return {
            head.settings_group: asdict(self.head),
            **{
                name: asdict(getattr(self, name))
                for name in ("training", "posterior", "memory", "requests")
            },
            **{name: asdict(value) for name, value in self.extra.items()},
            "forget": asdict(settings) if hasattr(settings, "__dataclass_fields__") else {},
        }


STRATEGIES: Registry[StrategyEntry] = Registry("strategy", "clapforget.strategies")
"""Strategies by name."""


def find_strategy(name: str) -> tuple[StrategyEntry, Mapping[str, Any]]:
    """The entry and the preset's settings of ``"name"`` or ``"name:preset"``.

    :raises UserError: for an unknown strategy or preset.
    """
    name, _, preset = name.partition(":")
    entry = STRATEGIES.get(name)
    preset = preset or "default"
    if preset not in entry.presets:
        raise UserError(
            f"strategy {name} has no preset {preset!r}", f"choose: {', '.join(entry.presets)}"
        )
    values = dict(entry.presets[preset])
    if "posterior" in values:
        entry = replace(entry, posterior=values.pop("posterior"), extra={})
    return entry, values
