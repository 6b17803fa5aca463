"""The truncated factorisation against numpy's singular values of all rows at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from clapforget.posterior.low_rank import LowRankSums

D = 20


def rows(n: int, seed: int, views: int = 1) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(n, views, D, generator=rng, dtype=torch.double) * torch.linspace(3, 0.1, D)


def fill(sums: LowRankSums, *parts: Tensor) -> LowRankSums:
    sums.resize(torch.zeros(0, dtype=torch.bool), 2)
    for part in parts:
        sums.add(part, torch.arange(len(part)) % 2)
    return sums


def moment(sums: LowRankSums) -> Tensor:
    return (sums.basis * sums.singular.square()) @ sums.basis.T


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("sizes", [(3, 4, 5), (8, 30, 4)])
def test_untruncated_it_is_the_whole_second_moment(sizes: tuple[int, ...], views: int) -> None:
    parts = [rows(n, k, views) for k, n in enumerate(sizes)]
    sums = fill(LowRankSums(D, 0.0, 100), *parts)
    flat = torch.cat(parts).flatten(0, 1) / views**0.5
    torch.testing.assert_close(moment(sums), flat.T @ flat)
    torch.testing.assert_close(sums.basis.T @ sums.basis, torch.eye(len(sums.singular)).double())
    assert float(sums.lost) == 0


def test_one_task_keeps_the_leading_singular_directions() -> None:
    part = rows(12, 0)
    sums = fill(LowRankSums(D, 0.25, 100), part)
    u, s, _ = torch.linalg.svd(part[:, 0].T, full_matrices=False)
    assert len(sums.singular) == 9
    torch.testing.assert_close(sums.singular, s[:9])
    torch.testing.assert_close(moment(sums), (u[:, :9] * s[:9].square()) @ u[:, :9].T)
    torch.testing.assert_close(sums.lost, s[9:].square().sum())


def test_later_tasks_cut_what_earlier_ones_left() -> None:
    """The recurrence of the paper: the leading part of [U diag(s), H_t]."""
    first, second = rows(12, 0), rows(8, 1)
    sums = fill(LowRankSums(D, 0.25, 100), first, second)
    u, s, _ = torch.linalg.svd(first[:, 0].T, full_matrices=False)
    u, s, _ = torch.linalg.svd(torch.cat([u[:, :9] * s[:9], second[:, 0].T], 1), False)
    assert len(sums.singular) == 15
    torch.testing.assert_close(sums.singular, s[:15])
    torch.testing.assert_close(moment(sums), (u[:, :15] * s[:15].square()) @ u[:, :15].T)


def test_rank_and_size_bound_the_directions() -> None:
    assert len(fill(LowRankSums(D, 0.0, 7), rows(30, 0)).singular) == 7
    assert len(fill(LowRankSums(D, 0.25, 99), rows(90, 0)).singular) == 15


def test_rows_seen_before_add_no_direction() -> None:
    part = rows(6, 0)
    sums = fill(LowRankSums(D, 0.0, 100), part, part)
    assert len(sums.singular) == 6
    torch.testing.assert_close(moment(sums), 2 * part[:, 0].T @ part[:, 0])


def test_subtracting_leaves_what_the_others_add_up_to() -> None:
    kept, gone = rows(9, 0), rows(5, 1)
    sums = fill(LowRankSums(D, 0.0, 100), kept, gone)
    sums.add(gone, torch.arange(5) % 2, -1.0)
    other = fill(LowRankSums(D, 0.0, 100), kept)
    torch.testing.assert_close(moment(sums), moment(other), atol=1e-10, rtol=1e-8)
    torch.testing.assert_close(sums.first, other.first, atol=1e-12, rtol=1e-9)
    assert len(sums.singular) == 9 and sums.rows == 9


def test_emptied_it_holds_nothing() -> None:
    sums = fill(LowRankSums(D, 0.25, 100), rows(9, 0))
    sums.empty()
    assert not any(part.any() for part in sums.buffers()) and len(sums.singular) == 0
