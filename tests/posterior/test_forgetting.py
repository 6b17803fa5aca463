from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from clapforget.posterior import ClassWeights, VariationalHead
from clapforget.posterior.forgetting import PosteriorForgetting, forget_posterior

FORGOTTEN = 1  # a column of the learned head


def forget(
    learned, columns: list[int], memory: bool = True, moved: Tensor | None = None,
    head: VariationalHead | None = None,
) -> tuple[VariationalHead, ClassWeights, dict[str, list[float]]]:  # fmt: skip
    """A copy of the learned head after the request, its weights before, and the losses."""
    head = copy.deepcopy(learned.head if head is None else head)
    before = ClassWeights(*(part.clone() for part in head.weights()))
    gone = torch.isin(learned.y, torch.tensor(columns))
    earlier = head.retired[learned.y]  # of an earlier request: the memory has none
    kept = (
        (~gone & ~earlier).nonzero().flatten()[::4] if memory else torch.zeros(0, dtype=torch.long)
    )
    rows = torch.cat([kept, gone.nonzero().flatten()])
    now = learned.v if moved is None else F.normalize(learned.v @ moved, dim=1)
    if len(kept):
        head.context = now[kept].clone()
    losses = forget_posterior(
        head, [learned.labels[c] for c in columns], before, learned.v[rows], now[rows],
        torch.tensor(learned.labels)[learned.y[rows]],
        PosteriorForgetting(), torch.Generator().manual_seed(1),
    )  # fmt: skip
    return head, before, losses


def between(now: ClassWeights, then: ClassWeights, column: int) -> float:
    """KL of a class weight's distribution now from what it was."""
    return kl_divergence(
        Normal(now.x[column] + now.mu[column], now.sigma[column]),
        Normal(then.x[column] + then.mu[column], then.sigma[column]),
    ).sum().item()  # fmt: skip


def test_the_head_of_these_tests_has_learned(learned) -> None:
    right = learned.head.predict(learned.test_v).probs.argmax(1) == learned.test_y
    assert right.float().mean() > 0.97
    assert learned.head.nats().min() > 20


@pytest.mark.parametrize("columns", [[FORGOTTEN], [0, 4], [3, 4, 5]])
def test_forgotten_classes_go_back_to_the_prior(learned, columns: list[int]) -> None:
    head, _, _ = forget(learned, columns)
    nats = head.nats()
    assert nats[columns].max() < 0.01 * learned.head.nats()[columns].min()
    assert nats[columns].max() < 0.1
    assert head.retired.nonzero().flatten().tolist() == columns


@pytest.mark.parametrize("columns", [[FORGOTTEN], [0, 4], [3, 4, 5]])
def test_retained_classes_keep_their_weights_in_distribution(learned, columns: list[int]) -> None:
    head, before, _ = forget(learned, columns)
    now = head.weights()
    for column in set(range(6)) - set(columns):
        assert between(now, before, column) < 1.0  # nats over 128 dimensions
    assert max(between(now, before, column) for column in columns) > 20


@pytest.mark.parametrize("columns", [[FORGOTTEN], [0, 4], [3, 4, 5]])
def test_other_images_are_answered_as_before_and_forgotten_ones_as_other_names(
    learned, columns: list[int]
) -> None:
    head, _, _ = forget(learned, columns)
    then, now = (h.predict(learned.test_v).probs for h in (learned.head, head))
    gone = torch.isin(learned.test_y, torch.tensor(columns))
    assert (now.argmax(1) == then.argmax(1))[~gone].float().mean() > 0.95
    assert ((now - then).abs().sum(1) / 2)[~gone].mean() < 0.05
    assert now[:, columns].sum(1).mean() < 0.05
    assert (now.argmax(1) == learned.test_y)[gone].float().mean() < 0.1
    unnamed = copy.deepcopy(learned.head)
    unnamed.hide([learned.labels[c] for c in columns])
    wanted = unnamed.predict(learned.test_v[gone]).probs
    assert ((now[gone] - wanted).abs().sum(1) / 2).mean() < 0.1


def test_an_empty_memory_will_do(learned) -> None:
    head, before, _ = forget(learned, [FORGOTTEN], memory=False)
    assert head.nats()[FORGOTTEN] < 0.1
    assert all(between(head.weights(), before, c) < 1.0 for c in (0, 2, 3, 4, 5))
    retained = learned.test_y != FORGOTTEN
    right = head.predict(learned.test_v).probs.argmax(1) == learned.test_y
    assert right[retained].float().mean() > 0.8  # nothing of them was there to look at


def test_all_classes_can_be_forgotten(learned) -> None:
    head, _, _ = forget(learned, list(range(6)))
    assert head.retired.all()
    assert head.nats().max() < 0.1
    assert head.predict(learned.test_v).probs.isfinite().all()


