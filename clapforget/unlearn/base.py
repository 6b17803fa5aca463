"""What a forgetter is given, what it does, what it gives back."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from clapforget.clip import Clip
from clapforget.errors import UserError
from clapforget.registry import Registry
from clapforget.seeding import generator_for

__all__ = [
    "DEFAULT_FORGETTER",
    "FORGETTERS",
    "ForgetTask",
    "Forgetter",
    "Pairs",
    "Unlearned",
    "generator_for",
    "make_forgetter",
]

_LARGEST = 1_000_000_000  # of any number among settings; most have a bound of their own


@dataclass
class Pairs:
    """Images and what each is called: a class name, or a whole caption."""

    images: Tensor
    """[n, 3, h, w], uint8 or floats in [0, 1]."""
    names: list[str]

    def __post_init__(self) -> None:
        if len(self.images) != len(self.names):
            raise UserError(
                f"{len(self.images)} images and {len(self.names)} names", "give one each"
            )

    def __len__(self) -> int:
        return len(self.names)


@dataclass
class ForgetTask:
    """A request, as a forgetter sees it."""

    forget: Pairs
    retain: Pairs
    """What may be shown to keep the rest: a stream's exemplar memory, or a retain set."""
    templates: Sequence[str] = ("{}",)
    """Prompts with one ``{}`` for the name; ``"{}"`` alone for captions."""
    vocabulary: Sequence[str] = ()
    """Names to keep: text only, no images. Those to forget are left out by the forgetter."""
    seed: int = 0
    progress: Callable[[int, int], None] = lambda step, steps: None
    captions: bool | None = None
    """Whether the pairs' names are whole captions. ``None``: not known, see :attr:`of_captions`."""

    @property
    def of_captions(self) -> bool:
        """Whether the names to forget are captions, which together describe one thing, and not names
        of several. Where nobody said: there are several, most of them of one image only, and no
        template but ``"{}"``."""
        if self.captions is not None:
            return self.captions
        counts = Counter(self.forget.names).values()
        once = sum(count == 1 for count in counts)
        return len(counts) > 1 and 2 * once > len(counts) and tuple(self.templates) == ("{}",)


@dataclass
class Unlearned:
    """The changed model and what was done."""

    clip: Clip
    steps: int = 0
    losses: dict[str, list[float]] = field(default_factory=dict)
    """Each term's value by step."""
    notes: dict[str, Any] = field(default_factory=dict)


class Forgetter(ABC):
    """A method that makes a CLIP model forget.

    A subclass registers itself, names its options in ``Settings`` and, if it has more than one
    well-known configuration, its ``presets``.
    """

    Settings: ClassVar[type] = type("Settings", (), {})
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"default": {}}
    hides: ClassVar[bool] = False
    """Only takes the class out of the strategy's answers (a control, no method)."""
    unlearns_posterior: ClassVar[bool] = True
    """Whether the adapters' posterior is made to forget along with the encoder."""

    def __init__(self, settings: Any = None) -> None:
        self.settings = settings if settings is not None else self.Settings()

    @abstractmethod
    def unlearn(self, clip: Clip, task: ForgetTask) -> Unlearned:
        """Forget. ``clip`` itself is left as it is; the result holds the changed copy.

        :raises UserError: if the task lacks what the method needs.
        """


FORGETTERS: Registry[type[Forgetter]] = Registry("forgetter", "clapforget.unlearn")
DEFAULT_FORGETTER = "stranger"
"""Where none is named: the one that does best beside real twins, see docs/results/forgetting.md."""


def make_forgetter(name: str, overrides: Mapping[str, Any] | None = None) -> Forgetter:
    """Build a forgetter from ``"name"`` or ``"name:preset"``.

    :param overrides: settings that differ from the preset.
    :raises UserError: for an unknown name, preset or setting, or a value of another type.
    """
    name, _, preset = name.partition(":")
    cls = FORGETTERS.get(name)
    preset = preset or "default"
    if preset not in cls.presets:
        raise UserError(
            f"forgetter {name} has no preset {preset!r}", f"choose: {', '.join(cls.presets)}"
        )
    settings = {**cls.presets[preset], **(overrides or {})}
    return cls(make_settings(cls.Settings, settings, f"forgetter {name}"))


def make_settings(cls: type, values: Mapping[str, Any], what: str) -> Any:
    """A settings dataclass from plain values, checked.

    :raises UserError: for an unknown setting, a value of another type, or a number beyond all bounds.
    """
    hints = typing.get_type_hints(cls)
    fields = [f.name for f in dataclasses.fields(cls)] if dataclasses.is_dataclass(cls) else []
    for key, value in values.items():
        if key not in fields:
            raise UserError(
                f"{what} has no setting {key!r}", f"choose: {', '.join(fields) or 'none'}"
            )
        if not _fits(value, hints[key]):
            raise UserError(
                f"setting {key}={value!r} of {what} is of the wrong kind",
                f"give {_kind(hints[key])}",
            )
    numbers = {k: v for k, v in values.items() if isinstance(v, (int, float))}
    beyond = [k for k, v in numbers.items() if abs(v) > _LARGEST]
    real = {k: float(v) for k, v in numbers.items() if hints[k] is float and k not in beyond}
    made = cls(**{**values, **real})  # its own bounds first: they are narrower
    for key in beyond:
        raise UserError(f"setting {key}={values[key]!r} of {what}", f"give at most {_LARGEST:,}")
    return made


def _fits(value: Any, hint: Any) -> bool:
    if typing.get_origin(hint) is typing.Literal:
        return value in typing.get_args(hint)
    if typing.get_origin(hint) is types.UnionType:
        return any(_fits(value, part) for part in typing.get_args(hint))
    if hint is float:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number and (isinstance(value, int) or math.isfinite(value))
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint) if isinstance(hint, type) else True


def _kind(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) is types.UnionType:
        return " or ".join(map(_kind, typing.get_args(hint)))
    return {float: "a number", int: "a whole number", bool: "true or false"}.get(hint, str(hint))
