"""Single samples are forgotten: heads on sums exactly, the variational one as its module says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clapforget.errors import UserError
from clapforget.posterior import HEADS, Change, VariationalHead
from clapforget.posterior.forgetting import PosteriorForgetting
from clapforget.posterior.head import Head
from clapforget.seeding import generator_for

WIDTH, CLASSES, EACH = 32, 4, 12
TOWER = "tower"


def world() -> tuple[Tensor, Tensor, Tensor]:
    rng = generator_for(0, 1)
    centre = torch.randn(CLASSES, WIDTH, generator=rng)
    y = torch.arange(CLASSES).repeat_interleave(EACH)
    v = F.normalize(centre[y] + 1.5 * torch.randn(len(y), WIDTH, generator=rng), dim=-1)
    return v[:, None], y, torch.arange(len(y))


def texts() -> Tensor:
    return F.normalize(torch.randn(CLASSES, 2, WIDTH, generator=generator_for(0, 2)), dim=-1)


def change(v: Tensor, y: Tensor, ids: Tensor, gone: Tensor, kept: Tensor) -> Change:
    return Change(
        [], v[gone], y[gone], ids[gone], v[gone], v[kept], v[kept], y[kept], TOWER, ids[kept]
    )


GONE = torch.tensor([0, 3, 5, 13])
KEPT = torch.tensor([i for i in range(CLASSES * EACH) if i not in GONE.tolist()])


def learned(name: str, rows: Tensor) -> torch.nn.Module:
    v, y, ids = world()
    head = HEADS.get(name)(WIDTH, 20.0, None, 0)
    head.grow(list(range(CLASSES)), texts())
    head.learn(v[rows], y[rows], ids[rows], TOWER)
    return head


@pytest.mark.parametrize("name", ["exact", "nearest-mean", "zero-shot"])
def test_a_head_that_keeps_nothing_answers_as_one_that_never_saw_them(name: str) -> None:
    v, y, ids = world()
    head = learned(name, torch.arange(len(y)))
    before = head.predict(v[:, 0]).probs
    head.forget_samples(change(v, y, ids, GONE, KEPT), None, None, generator_for(0))
    never = learned(name, KEPT)
    assert head.keeps_of_samples == ""
    assert torch.allclose(head.predict(v[:, 0]).probs, never.predict(v[:, 0]).probs, atol=1e-6)
    assert (before - never.predict(v[:, 0]).probs).abs().max() > 1e-4 or name == "zero-shot"


def test_a_class_may_lose_its_last_sample_and_stays_a_column() -> None:
    v, y, ids = world()
    for name in ("exact", "nearest-mean"):
        head = learned(name, torch.arange(len(y)))
        gone, kept = (y == 2).nonzero().flatten(), (y != 2).nonzero().flatten()
        head.forget_samples(change(v, y, ids, gone, kept), None, None, generator_for(0))
        assert head.sums.count.tolist() == [EACH, EACH, 0, EACH]
        assert not head.sums.first[2].any()
        assert not head.retired.any()


def test_samples_that_were_not_learned_are_refused_by_the_exact_head() -> None:
    v, y, ids = world()
    head = learned("exact", KEPT)
    wrong = change(v, y, ids, torch.arange(EACH), KEPT)
    with pytest.raises(UserError, match="samples to delete"):
        head.forget_samples(wrong, None, None, generator_for(0))


def test_a_head_that_cannot_says_so() -> None:
    v, y, ids = world()
    request = change(v, y, ids, GONE, KEPT)
    with pytest.raises(UserError, match="cannot forget single samples"):
        Head.forget_samples(learned("zero-shot", KEPT), request, None, None, generator_for(0))


def variational() -> tuple[VariationalHead, Change]:
    v, y, ids = world()
    head = VariationalHead(WIDTH, 20.0, None, 0)
    head.grow([0, 1], texts()[:2])
    head.grow([2, 3], texts()[2:])
    head.close()
    head.guide(v[KEPT, 0])
    with torch.no_grad():  # a posterior that knows something
        noise = torch.randn(head.adapters.weight.shape, generator=generator_for(0, 9))
        head.adapters.weight.add_(0.05 * noise)
    head.requires_grad_(False)
    head.eval()
    return head, change(v, y, ids, GONE, KEPT)


def test_variational_other_classes_stay_and_theirs_are_made_again() -> None:
    head, request = variational()
    held = head.hold()
    losses = head.forget_samples(request, held, PosteriorForgetting(steps=60), generator_for(0))
    now = head.weights()
    others, touched = torch.tensor([2, 3]), torch.tensor([0, 1])
    for before, after in ((held.x + held.mu, now.x + now.mu), (held.sigma, now.sigma)):
        assert torch.allclose(before[others], after[others], atol=1e-3)
        assert (before[touched] - after[touched]).abs().max() > 0.05
    course = losses["posterior relearn"]
    assert sum(course[-5:]) < 0.8 * sum(course[:5])
    assert head.nats()[touched].min() > 1


def test_variational_nothing_of_what_their_classes_knew_is_left() -> None:
    """Whatever the posterior of the samples' classes was, the same one is made."""
    results = []
    for shift in (0.0, 3.0):
        head, request = variational()
        held = head.hold()
        held.mu[:2] += shift
        held.sigma[:2] += shift
        head.forget_samples(request, held, PosteriorForgetting(steps=20), generator_for(0))
        results.append(head.weights())
    assert torch.equal(results[0].mu[:2], results[1].mu[:2])
    assert torch.equal(results[0].sigma[:2], results[1].sigma[:2])


def test_variational_without_an_exemplar_a_class_goes_back_to_the_prior() -> None:
    head, request = variational()
    y = request.memory_labels
    rest = (y > 1).nonzero().flatten()
    names = ("memory_before", "memory_after", "memory_labels", "memory_ids")
    request = replace(request, **{name: getattr(request, name)[rest] for name in names})
    head.forget_samples(request, head.hold(), PosteriorForgetting(steps=20), generator_for(0))
    assert head.nats()[:2].max() < 1e-3
    assert head.nats()[2:].min() > 0.1