def test_a_class_that_was_never_met_changes_no_answer(learned) -> None:
    head = copy.deepcopy(learned.head)
    before = ClassWeights(*(part.clone() for part in head.weights()))
    rows = torch.arange(0, len(learned.v), 4)
    forget_posterior(
        head, [77], before, learned.v[rows], learned.v[rows],
        torch.tensor(learned.labels)[learned.y[rows]], PosteriorForgetting(),
        torch.Generator().manual_seed(1),
    )  # fmt: skip
    assert not head.retired.any()
    then, now = (h.predict(learned.test_v).probs for h in (learned.head, head))
    assert ((now - then).abs().sum(1) / 2).mean() < 0.01


@pytest.mark.parametrize("columns", [[FORGOTTEN], [0, 4]])
def test_the_guidance_of_a_forgotten_class_points_to_its_images_no_more(
    learned, columns: list[int]
) -> None:
    """A class that is answered to no image can still rank its own images first."""
    head, _, _ = forget(learned, columns)
    memory = learned.v[~torch.isin(learned.y, torch.tensor(columns))][::4].mean(0)
    for column in columns:
        away = learned.v[learned.y == column].mean(0) - memory
        guidance = (head.inputs() - head.text)[column]
        assert head.scale * float(guidance @ away) < 0.7  # nats
        before = (learned.head.inputs() - learned.head.text)[column]
        assert head.scale * float(before @ away) > 1


@pytest.mark.parametrize("columns", [[FORGOTTEN], [0, 4]])
def test_the_guidance_of_the_others_stays(learned, columns: list[int]) -> None:
    """Or later tasks learn with an attention that was shaken."""
    head, _, _ = forget(learned, columns)
    stay = torch.ones(6, dtype=torch.bool)
    stay[columns] = False
    memory = learned.v[~torch.isin(learned.y, torch.tensor(columns))][::4]
    then = (learned.head.inputs(memory) - learned.head.text)[stay]
    now = (head.inputs() - head.text)[stay]
    assert (now - then).square().sum() < 0.01 * then.square().sum()


def test_a_second_request_keeps_the_first(learned) -> None:
    first, _, _ = forget(learned, [FORGOTTEN])
    second, _, _ = forget(learned, [4], head=first)
    assert second.retired.nonzero().flatten().tolist() == [FORGOTTEN, 4]
    assert second.nats()[[FORGOTTEN, 4]].max() < 0.1
    kept = ~torch.isin(learned.test_y, torch.tensor([FORGOTTEN, 4]))
    right = second.predict(learned.test_v).probs.argmax(1) == learned.test_y
    assert right[kept].float().mean() > 0.95


def test_a_moved_image_tower_is_made_up_for(learned) -> None:
    """The encoder's features are turned: the posterior must answer the new ones as the old. Four turns,
    for one alone leaves it to a few images."""
    kept = learned.test_y != FORGOTTEN
    before, after, forgotten = [], [], []
    for seed in range(4):
        turn = torch.randn(128, 128, generator=torch.Generator().manual_seed(seed)) * 0.18
        turn = torch.matrix_exp((turn - turn.T) / 2)
        moved = F.normalize(learned.test_v @ turn, dim=1)
        mended, _, _ = forget(learned, [FORGOTTEN], moved=turn)
        for head, found in ((learned.head, before), (mended, after)):
            found.append((head.predict(moved).probs.argmax(1) == learned.test_y)[kept])
        forgotten.append((mended.predict(moved).probs.argmax(1) == learned.test_y)[~kept])
        assert mended.nats()[FORGOTTEN] < 0.1
    unmended, right = (float(torch.cat(found).float().mean()) for found in (before, after))
    assert unmended < 0.75, "the case does not bite"
    assert right - unmended > 0.2 and right > 0.8, (unmended, right)
    assert torch.cat(forgotten).float().mean() < 0.1


def test_the_same_generator_gives_the_same_head(learned) -> None:
    first, _, losses = forget(learned, [FORGOTTEN])
    second, _, again = forget(learned, [FORGOTTEN])
    assert losses == again
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_the_result_is_frozen_and_the_record_is_plain(learned) -> None:
    head, before, losses = forget(learned, [FORGOTTEN])
    assert not any(p.requires_grad for p in head.attention.parameters())
    assert not head.weights().x.requires_grad
    for part, again in zip(before, learned.head.weights(), strict=True):
        torch.testing.assert_close(part, again)  # the record of before is as it was
    assert all(isinstance(value, float) for term in losses.values() for value in term)
    assert all(name.startswith("posterior") for name in losses)


def test_a_forgotten_class_can_be_learned_again_and_others_hold(learned) -> None:
    head, _, _ = forget(learned, [FORGOTTEN])
    then = head.predict(learned.test_v).probs
    text = head.templates[[FORGOTTEN]].clone()
    head.grow([learned.labels[FORGOTTEN]], text)
    assert not head.retired.any()
    assert head.labels.tolist()[-1] == learned.labels[FORGOTTEN]
    assert len(head.predict(learned.test_v).probs[0]) == len(then[0]) == 6


def test_settings_are_values() -> None:
    assert replace(PosteriorForgetting(), steps=3).steps == 3
