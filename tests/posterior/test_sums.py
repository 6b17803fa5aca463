"""Sums: what is added can be subtracted."""

from __future__ import annotations

import pytest
import torch

from clapforget import UserError
from clapforget.posterior.sums import FeatureSums
from tests.posterior.worlds import make_sums, make_world


@pytest.mark.parametrize("views", [1, 2])
def test_they_are_the_moments_with_views_sharing_one_image(views: int) -> None:
    world = make_world(views=views)
    sums = make_sums(world, by_class=True)
    for label in range(5):
        own = world.v[world.labels == label]
        assert sums.count[label] == len(own)
        torch.testing.assert_close(sums.first[label], own.mean(1).sum(0))
        second = sum(x.T @ x for x in own) / views
        torch.testing.assert_close(sums.class_second[label], second)
    torch.testing.assert_close(sums.second, sums.class_second.sum(0))


def test_wide_second_moments_are_the_whole_product() -> None:
    """Wider than what is added to at once."""
    v = torch.randn(40, 2, 600, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    sums = FeatureSums(600, False)
    sums.resize(torch.zeros(0, dtype=torch.bool), 1)
    sums.add(v, torch.zeros(40, dtype=torch.long))
    sums.add(v[:10], torch.zeros(10, dtype=torch.long), -1.0)
    flat = v[10:].flatten(0, 1)
    torch.testing.assert_close(sums.second, flat.T @ flat / 2)


def test_subtracting_undoes_adding() -> None:
    world = make_world(views=2)
    sums, part = make_sums(world, by_class=True), world.labels >= 2
    sums.add(world.v[part], world.labels[part], -1.0)
    world.v, world.labels = world.v[~part], world.labels[~part]
    expected = make_sums(world, by_class=True)
    for name, value in expected.named_buffers():
        torch.testing.assert_close(getattr(sums, name), value, atol=1e-13, rtol=0)


def test_a_class_can_go_without_its_data_if_its_moments_are_kept() -> None:
    world = make_world()
    sums, other = make_sums(world, by_class=True), make_sums(world, by_class=True)
    sums.delete_class(3)
    own = world.labels == 3
    other.add(world.v[own], world.labels[own], -1.0)
    for name, value in other.named_buffers():
        torch.testing.assert_close(getattr(sums, name), value, atol=1e-13, rtol=0)
    assert not sums.first[3].any() and not sums.class_packed[3].any()
    with pytest.raises(UserError, match=r"exact\.by_class=true"):
        make_sums(world).delete_class(3)


def test_columns_move_with_their_classes() -> None:
    sums = make_sums(make_world(), by_class=True)
    before = sums.first.clone()
    sums.resize(torch.tensor([True, False, True, False, True]), 2)
    torch.testing.assert_close(sums.first[:3], before[[0, 2, 4]])
    assert sums.count.tolist() == [12, 12, 12, 0, 0] and not sums.first[3:].any()


def test_nothing_stays_when_everything_was_subtracted() -> None:
    world = make_world()
    sums = make_sums(world)
    sums.add(world.v, world.labels, -1.0)
    sums.carried[:] = True
    for column in range(5):
        sums.clear(column)
    assert not any(value.any() for value in sums.buffers())
