"""What the command line can set: every number has bounds, and what can be known is known at once."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Iterator
from typing import Any

import pytest

from clapforget.errors import UserError
from clapforget.posterior import HEADS
from clapforget.prompts import PROMPTS
from clapforget.strategies.registry import STRATEGIES, StrategyOptions
from clapforget.unlearn.base import DEFAULT_FORGETTER, FORGETTERS


def every_group() -> Iterator[tuple[str, str, str, type]]:
    """(strategy, forgetter, group, class) of all settings there are, each class once."""
    seen: set[tuple[str, type]] = set()
    groups = []
    for name in STRATEGIES.names():
        entry, head = STRATEGIES.get(name), HEADS.get(STRATEGIES.get(name).posterior)
        groups.append((name, DEFAULT_FORGETTER, head.settings_group, head.Settings))
        groups += [(name, DEFAULT_FORGETTER, group, kind) for group, kind in entry.extra.items()]
    for field in dataclasses.fields(StrategyOptions):
        if isinstance(field.default_factory, type) and dataclasses.is_dataclass(
            field.default_factory
        ):
            groups.append(("clapforget", DEFAULT_FORGETTER, field.name, field.default_factory))
    groups += [
        ("clapforget", name, "forget", FORGETTERS.get(name).Settings) for name in FORGETTERS.names()
    ]
    for group in groups:
        if group[2:] not in seen and dataclasses.is_dataclass(group[3]):
            seen.add(group[2:])
            yield group


NUMBERS = [
    (strategy, forgetter, f"{group}.{field.name}", kinds)
    for strategy, forgetter, group, cls in every_group()
    for field in dataclasses.fields(cls)
    for hint in [typing.get_type_hints(cls)[field.name]]
    for kinds in [{float, int} & {hint, *typing.get_args(hint)}]
    if kinds
]  # fmt: skip


def refused(strategy: str, forgetter: str, key: str, value: Any) -> str:
    with pytest.raises(UserError) as error:
        StrategyOptions.parse(strategy, forgetter, {key: value})
    text = str(error.value)
    assert "\n" not in text and key.partition(".")[2] in text and "; " in text
    return text


@pytest.mark.parametrize(("strategy", "forgetter", "key", "kinds"), NUMBERS)
def test_every_number_has_a_lower_and_an_upper_bound(
    strategy: str, forgetter: str, key: str, kinds: set[type]
) -> None:
    for value in (
        -1,
        -1e-9,
        -math.inf,
        math.inf,
        math.nan,
        10**10,
        10**400,
        1e30,
        "many",
        [1],
        True,
    ):
        refused(strategy, forgetter, key, value)
    if kinds == {int}:
        refused(strategy, forgetter, key, 1.5)


def test_the_tests_above_are_of_all_settings() -> None:
    groups = {key.partition(".")[0] for _, _, key, _ in NUMBERS}
    assert groups >= {
        "clap",
        "exact",
        "ranpac",
        "training",
        "memory",
        "posterior",
        "requests",
        "forget",
    }
    assert len(NUMBERS) > 100


@pytest.mark.parametrize(
    ("strategy", "key", "worst", "best"),
    [
        ("clapforget", "clap.dropout", 1.0, 0.999),
        ("clapforget", "training.warm_up", 1.0, 0.999),
        ("clapforget", "training.final_lr", 1.001, 1.0),
        ("clapforget", "training.lr", 10.5, 10.0),
        ("ranpac", "ranpac.features", 20_001, 20_000),
        ("exact", "exact.spread", 0, 1e-6),
        ("clapforget", "posterior.tolerance", -1e-6, 0.0),
    ],
)
def test_bounds_are_where_they_are_said_to_be(
    strategy: str, key: str, worst: float, best: float
) -> None:
    refused(strategy, DEFAULT_FORGETTER, key, worst)
    StrategyOptions.parse(strategy, DEFAULT_FORGETTER, {key: best})


@pytest.mark.parametrize(
    ("strategy", "settings", "words"),
    [
        ("clapforget", {"memory.score": "mutual"}, "unknown exemplar score 'mutual'; "),
        ("clapforget", {"memory.score": "coverage:low"}, "one direction only"),
        ("clapforget", {"prompt.style": "attri"}, "unknown prompt style 'attri'; did you mean attriclip"),
        ("coop", {"prompt.style": "hand-crafted"}, "set prompt.style to coop, attriclip or maple"),
        ("clapforget", {"prompt.style": "attriclip", "training.elbo": "pyro"}, "use training.elbo=closed-form"),
        ("exact", {"memory.score": "expected_energy"}, "needs draws of the logits"),
        (
            "clapforget",
            {"memory.score": "variance_of_entropy:low", "clap.uncertainty": "closed-form"},
            "'variance_of_entropy' needs draws of the logits",
        ),
    ],
)  # fmt: skip
def test_what_can_be_known_is_refused_before_anything_is_built(
    strategy: str, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        StrategyOptions.parse(strategy, DEFAULT_FORGETTER, settings)


@pytest.mark.parametrize("style", PROMPTS.names())
def test_a_style_of_prompts_as_a_strategy_trains_that_style(style: str) -> None:
    assert StrategyOptions.parse(style, DEFAULT_FORGETTER, {}).extra["prompt"].style == style
