from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clapforget import adapter
from clapforget.adapter import GaussianAdapter, StackedGaussianAdapters, TaskTokens
from clapforget.blocks import Blocks

WIDTH = 12


def texts(classes: int, templates: int = 4, width: int = WIDTH, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(classes, templates, width, generator=generator), dim=-1)


def by_task(task: list[int], tasks: int | None = None) -> Blocks:
    return Blocks.of(torch.tensor(task), tasks)


def randomised(tasks: int, is_open: bool = True) -> StackedGaussianAdapters:
    """Adapters of some tasks whose weights are all plainly unlike each other."""
    adapters = StackedGaussianAdapters(WIDTH)
    generator = torch.Generator().manual_seed(1)
    for _ in range(tasks):
        adapters.open(texts(3), generator)
        with torch.no_grad():
            adapters.open_weight.normal_(generator=generator)
            adapters.open_bias.normal_(generator=generator)
    if not is_open:
        adapters.close()
    return adapters


def test_a_new_adapter_starts_as_released() -> None:
    adapters, text = StackedGaussianAdapters(WIDTH), texts(7)
    adapters.open(text, torch.Generator().manual_seed(0))
    mean = torch.stack([text[:, number] for number in range(4)]).sum(0) / 4
    spread = sum((text[:, number] - mean) ** 2 for number in range(4)) / 3  # unbiased
    w_mu, w_sigma = adapters.open_weight[0].chunk(2)
    torch.testing.assert_close(w_mu, mean.T @ mean / WIDTH)
    torch.testing.assert_close(w_sigma, spread.T @ spread / WIDTH)


def test_biases_are_uniform_within_their_bounds() -> None:
    width = 256
    adapters = StackedGaussianAdapters(width)
    adapters.open(texts(2, width=width), torch.Generator().manual_seed(0))
    scaled = adapters.open_bias[0] * math.sqrt(width)
    assert scaled.min() >= -1 and scaled.max() <= 1
    assert scaled.min() < -0.9 and scaled.max() > 0.9
    assert scaled.mean().abs() < 0.15
    assert (scaled.var() - 1 / 3).abs() < 0.06


def test_one_template_gives_no_spread_and_no_nan() -> None:
    adapters = StackedGaussianAdapters(WIDTH)
    text = texts(3, templates=1)
    adapters.open(text, torch.Generator().manual_seed(0))
    assert (adapters.open_weight[0, WIDTH:] == 0).all()
    mu, sigma = adapters(text[:, 0], by_task([0, 0, 0]))
    assert mu.isfinite().all() and sigma.isfinite().all()


def test_the_same_generator_state_gives_the_same_adapter() -> None:
    first, second, third = (StackedGaussianAdapters(WIDTH) for _ in range(3))
    for adapters, seed in ((first, 5), (second, 5), (third, 6)):
        adapters.open(texts(3), torch.Generator().manual_seed(seed))
    assert torch.equal(first.open_bias, second.open_bias)
    assert not torch.equal(first.open_bias, third.open_bias)


@pytest.mark.parametrize("task", [[0, 0, 0], [0, 1, 2], [2, 0, 1, 0, 2, 2, 2], [1], [2, 2, 2]])
@pytest.mark.parametrize("is_open", [True, False])
def test_the_stack_equals_a_loop_of_linear_layers(task: list[int], is_open: bool) -> None:
    adapters = randomised(3, is_open)
    weight = torch.cat([adapters.weight, adapters.open_weight])
    bias = torch.cat([adapters.bias, adapters.open_bias])
    x = torch.randn(len(task), WIDTH, generator=torch.Generator().manual_seed(2))
    mu, sigma = adapters(x, by_task(task, 3))
    for c, t in enumerate(task):
        mean, raw = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        state = {"weight": weight[t, :WIDTH], "bias": bias[t, :WIDTH]}
        mean.load_state_dict(state)
        raw.load_state_dict({"weight": weight[t, WIDTH:], "bias": bias[t, WIDTH:]})
        torch.testing.assert_close(mu[c], mean(x[c]))
        torch.testing.assert_close(sigma[c], 0.999 * nn.functional.softplus(raw(x[c])) + 0.001)


def test_sigma_never_falls_below_its_floor() -> None:
    adapters = randomised(1)
    with torch.no_grad():
        adapters.open_bias.fill_(-1e4)
    _, sigma = adapters(torch.zeros(2, WIDTH), by_task([0, 0]))
    torch.testing.assert_close(sigma, torch.full_like(sigma, 1e-3))


def test_closing_changes_no_output_and_opening_no_older_one() -> None:
    adapters = randomised(2)
    x, task = torch.randn(5, WIDTH), [0, 1, 1, 0, 1]
    before = adapters(x, by_task(task))
    adapters.close()
    assert adapters.tasks == 2 and not len(adapters.open_weight)
    closed = adapters(x, by_task(task))
    adapters.close()  # twice is once
    assert adapters.tasks == 2
    adapters.open(texts(2), torch.Generator())
    assert adapters.tasks == 3
    for now in (closed, adapters(x, by_task(task, 3))):
        for left, right in zip(before, now, strict=True):
            torch.testing.assert_close(left, right)


@pytest.mark.parametrize("is_open", [True, False])
def test_a_saved_state_comes_back_into_other_sizes(is_open: bool) -> None:
    adapters = randomised(3, is_open)
    state = adapters.state_dict()
    for other in (StackedGaussianAdapters(WIDTH), randomised(5), randomised(1)):
        other.resize(len(state["weight"]), len(state["open_weight"]))
        other.load_state_dict(state)
        assert other.tasks == 3
        x, task = torch.randn(4, WIDTH), by_task([2, 0, 1, 2])
        for left, right in zip(adapters(x, task), other(x, task), strict=True):
            assert torch.equal(left, right)


