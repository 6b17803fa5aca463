"""CLIP-Adapter and the linear classifier: their equations, and what a forget request leaves."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clapforget.errors import UserError
from clapforget.posterior import HEADS, Change
from clapforget.posterior.clip_adapter import ClipAdapterHead, ClipAdapterSettings
from clapforget.posterior.linear import LinearHead, LinearSettings
from clapforget.posterior.trained import TrainedHead

D, CLASSES, EACH = 12, 5, 20
NAMES = ["clip-adapter", "linear"]


@pytest.fixture(scope="module")
def data() -> tuple[Tensor, Tensor, Tensor]:
    """Text templates [C, 3, d], features [n, 2, d] far from them, labels [n]."""
    rng = torch.Generator().manual_seed(0)
    text = F.normalize(torch.randn(CLASSES, 3, D, generator=rng), dim=-1)
    centre = F.normalize(torch.randn(CLASSES, D, generator=rng), dim=-1)
    labels = torch.arange(CLASSES).repeat_interleave(EACH)
    noise = 0.2 * torch.randn(len(labels), 2, D, generator=rng)
    return text, F.normalize(centre[labels][:, None] + noise, dim=-1), labels


STRONG = {
    "clip-adapter": ClipAdapterSettings(ratio=0.7, reduction=1, relearn_steps=200),
    "linear": LinearSettings(relearn_steps=200),
}
"""Twelve dimensions need more of an adapter than hundreds do."""


def make(name: str, text: Tensor, classes: list[int]) -> TrainedHead:
    head = HEADS.get(name)(D, 10.0, STRONG[name], 3)
    head.grow(classes, text[classes])
    return head


def train(head: TrainedHead, v: Tensor, labels: Tensor, steps: int = 150) -> None:
    head.train_only("newest")
    optimizer, rng = head.optimizer("newest"), torch.Generator().manual_seed(1)
    for _ in range(steps):
        rows = torch.randint(len(v), (32,), generator=rng)
        part, y = v[rows, 0], head.columns(labels[rows])
        optimizer.zero_grad()
        head.loss(head.logits(part), part, y).backward()
        optimizer.step()
    head.requires_grad_(False)


def accuracy(head: TrainedHead, v: Tensor, labels: Tensor) -> float:
    return float((head.labels[head.predict(v[:, 0]).probs.argmax(1)] == labels).float().mean())


def test_the_adapter_is_the_published_equation(data) -> None:
    head = ClipAdapterHead(D, 10.0, seed=3)
    head.grow([0, 1, 2], data[0][:3])
    v = data[1][:, 0]
    w1, w2 = head.down.weight, head.up.weight
    assert w1.shape == (3, D) and w2.shape == (D, 3)
    f = 0.2 * (w2 @ (w1 @ v.T).clamp_min(0)).clamp_min(0).T + 0.8 * v
    text = F.normalize(data[0][:3].mean(1), dim=1)
    expected = 10 * F.cosine_similarity(f[:, None], text[None], dim=-1)
    torch.testing.assert_close(head.logits(v), expected)


def test_the_linear_classifier_starts_as_zero_shot(data) -> None:
    head = make("linear", data[0], [0, 1, 2])
    other = HEADS.get("zero-shot")(D, 10.0)
    other.grow([0, 1, 2], data[0][:3])
    v = data[1][:, 0]
    torch.testing.assert_close(head.predict(v).probs, other.predict(v).probs)


@pytest.mark.parametrize("name", NAMES)
def test_it_learns(name: str, data) -> None:
    text, v, labels = data
    head = make(name, text, list(range(CLASSES)))
    before = accuracy(head, v, labels)
    train(head, v, labels)
    assert accuracy(head, v, labels) > max(before + 0.2, 0.8)


def test_a_new_task_leaves_the_weights_of_the_old_classes(data) -> None:
    text, v, labels = data
    head = make("linear", text, [0, 1])
    train(head, v[labels < 2], labels[labels < 2], 20)
    old = head.weight.detach().clone()
    head.grow([2, 3], text[[2, 3]])
    torch.testing.assert_close(head.weight[:2], old)
    torch.testing.assert_close(head.weight[2:], F.normalize(text[[2, 3]].mean(1), dim=1))
    assert not torch.allclose(old, head.text[:2], atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_forgetting_leaves_a_head_that_learned_the_exemplars_alone(name: str, data) -> None:
    """Bit for bit that of a head which never met anything else."""
    text, v, labels = data
    heads = [make(name, text, [0, 1, 2, 3]) for _ in range(2)]
    train(heads[0], v[labels < 4], labels[labels < 4])
    memory = (labels < 4) & (labels != 2) & (torch.arange(len(labels)) % 4 == 0)
    gone, none = labels == 2, torch.arange(0)
    request = Change([2], v[gone], labels[gone], none, v[gone], v[memory], v[memory],
                     labels[memory], "tower", none)  # fmt: skip
    for head in heads:
        note = head.forget(request, None, None, torch.Generator().manual_seed(5))
        assert note == {"relearned_from_exemplars": 15}
    for mine, other in zip(*(head.state_dict().values() for head in heads), strict=True):
        assert torch.equal(mine, other)
    kept = (labels < 4) & (labels != 2)
    assert accuracy(heads[0], v[kept], labels[kept]) > 0.8
    assert heads[0].retired.tolist() == [False, False, True, False]
    assert not any(p.requires_grad or p.grad is not None for p in heads[0].parameters())


def test_a_forgotten_class_is_answered_by_its_text(data) -> None:
    text, v, labels = data
    head = make("linear", text, [0, 1, 2])
    train(head, v[labels < 3], labels[labels < 3])
    head.retire([1])
    torch.testing.assert_close(
        head.logits(v[:, 0])[:, 1], 10 * v[:, 0] @ F.normalize(text[1].mean(0), dim=0)
    )


@pytest.mark.parametrize("name", NAMES)
def test_state_comes_back(name: str, data) -> None:
    text, v, labels = data
    head, other = make(name, text, [0, 1, 2]), HEADS.get(name)(D, 10.0, STRONG[name], 8)
    train(head, v[labels < 3], labels[labels < 3], 20)
    other.load_state_dict(head.state_dict())
    assert torch.equal(head.logits(v[:, 0]), other.logits(v[:, 0]))
    other.grow([3], text[[3]])
    assert len(other.labels) == 4


def test_impossible_numbers_are_refused() -> None:
    for wrong in ({"ratio": 0.0}, {"reduction": 0}, {"lr": -1.0}, {"relearn_steps": -1}):
        with pytest.raises(UserError, match="clip_adapter"):
            ClipAdapterHead(D, 10.0, ClipAdapterSettings(**wrong))
    with pytest.raises(UserError, match="linear"):
        LinearHead(D, 10.0, LinearSettings(lr=-1.0))
