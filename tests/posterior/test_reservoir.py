"""The reservoir against sorting everything that was ever offered."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from clapforget.posterior.keys import key_of
from clapforget.posterior.reservoir import Reservoir

SEED = 7


def offer(reservoir: Reservoir, ids: Tensor) -> None:
    """An id's feature and label follow from the id, so that a mix-up would show."""
    v = torch.stack([ids.float(), -ids.float()], 1)[:, None]
    reservoir.add(v, ids % 3, ids)


def given_out(reservoir: Reservoir, most: int = 10**6) -> list[int]:
    v, labels = reservoir.sample(most)
    ids = v[:, 0, 0].long()
    assert torch.equal(labels, ids % 3)
    return sorted(ids.tolist())


def bottom(ids: Tensor, size: int) -> list[int]:
    """The ``size`` ids of each class with the smallest keys, by plain sorting."""
    out: list[int] = []
    for label in range(3):
        own = ids[ids % 3 == label].tolist()
        out += sorted(own, key=lambda i: float(key_of(torch.tensor([i]), SEED)))[:size]
    return sorted(out)


def some_ids(n: int, seed: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randperm(10**4, generator=rng)[:n] * 997


@given(st.integers(0, 80), st.integers(1, 6), st.integers(0, 10**6), st.integers(1, 5))
@settings(max_examples=60)
def test_it_gives_out_the_smallest_keys_in_whatever_order_and_parts_they_came(
    n: int, size: int, seed: int, parts: int
) -> None:
    whole = some_ids(n, seed)
    reservoir = Reservoir(2, size, SEED)
    for part in whole.chunk(parts):
        offer(reservoir, part)
    assert given_out(reservoir) == bottom(whole, size)
    assert len(reservoir.ids) <= 2 * size * 3


@given(st.integers(1, 80), st.integers(1, 5), st.integers(0, 10**6))
@settings(max_examples=60)
def test_deleted_samples_might_as_well_never_have_come(n: int, size: int, seed: int) -> None:
    """Some come, some of those go (at most ``size`` of a class's held ones), and others come. When
    more go than that, fewer are given out, but never others than the smallest keys."""
    whole = some_ids(n, seed)
    first, later = whole[: 3 * n // 4], whole[3 * n // 4 :]
    reservoir = Reservoir(2, size, SEED)
    offer(reservoir, first)
    held, lost, gone = set(reservoir.ids.tolist()), [0, 0, 0], []
    for i in first.tolist():
        if i not in held or lost[i % 3] < size:
            gone.append(i)
            lost[i % 3] += i in held
        if len(gone) >= n // 2:
            break
    reservoir.delete(torch.tensor(gone))
    assert not set(gone) & set(reservoir.ids.tolist())
    stay = whole[~torch.isin(whole, torch.tensor(gone))]
    assert given_out(reservoir) == bottom(stay[torch.isin(stay, first)], size)
    offer(reservoir, later)
    assert given_out(reservoir) == bottom(stay, size)
    more = reservoir.ids[torch.isin(reservoir.ids, first)]
    reservoir.delete(more)
    assert set(given_out(reservoir)) <= set(bottom(stay[~torch.isin(stay, more)], size))


def test_a_deleted_class_may_come_back_as_if_new() -> None:
    ids = torch.arange(300)
    reservoir = Reservoir(2, 4, SEED)
    offer(reservoir, ids[:150])
    reservoir.delete_classes(torch.tensor([1]))
    assert given_out(reservoir) == [i for i in bottom(ids[:150], 4) if i % 3 != 1]
    offer(reservoir, (again := ids[150:][ids[150:] % 3 == 1]))
    assert [i for i in given_out(reservoir) if i % 3 == 1] == bottom(again, 4)


def test_a_restart_holds_nothing_of_before() -> None:
    reservoir = Reservoir(2, 4, SEED)
    offer(reservoir, torch.arange(100))
    ids = torch.arange(200, 230)
    reservoir.restart(torch.stack([ids.float(), -ids.float()], 1)[:, None], ids % 3, ids)
    assert given_out(reservoir) == bottom(ids, 4)


@pytest.mark.parametrize("most", [1, 5, 9])
def test_fewer_are_shared_out_over_the_classes(most: int) -> None:
    reservoir = Reservoir(2, 4, SEED)
    offer(reservoir, torch.arange(100))
    out = given_out(reservoir, most)
    assert len(out) == most
    counts = torch.bincount(torch.tensor(out) % 3, minlength=3)
    assert counts.max() - counts.min() <= 1
    assert set(out) <= set(bottom(torch.arange(100), 4))


def test_an_empty_one_gives_nothing() -> None:
    reservoir = Reservoir(2, 4, SEED)
    assert given_out(reservoir) == []
    offer(reservoir, torch.zeros(0, dtype=torch.long))
    assert given_out(reservoir) == []
