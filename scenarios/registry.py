"""Named scenarios: data, a seeded class order, requests, and the model they are meant for."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from avalanche.benchmarks.scenarios import CLScenario

from clapforget.errors import UserError
from clapforget.registry import Registry
from clapforget.scenarios.data import ImageData
from clapforget.scenarios.interleave import stream
from clapforget.scenarios.plan import Plan
from clapforget.scenarios.requests import Request
from clapforget.scenarios.sequence import check_requests, format_sequence, parse_sequence
from clapforget.scenarios.sequences import SEQUENCES, build_sequence
from clapforget.seeding import check_seed

__all__ = ["SCENARIOS", "Scenario", "ScenarioSpec", "build_scenario", "no_data", "scenario"]

Loader = Callable[[Path | None], tuple[ImageData, Plan]]
"""From the ``--data`` path, if any, to the data in canonical order and the default plan."""


@dataclass(frozen=True, eq=False)
class Scenario:
    """A stream ready to be lived through."""

    name: str
    description: str
    data: ImageData
    requests: list[Request]
    model: str
    """The model it is meant for, as :func:`clapforget.load_clip` takes it ..."""
    pretrained: str | None
    """... and its pretrained tag."""
    online: int = 0
    """Samples in an experience, each seen once; 0: a Learn request is one experience."""
    seed: int = 0
    """Of the order of samples where they come online."""

    @property
    def sequence(self) -> str:
        """The requests as text."""
        return format_sequence(self.requests)

    def benchmark(self) -> CLScenario:
        """The Avalanche benchmark, see :func:`clapforget.scenarios.stream`."""
        return stream(self.data, self.requests, online=self.online, seed=self.seed)


@dataclass(frozen=True)
class ScenarioSpec:
    """What is known of a scenario before its data is there."""

    name: str
    description: str
    model: str
    pretrained: str | None
    load: Loader

    def build(
        self,
        data_path: str | Path | None = None,
        seed: int = 0,
        sequence: str | None = None,
        class_order: Sequence[int] | None = None,
    ) -> Scenario:
        """:param data_path: where the data is, for scenarios that need some.
        :param seed: of the class order and the classes to forget; not of the images.
        :param sequence: requests as text, in place of the default ones, or the name of a sequence;
            its labels count in the class order used.
        :param class_order: canonical class of each label, in place of the seeded order.
        :raises UserError: for data, an order or a sequence that will not do.
        """
        check_seed(seed)
        data, plan = self.load(None if data_path is None else Path(data_path))
        for_order, for_requests = (np.random.default_rng([seed, part]) for part in (0, 1))
        data = data.reorder(plan.order(data, for_order) if class_order is None else class_order)
        online = 0
        if sequence is None:
            requests = plan.requests(data, for_requests)
        elif re.fullmatch("[a-z][a-z-]*", sequence):
            requests = build_sequence(sequence, plan.blocks, for_requests)
            online = SEQUENCES.get(sequence).online
        else:
            requests = parse_sequence(sequence)
        check_requests(requests, data.num_classes, data.known, len(data.train))
        return Scenario(
            self.name, self.description, data, requests, self.model, self.pretrained, online, seed
        )


SCENARIOS: Registry[ScenarioSpec] = Registry("scenario", "clapforget.scenarios")


def scenario(
    name: str, description: str, model: str, pretrained: str | None = None
) -> Callable[[Loader], Loader]:
    """Decorator that files a loader as a named scenario.

    :param description: one line for ``clapforget list``.
    """

    def file(load: Loader) -> Loader:
        SCENARIOS.register(name)(ScenarioSpec(name, description, model, pretrained, load))
        return load

    return file


def build_scenario(
    name: str,
    data_path: str | Path | None = None,
    seed: int = 0,
    sequence: str | None = None,
    class_order: Sequence[int] | None = None,
) -> Scenario:
    """Build a named scenario; the parameters are those of :meth:`ScenarioSpec.build`.

    :raises UserError: for an unknown name, or what the scenario cannot be built from.
    """
    return SCENARIOS.get(name).build(data_path, seed, sequence, class_order)


def no_data(name: str, data_path: Path | None) -> None:
    """:raises UserError: if a scenario that brings its own data is given a path."""
    if data_path is not None:
        raise UserError(
            f"scenario {name} draws its own images and cannot use {data_path}",
            "leave out --data, or choose scenario folder",
        )
