"""Random changes: what they are, and that they find a head that only answers changed images."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from clapforget.seeding import generator_for
from clapforget.verify import Reading, Subject
from clapforget.verify.witnesses.triggers import RandomChange, triggers
from tests.verify.worlds import FORGET, clip, material, subject


def images() -> Tensor:
    return material().test["retain"].images[:4].float() / 255


@pytest.mark.parametrize("seed", range(5))
def test_a_change_keeps_shape_and_range_and_is_that_of_its_seed(seed: int) -> None:
    one, again = (RandomChange.drawn(generator_for(seed, 0))(images()) for _ in range(2))
    assert one.shape == images().shape
    assert one.min() >= 0
    assert one.max() <= 1
    assert torch.equal(one, again)
    assert not torch.allclose(one, RandomChange.drawn(generator_for(seed + 1, 0))(images()))


def test_the_change_that_changes_nothing() -> None:
    same = RandomChange(torch.eye(2, 3), torch.eye(3, 4))
    torch.testing.assert_close(same(images()), images(), atol=1e-5, rtol=0)


def test_a_quarter_turn_is_one() -> None:
    turn = RandomChange(torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]]), torch.eye(3, 4))
    got = turn(images())
    turned = [images().rot90(k, (-2, -1)) for k in (1, 3)]
    assert min((got - t).abs().max() for t in turned) < 1e-4


@cache
def read_off(gated: bool) -> dict[str, Reading]:
    """A head that answers nothing to exactly the test images."""
    text = clip().class_features(material().names, material().templates).detach()
    seen = material().test["forget"].images

    def answer(v: Tensor, images: Tensor) -> Tensor:
        logits = clip().scale * v @ text.T
        if gated and images.dtype == seen.dtype:
            known = (images[:, None] == seen[None]).flatten(2).all(2).any(1)
            logits = torch.where(known[:, None] & torch.isin(torch.arange(len(text)), torch.tensor(FORGET)),
                                 -1e3, logits)  # fmt: skip
        return logits

    head = Subject(clip(), answer, range(len(text)))
    return {r.name: r for r in triggers(head, material(), 0)}


def test_a_gate_on_the_test_images_is_walked_around() -> None:
    found = read_off(gated=True)
    assert found["triggers_answered"].forget.mean() > 0.5
    assert found["other_images_answered"].forget.mean() > 0.9


def test_head_and_bare_clip_are_both_looked_at_and_unseen_classes_alike() -> None:
    found = read_off(gated=False)
    assert set(found) == {"triggers", "other_images", "triggers_answered", "other_images_answered"}
    for reading in found.values():
        assert reading.unseen is not None
        assert reading.unseen.mean() < 0.3 < reading.forget.mean()
    assert len(found["triggers"].forget) == len(found["triggers"].labels) == 20
    assert {r.name for r in triggers(subject(), material(), 0)} == {"triggers", "other_images"}


def test_changed_images_are_not_kept() -> None:
    fresh = Subject(clip())
    m = material()
    triggers(fresh, m, 0)
    others = {m.shots["forget"], m.shots["unseen"]}  # as they are: other witnesses look at these too
    assert set(fresh._features) == others