def test_the_open_task_alone_gets_a_gradient_of_its_own() -> None:
    adapters = randomised(3)
    mu, sigma = adapters(torch.randn(2, WIDTH), by_task([2, 2], 3))
    (mu.sum() + sigma.sum()).backward()
    assert adapters.open_weight.grad is not None and adapters.open_weight.grad.abs().sum() > 0
    assert adapters.weight.grad is None or not adapters.weight.grad.any()


def test_leading_dimensions_are_separate_inputs() -> None:
    adapters, blocks = randomised(3), by_task([0, 2, 1, 2, 0], 3)
    x = torch.randn(2, 4, 5, WIDTH, generator=torch.Generator().manual_seed(3))
    mu, sigma = adapters(x, blocks)
    assert mu.shape == sigma.shape == x.shape
    for i, j in ((0, 0), (1, 3)):
        for whole, one in zip((mu, sigma), adapters(x[i, j], blocks)):
            torch.testing.assert_close(whole[i, j], one)


def test_the_adapter_above_is_two_linear_layers() -> None:
    torch.manual_seed(0)
    adapter = GaussianAdapter(WIDTH)
    x = torch.randn(3, WIDTH)
    mu, sigma = adapter(x)
    out = adapter.linear(x)
    torch.testing.assert_close(mu, out[:, :WIDTH])
    torch.testing.assert_close(sigma, 0.999 * F.softplus(out[:, WIDTH:]) + 0.001)


def test_tokens_start_small_and_keep_their_place() -> None:
    tokens = TaskTokens(400)
    for number in range(3):
        tokens.open(torch.Generator().manual_seed(number))
    assert tokens().shape == (3, 400) and tokens.open_token.shape == (1, 400)
    assert tokens().std().item() == pytest.approx(0.02, rel=0.1)
    before = tokens().detach().clone()
    tokens.close()
    assert torch.equal(tokens(), before) and not len(tokens.open_token)
    other = TaskTokens(400)
    other.resize(3, 0)
    other.load_state_dict(tokens.state_dict())
    assert torch.equal(other(), before)


def test_gradients_are_those_of_finite_differences() -> None:
    adapters, blocks = randomised(3).double(), by_task([0, 2, 1, 2, 0], 3)
    x = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(3)).double().requires_grad_()
    leaves = [x, *adapters.parameters()]

    def run(*_: Tensor) -> tuple[Tensor, Tensor]:
        return adapters(x, blocks)

    assert torch.autograd.gradcheck(run, leaves)
    adapters.weight.requires_grad_(False)
    mu, _ = adapters(x, blocks)
    mu.sum().backward()
    assert adapters.weight.grad is None and adapters.bias.grad is not None


def _fixed() -> tuple[StackedGaussianAdapters, Tensor, Blocks]:
    """Two closed tasks and an open one, as in stage 1 without guidance."""
    adapters = randomised(3).train()
    adapters.weight.requires_grad_(False)
    adapters.bias.requires_grad_(False)
    return adapters, texts(4).mean(1), by_task([0, 1, 2, 2])


def test_frozen_tasks_are_worked_out_once_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    adapters, x, blocks = _fixed()
    wanted = adapters(x, blocks)
    tasks: list[int] = []
    deviations: list[int] = []
    linear, gaussian = adapter._linear, adapter._gaussian

    def counted(rows: Tensor, *parts: Tensor) -> Tensor:
        tasks.append(len(rows))
        return linear(rows, *parts)

    def counted_gaussian(out: Tensor) -> tuple[Tensor, Tensor]:
        deviations.append(len(out))
        return gaussian(out)

    monkeypatch.setattr(adapter, "_linear", counted)
    monkeypatch.setattr(adapter, "_gaussian", counted_gaussian)
    mu, sigma = adapters(x, blocks)
    assert tasks == deviations == [1], "the open task alone"
    assert torch.equal(mu, wanted[0]) and torch.equal(sigma, wanted[1])
    adapters.eval()(x, blocks)
    assert tasks == [1, 2, 1], "in evaluation everything"


@pytest.mark.parametrize("change", ["weight", "bias", "input", "written"])
def test_what_was_worked_out_is_not_used_once_it_is_wrong(change: str) -> None:
    adapters, x, blocks = _fixed()
    before = adapters(x, blocks)
    with torch.no_grad():
        if change == "weight":
            adapters.weight += 1
        if change == "bias":
            adapters.bias[1] = 3
        if change == "input":
            x = x + 1
        if change == "written":
            x *= 2
    now = adapters(x, blocks)
    for kept, anew in zip(before, now):
        assert not torch.allclose(anew[1], kept[1])
    adapters.eval()
    torch.testing.assert_close(now, adapters(x, blocks))


def test_closing_keeps_nothing_that_adapters_said() -> None:
    """A class that is forgotten must not stay as numbers in a module."""
    adapters, x, blocks = _fixed()
    adapters(x, blocks)
    assert adapters._frozen is not None
    adapters.close()
    assert adapters._frozen is None


def test_inputs_that_train_get_their_gradient_through_frozen_tasks() -> None:
    adapters, x, blocks = _fixed()
    adapters(x, blocks)
    x = x.clone().requires_grad_(True)
    adapters(x, blocks)[0][0].sum().backward()
    assert x.grad is not None and x.grad[0].abs().sum() > 0
