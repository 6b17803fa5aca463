"""U-LiRA on exact heads: deletion leaves no member, and a method that deletes nothing is found out."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from torch import Tensor

from clapforget.posterior.exact import ExactHead, ExactSettings
from clapforget.seeding import generator_for
from clapforget.verify import Evidence
from clapforget.verify.shadow_heads import Samples, sample_membership

CLASSES, WIDTH, N = 4, 48, 60


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=generator_for(seed, 0))


def samples(seed: int) -> Samples:
    labels = torch.arange(N) % CLASSES
    centres = draw(CLASSES, WIDTH, seed=99)
    v = torch.nn.functional.normalize(centres[labels] + 2 * draw(N, WIDTH, seed=seed), dim=-1)
    return v[:, None], labels


def empty() -> ExactHead:
    head = ExactHead(WIDTH, 20.0, ExactSettings(features=0))
    text = torch.nn.functional.normalize(draw(CLASSES, 1, WIDTH, seed=98), dim=-1)
    head.grow(range(CLASSES), text)
    return head


@cache
def found(really: bool, world: int = 0) -> dict[str, Evidence]:
    retained, members, others = (samples(10 * world + s) for s in (1, 2, 3))
    before = empty()
    ids = torch.arange(2 * N)
    before.learn(*(torch.cat(x) for x in zip(retained, members)), ids, "t")
    after = copy.deepcopy(before)
    if really:
        after.delete(*members, ids[N:], "t")
    unlearn = None if really else lambda head, own, ids: None
    pieces = sample_membership(
        empty, before, after, retained, members, others, "t", unlearn=unlearn, count=8
    )
    return {p.name: p for p in pieces}


def test_what_a_head_learned_is_told_from_what_it_never_saw() -> None:
    assert (found(True)["u_lira_auroc"].before or 0) > 0.75


def test_exact_deletion_leaves_no_member() -> None:
    """Over worlds, for in one of them members and others may differ by chance: within three standard
    errors, that of an AUROC of like samples being Mann and Whitney's."""
    worlds = 12
    error = ((2 * N + 1) / (12 * N * N) / worlds) ** 0.5
    for name in ("u_lira_auroc", "u_lira_auroc_two_sided"):
        mean = sum(found(True, world)[name].value for world in range(worlds)) / worlds
        assert abs(mean - 0.5) < 3 * error, name
        kept = sum(found(False, world)[name].value for world in range(worlds)) / worlds
        assert kept - 0.5 > 6 * error, name


def test_who_deletes_nothing_is_found_out() -> None:
    piece = found(False)["u_lira_auroc"]
    assert piece.interval[0] > 0.6
    assert piece.value == pytest.approx(piece.before)
