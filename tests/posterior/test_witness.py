"""The witness sees every kind of difference to a refitted head."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from clapforget.posterior.exact import ExactHead
from clapforget.posterior.witness import refit_difference
from tests.posterior.worlds import World, change, forget, learned, make_world

EVERY = range(5)


def without_class_1(model: str, features: int = 0) -> tuple[World, ExactHead, float]:
    world = make_world(views=2)
    head = learned(world, EVERY, model=model, features=features)
    forget(head, change(world, [1], world.rows([0])))
    return world, head, refit_difference(head, *world.data(world.rows([0, 2, 3, 4]))[:3])


@pytest.mark.parametrize("model", ["discriminant", "regression", "both"])
@pytest.mark.parametrize("features", [0, 12])
def test_after_an_exact_deletion_nothing_but_rounding_differs(model: str, features: int) -> None:
    assert without_class_1(model, features)[2] < 1e-9


@pytest.mark.parametrize("model", ["discriminant", "regression", "both"])
def test_a_sample_too_many_shows(model: str) -> None:
    world, head, _ = without_class_1(model)
    rows = world.rows([0, 2, 3, 4])
    rows[0] = False
    assert refit_difference(head, *world.data(rows)[:3]) > 1e-3


def test_means_covariance_and_rates_are_looked_at_beside_answers() -> None:
    world, head, _ = without_class_1("discriminant")
    head.hide([0, 1, 2, 3])  # so that no answer can differ
    data = world.data(world.rows([0, 2, 3, 4]))[:3]
    right, sharpest = head.parts[0], max(part.rate * part.spread for part in head.parts)
    share = right.rate * right.spread / sharpest
    posterior = right.posterior
    moved = posterior.mean.clone()
    moved[1] += torch.tensor([1e-3, 0, 0, 0, 0, 0]).double()  # of a class without data
    for size, part in (
        (1e-3, replace(right, posterior=replace(posterior, mean=moved))),
        (2e-3, replace(right, posterior=replace(posterior, factor=posterior.factor * (1 + 1e-3)))),
        (1e-3 * share, replace(right, rate=right.rate * (1 + 1e-3))),
    ):
        first, *others = head.solution.pools
        changed = replace(first, parts=[part, *first.parts[1:]])
        head._solved = replace(head.solution, pools=[changed, *others])
        assert refit_difference(head, *data) == pytest.approx(size, rel=1e-3)
