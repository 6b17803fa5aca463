"""Sums carried over to another image tower."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from clapforget import UserError
from clapforget.posterior.exact import ExactHead
from tests.posterior.worlds import World, change, forget, learned, make_world

EVERY = range(5)


def rotation(width: int = 6) -> Tensor:
    rng = torch.Generator().manual_seed(8)
    return torch.linalg.qr(torch.randn(width, width, generator=rng, dtype=torch.double))[0]


def assert_same_posterior(one: ExactHead, other: ExactHead, tolerance: float) -> None:
    close = {"atol": tolerance, "rtol": tolerance}
    for mine, twins in zip(one.parts, other.parts):
        assert mine.rate == pytest.approx(twins.rate, rel=tolerance, abs=tolerance / twins.spread)
        torch.testing.assert_close(mine.posterior.factor, twins.posterior.factor, **close)
        if hasattr(mine.posterior, "mean"):
            torch.testing.assert_close(mine.posterior.mean, twins.posterior.mean, **close)
        else:
            torch.testing.assert_close(mine.posterior.weight, twins.posterior.weight, **close)


@pytest.mark.parametrize("model", ["discriminant", "regression", "both"])
@pytest.mark.parametrize("by_class", [False, True])
@pytest.mark.parametrize("views", [1, 2])
def test_a_rotation_is_recovered_from_exemplars(model: str, by_class: bool, views: int) -> None:
    world = make_world(views=views)
    head = learned(world, EVERY, model=model, by_class=by_class)
    kept = world.rows([0, 1, 3, 4]) & (torch.arange(60) % 3 == 0)
    turned = world.v @ rotation()
    told = forget(head, change(world, [2], kept, after=turned, tower="new"))
    assert told == {"drift": {"exemplars": int(kept.sum()), "relative_error": 0.0}}
    world.v = turned
    twin = learned(world, EVERY, world.rows([0, 1, 3, 4]), model=model, by_class=by_class)
    twin.retire([2])
    twin._solved = None
    assert_same_posterior(head, twin, 1e-6)
    torch.testing.assert_close(head.sums.class_packed, twin.sums.class_packed, atol=1e-6, rtol=0)


def noisy(world: World, size: float) -> Tensor:
    noise = torch.randn(world.v.shape, generator=torch.Generator().manual_seed(3))
    return world.v @ rotation() + size * noise.double()


def test_the_error_told_is_that_on_images_the_map_has_not_met() -> None:
    world = make_world(each=80)
    size = 0.1
    kept = torch.arange(400) % 2 == 0
    head = learned(world, EVERY)
    told = forget(head, change(world, [], kept, noisy(world, size), "new"))["drift"]
    expected = size**2 * 6 / (1 + size**2 * 6)  # noise over signal and noise, length 1
    assert told["relative_error"] == pytest.approx(expected, rel=0.25)


@pytest.mark.parametrize("exemplars", [1, 2, 4])
def test_few_exemplars_leave_the_rest_as_it_was(exemplars: int) -> None:
    world = make_world()
    head = learned(world, EVERY)
    turned = world.v @ rotation()
    before = head.reservoir.v[:, 0].clone()
    forget(head, change(world, [], torch.arange(60) < exemplars, turned, "new"))
    shown = torch.linalg.svd(world.v[:exemplars, 0], full_matrices=True).Vh
    rest = shown[exemplars:]  # directions in which no exemplar says anything
    matrix = torch.linalg.lstsq(before, head.reservoir.v[:, 0]).solution
    torch.testing.assert_close(rest @ matrix, rest, atol=1e-6, rtol=0)


def test_without_exemplars_it_says_so() -> None:
    world = make_world()
    head = learned(world, EVERY)
    with pytest.raises(UserError, match="memory has no exemplar"):
        forget(head, change(world, [1], torch.zeros(60, dtype=torch.bool), world.v, "new"))


def test_random_features_are_learned_again_from_exemplars_weighed_up() -> None:
    world = make_world(views=2)
    head = learned(world, EVERY, features=10, by_class=True)
    kept = world.rows([0, 1, 3]) & (torch.arange(60) % 4 == 0)
    turned = world.v @ rotation()
    told = forget(head, change(world, [2], kept, turned, "new"))["drift"]
    assert told["exemplars"] == 9
    assert head.sums.count.tolist() == [12, 12, 0, 12, 0]  # nothing is left that says what 4 is
    phi = head.map(turned[kept])
    first = torch.zeros(5, 16).double().index_add_(0, world.labels[kept], 4 * phi.mean(1))
    torch.testing.assert_close(head.sums.first, first)
    second = 2 * phi.flatten(0, 1).T @ phi.flatten(0, 1)
    torch.testing.assert_close(head.sums.second, second)
    torch.testing.assert_close(head.sums.class_second.sum(0), second)
    assert torch.equal(head.reservoir.ids.sort().values, world.ids[kept].sort().values)
    assert head.predict(turned[:, 0]).probs.isfinite().all()


def test_after_that_a_class_is_deleted_exactly_or_not_at_all() -> None:
    world = make_world()
    turned = world.v @ rotation()
    kept = torch.arange(60) % 2 == 0
    for by_class in (False, True):
        head = learned(world, EVERY, by_class=by_class)
        forget(head, change(world, [], kept, turned, "new"))
        moved = World(world.text, turned, world.labels, world.ids)
        request = change(moved, [1], kept & (world.labels != 1), tower="new")
        if by_class:
            forget(head, request)
            twin = learned(moved, EVERY, moved.rows([0, 2, 3, 4]), by_class=True)
            twin.retire([1])
            twin._solved = None
            assert_same_posterior(head, twin, 1e-6)
            head.grow([1], world.text[[1]])  # learned again, it is of the new tower's features
            head.learn(*moved.data(own := moved.rows([1]))[:3], "new")
            head.delete(*moved.data(own)[:3], "new")
        else:
            before = {k: v.clone() for k, v in head.state_dict().items()}
            with pytest.raises(UserError, match=r"carried over .* exact\.by_class=true"):
                forget(head, request)
            assert all(torch.equal(v, before[k]) for k, v in head.state_dict().items())
            own = moved.rows([1])
            with pytest.raises(UserError, match=r"carried over .* exact\.by_class=true"):
                head.delete(moved.v[own], moved.labels[own], moved.ids[own], "new")
