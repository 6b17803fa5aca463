"""Three forms of one objective: the closed form, the Pyro model, and CLAP's loops as written."""

from __future__ import annotations

import numpy as np
import pyro
import pytest
import scipy.special
import scipy.stats
import torch
import torch.nn.functional as F
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from clapforget.posterior import ClassWeights, LogitNoise, VariationalHead
from clapforget.posterior.pyro_form import elbo_loss
from clapforget.posterior.terms import language_term
from tests.posterior.by_hand import decoder_by_hand

CASES = [
    pytest.param((4,), (), id="one task"),
    pytest.param((3, 1, 4), (), id="unequal tasks"),
    pytest.param((3, 1, 4), (0, 5), id="some retired"),
    pytest.param((3, 1, 4), (3,), id="a whole task retired"),
    pytest.param((2, 3), (2, 3, 4), id="the newest task retired"),
]
STAGES = ["newest", "all"]


def naive_weights(head: VariationalHead) -> tuple[Tensor, Tensor, Tensor]:
    """x, μ, σ [C, d], one class group and one adapter after the other."""
    classes, d = len(head.labels), head.width
    text = torch.stack([head.templates[c].mean(0) for c in range(classes)])
    text = text / text.norm(dim=1, keepdim=True)
    alone = [[c] for c in range(classes) if head.retired[c]]
    together = [
        [c for c in range(classes) if head.task[c] == t and not head.retired[c]]
        for t in range(head.adapters.tasks)
    ]
    x: list[Tensor] = [text[0]] * classes
    for group in alone + together:
        if group:
            guided = decoder_by_hand(head.attention.layer, text[group], head.context)
            for c, a in zip(group, guided, strict=True):
                x[c] = text[c] + a
    weight = torch.cat([head.adapters.weight, head.adapters.open_weight])
    bias = torch.cat([head.adapters.bias, head.adapters.open_bias])
    mu, sigma = [], []
    for c in range(classes):
        t = head.task[c]
        mu.append(weight[t, :d] @ x[c] + bias[t, :d])
        sigma.append(0.999 * F.softplus(weight[t, d:] @ x[c] + bias[t, d:]) + 0.001)
    return torch.stack(x), torch.stack(mu), torch.stack(sigma)


def naive_loss(
    head: VariationalHead, v: Tensor, y: Tensor, stage: str, eps: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """L_CE, L_KL and L_LASP with every loop written out, z sampled in weight space."""
    x, mu, sigma = naive_weights(head)
    samples, classes = len(eps), len(x)
    awake = [c for c in range(classes) if not head.retired[c]]
    newest = head.adapters.tasks - 1
    cross_entropy = v.new_zeros(())
    for m in range(samples):
        w = x + mu + sigma * eps[m]
        for b in range(len(v)):
            logits = torch.stack([head.scale * v[b] @ w[c] for c in awake])
            cross_entropy = cross_entropy - logits.log_softmax(0)[awake.index(int(y[b]))]
    divergence = language = v.new_zeros(())
    prior = Normal(torch.zeros_like(mu), torch.ones_like(sigma))
    kl = kl_divergence(Normal(mu, sigma), prior).sum(1)
    for t in [newest] if stage == "newest" else range(newest + 1):
        own = [c for c in awake if head.task[c] == t]
        for row, c in enumerate(own):
            divergence = divergence + kl[c] / len(own)
            s = v.new_zeros(len(own))
            for m in range(samples):
                z = mu + sigma * eps[m]
                for template in head.templates[c]:
                    s = s + torch.stack([template @ z[o] for o in own])
            s = s / (samples * head.templates.shape[1])
            language = language - s.log_softmax(0)[row] / len(own)
    for c in range(classes):  # a forgotten class is held at the prior in every stage
        if head.retired[c]:
            divergence = divergence + kl[c]
    s = head.settings
    return (
        cross_entropy / (samples * len(v)), s.kl_weight * divergence, s.language_weight * language,
    )  # fmt: skip


class Recorder(Messenger):
    """Keeps the first value of every sampled site: the guide's z."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, Tensor] = {}

    def _pyro_post_sample(self, msg: dict) -> None:
        self.seen.setdefault(msg["name"], msg["value"])


def batch(head: VariationalHead, features) -> tuple[Tensor, Tensor]:
    awake = (~head.retired).nonzero().flatten()
    return features(7), awake[torch.arange(7) % len(awake)]


@pytest.mark.parametrize(("sizes", "retired"), CASES)
def test_weights_are_those_of_the_loop(make, sizes, retired) -> None:
    head = make(sizes, retired)
    for ours, naive in zip(head.weights(), naive_weights(head), strict=True):
        torch.testing.assert_close(ours, naive)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("sizes", "retired"), CASES)
def test_the_closed_form_is_the_loop_in_weight_space(make, features, sizes, retired, stage) -> None:
    head = make(sizes, retired)
    v, y = batch(head, features)
    eps = torch.randn(6, sum(sizes), head.width, dtype=torch.double)
    wanted = sum(naive_loss(head, v, y, stage, eps))
    weights = head.weights()
    loss = head.loss(weights, v, y, stage, LogitNoise.from_latent(eps, v, weights.sigma, head.mean_columns(stage)))
    torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=1e-7)
    parameters = [p for p in head.parameters() if p.numel()]
    ours = torch.autograd.grad(loss, parameters, allow_unused=True)
    naive = torch.autograd.grad(wanted, parameters, allow_unused=True)
    for left, right, parameter in zip(ours, naive, parameters, strict=True):
        zero = torch.zeros_like(parameter)
        torch.testing.assert_close(
            zero if left is None else left, zero if right is None else right, rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize(("sizes", "retired"), CASES)
def test_columns_that_stand_still_change_nothing_without_a_graph(
    make, features, sizes, retired
) -> None:
    """Stage 1 without guidance: the same loss and gradients as with a graph of all columns."""
    head = make(sizes, retired, guidance="none")
    v, y = batch(head, features)
    noise = head.draw(v, "newest", torch.Generator().manual_seed(3))
    found = []
    for whole in (True, False):
        head.requires_grad_(True)
        if not whole:
            head.train_only("newest")
        loss = head.loss(head.weights(), v, y, "newest", noise)
        newest = (head.adapters.open_weight, head.adapters.open_bias)
        found.append((loss, *torch.autograd.grad(loss, newest)))
    assert found[0][1].abs().max() > 1e-6
    for left, right in zip(*found, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("sizes", "retired"), CASES)
def test_the_closed_form_is_the_pyro_elbo(make, features, sizes, retired, stage) -> None:
    head = make(sizes, retired)
    v, y = batch(head, features)
    weights = head.weights()
    torch.manual_seed(0)
    with pyro.validation_enabled(True), Recorder() as recorder:
        elbo = elbo_loss(head, head.inputs(), v, y, stage)
    z = recorder.seen["z"].reshape(6, sum(sizes), head.width)
    eps = (z - weights.mu) / weights.sigma
    assert eps.std() > 0.5, "no noise was drawn"
    loss = head.loss(weights, v, y, stage, LogitNoise.from_latent(eps, v, weights.sigma, head.mean_columns(stage)))
    without_language = loss - language_term(
        head, z.mean(0)[head.layout.terms[stage].counting], stage
    )
    torch.testing.assert_close(without_language, elbo, rtol=1e-6, atol=1e-7)
    wanted = sum(naive_loss(head, v, y, stage, eps)[:2]).item()
    assert elbo.item() == pytest.approx(wanted, rel=1e-6)
    chosen = [head.adapters.open_weight, head.attention.layer.linear1.weight]
    left = torch.autograd.grad(without_language, chosen, retain_graph=True)
    right = torch.autograd.grad(elbo, chosen)
    for ours, theirs in zip(left, right, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


def test_single_precision_is_close_enough(make, features) -> None:
    head = make((3, 1, 4), (0,))
    v, y = batch(head, features)
    eps = torch.randn(6, 8, head.width, dtype=torch.double)
    wanted = sum(naive_loss(head, v, y, "all", eps)).item()
    head.float()
    weights = head.weights()
    noise = LogitNoise.from_latent(eps.float(), v.float(), weights.sigma, slice(None))
    loss = head.loss(weights, v.float(), y, "all", noise)
    assert loss.item() == pytest.approx(wanted, rel=1e-4)


def test_local_noise_has_the_marginals_of_weight_noise(make, features) -> None:
    head, v = make((3, 2)), features(4)
    weights = ClassWeights(*(part.detach() for part in head.weights()))
    z = weights.mu + weights.sigma * torch.randn(40_000, 5, head.width, dtype=torch.double)
    logits = head.scale * torch.einsum("bd,mcd->mbc", v, weights.x + z)
    mean, std = weights.mean_logits(v, head.scale), weights.std_logits(v, head.scale)
    error = std / 40_000**0.5
    assert ((logits.mean(0) - mean).abs() < 5 * error).all()
    torch.testing.assert_close(logits.std(0), std, rtol=0.02, atol=0)
    for b, c in ((0, 0), (3, 4)):
        test = scipy.stats.kstest(logits[:, b, c], "norm", args=(mean[b, c], std[b, c]))
        assert test.pvalue > 1e-4


def test_drawn_noise_is_standard_and_its_mean_latent_shrinks_with_samples(features) -> None:
    v, rng = features(50), torch.Generator().manual_seed(0)
    noise = LogitNoise.draw(16, v, 40, 30, rng)
    assert noise.logits.shape == (16, 50, 40) and noise.mean_latent.shape == (30, 16)
    assert noise.logits.std().item() == pytest.approx(1, abs=0.02)
    assert noise.mean_latent.std().item() == pytest.approx(1 / 4, abs=0.03)
    again = LogitNoise.draw(16, v, 40, 30, torch.Generator().manual_seed(0))
    assert torch.equal(noise.logits, again.logits)


def test_noise_from_latents_is_standard_too(make, features) -> None:
    sigma = make((3, 2)).weights().sigma.detach()
    eps = torch.randn(30_000, 5, 16, dtype=torch.double)
    noise = LogitNoise.from_latent(eps, features(3), sigma, slice(None))
    torch.testing.assert_close(
        noise.logits.std(0), torch.ones(3, 5, dtype=torch.double), rtol=0.03, atol=0
    )
    torch.testing.assert_close(noise.mean_latent, eps.mean(0))


def test_without_noise_the_likelihood_is_scipys_at_the_mean(make, features) -> None:
    head = make((3, 2), kl_weight=0.0, language_weight=0.0)
    v, y = batch(head, features)
    weights = head.weights()
    still = LogitNoise(torch.zeros(1, 7, 5).double(), torch.zeros(2, 16).double())
    x, mu, _ = (part.detach().numpy() for part in weights)
    log_p = scipy.special.log_softmax(head.scale * v.numpy() @ (x + mu).T, axis=1)
    wanted = -np.mean([log_p[b, y[b]] for b in range(7)])
    assert head.loss(weights, v, y, "newest", still).item() == pytest.approx(wanted)


def test_nats_are_torchs_divergence_to_the_prior(make) -> None:
    head = make((3, 2))
    _, mu, sigma = head.weights()
    wanted = kl_divergence(Normal(mu, sigma), Normal(torch.zeros_like(mu), 1.0)).sum(1)
    torch.testing.assert_close(head.nats(), wanted)


@pytest.mark.parametrize(("sizes", "retired"), CASES)
def test_shares_give_every_counting_task_the_same_weight(make, sizes, retired) -> None:
    head = make(sizes, retired)
    for stage, tasks in (("newest", [len(sizes) - 1]), ("all", range(len(sizes)))):
        share = head.share(stage)
        assert not share[head.retired].any()
        for t in range(len(sizes)):
            alive = bool((~head.retired[head.task == t]).any())
            total = share[head.task == t].sum().item()
            assert total == pytest.approx(1.0 if t in tasks and alive else 0.0)
        assert torch.equal(head.kl_share(stage)[head.retired], torch.ones(len(retired)))


def test_each_stage_reaches_exactly_what_it_trains(make, features) -> None:
    trained = {
        "newest": {"adapters.open_weight", "adapters.open_bias", "tokens.open_token"},
        "all": {"adapters.weight", "adapters.bias", "tokens.token"},
    }
    for options in ({}, {"tokens": True, "hierarchical": True, "top_samples": 2}):
        head = make((3, 1, 4), **options)
        for stage in STAGES:
            head.train_only(stage)
            v, y = batch(head, features)
            rng = torch.Generator().manual_seed(0)
            weights, top = head.posterior(head.inputs(v), head.top_noise(rng))
            head.loss(weights, v, y, stage, head.draw(v, stage, rng), top).backward()
            reached = {
                name for name, p in head.named_parameters() if p.grad is not None and p.grad.any()
            }
            wanted = trained[stage] if options else trained[stage] - {"tokens.open_token", "tokens.token"}  # fmt: skip
            if options:
                wanted = wanted | {"top.linear.weight", "top.linear.bias"}
            if stage == "newest":
                attention = {name for name, _ in head.named_parameters() if name.startswith("attention.")}  # fmt: skip
                assert len(attention) == 18
                wanted = wanted | attention
            assert reached == wanted, (stage, options)
            assert {
                n for n, p in head.named_parameters() if p.requires_grad and p.numel()
            } == wanted
            for parameter in head.parameters():
                parameter.grad = None


def test_kl_of_the_newest_stage_leaves_older_adapters_alone(make, features) -> None:
    head = make((3, 1, 4), language_weight=0.0, kl_weight=1.0)
    v, y = batch(head, features)
    gradients = {}
    for stage, read in (("newest", 4), ("all", 8)):
        still = LogitNoise(torch.zeros(1, 7, 8).double(), torch.zeros(read, 16).double())
        for weight in (1.0, 0.0):
            object.__setattr__(head.settings, "kl_weight", weight)
            loss = head.loss(head.weights(), v, y, stage, still)
            gradients[stage, weight] = torch.autograd.grad(loss, head.adapters.weight)[0]
    torch.testing.assert_close(gradients["newest", 1.0], gradients["newest", 0.0])
    assert (gradients["all", 1.0] - gradients["all", 0.0]).abs().amax((1, 2)).min() > 1e-6


def test_a_retired_class_gets_its_gradient_from_the_prior_alone(make, features) -> None:
    head = make((3, 2), (1,))
    v, y = batch(head, features)
    weights = ClassWeights(*(p.detach().requires_grad_() for p in head.weights()))
    noise = head.draw(v, "all", torch.Generator())
    loss = head.loss(weights, v, y, "all", noise)
    mu, sigma = torch.autograd.grad(loss, [weights.mu, weights.sigma])
    torch.testing.assert_close(mu[1], head.settings.kl_weight * weights.mu[1])
    wanted = head.settings.kl_weight * (weights.sigma[1] - 1 / weights.sigma[1])
    torch.testing.assert_close(sigma[1], wanted)
