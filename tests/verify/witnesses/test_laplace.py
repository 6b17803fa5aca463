"""The post-hoc posterior of a bare CLIP, and conformal sets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch.distributions import MultivariateNormal, kl_divergence

from clapforget.seeding import generator_for
from clapforget.verify.witnesses.posterior import (
    KroneckerLaplace,
    _root_of_inverse,
    conformal_threshold,
)


def drawn(
    rng: torch.Generator, n: int, d: int, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, KroneckerLaplace]:
    """n images, three class texts, the scale, and the posterior of these."""
    v, text = (torch.nn.functional.normalize(torch.randn(k, d, generator=rng), dim=1) for k in (n, 3))
    s = torch.tensor(scale)
    return v, text, s, KroneckerLaplace(v, text, s)


def test_the_laplace_posterior_is_that_of_the_dense_matrix() -> None:
    """Variances of the logits by draws, against s² (A⁻¹ ⊗ B⁻¹) written out."""
    rng = generator_for(0, 3)
    v, text, s, laplace = drawn(rng, 40, 5, 4.0)
    p = (s * v @ text.T).softmax(1)
    a = v.T @ v + s * torch.eye(5)
    b = s**2 * torch.stack([torch.diag(q) - torch.outer(q, q) for q in p]).mean(0) + s * torch.eye(
        3
    )
    covariance = torch.linalg.inv(torch.kron(b, a))  # of W, row by row
    x = torch.nn.functional.normalize(torch.randn(1, 5, generator=rng), dim=1)
    jacobian = s * torch.kron(torch.eye(3), x)
    expected = jacobian @ covariance @ jacobian.T
    noise = laplace.root @ laplace.root.T * s**2 * (x @ laplace.inner @ x.T)
    assert torch.allclose(noise, expected, rtol=1e-4)
    draws = laplace.draws(x, rng, 2000)
    assert draws.sum(-1) == pytest.approx(torch.ones(2000, 1).numpy(), abs=1e-5)


def test_a_direction_never_seen_is_less_certain() -> None:
    v = torch.nn.functional.normalize(
        torch.tensor([[1.0, 0.1, 0.0], [1.0, -0.1, 0.0]]).repeat(50, 1), dim=1
    )
    laplace = KroneckerLaplace(v, torch.eye(3), torch.tensor(5.0))
    spread = ((torch.eye(3) @ laplace.inner) * torch.eye(3)).sum(1)
    assert spread[2] > 5 * spread[0]


def test_a_laplace_posterior_that_rounding_leaves_no_cholesky_has_a_root_all_the_same() -> None:
    """At a temperature near 0 the Hessian's least eigenvalue is lost beside the largest one."""
    v, text = (torch.nn.functional.normalize(torch.randn(n, 8, generator=generator_for(n)), dim=1) for n in (40, 12))
    cold = KroneckerLaplace(v, text, torch.tensor(1e6))
    assert cold.root.isfinite().all()
    draws = cold.draws(v, generator_for(1), 4)
    assert draws.isfinite().all()
    b = torch.diag(torch.tensor([4.0, 1.0, 0.25]))
    indefinite = b - torch.diag(torch.tensor([0, 0, 0.25 + 1e-9]))
    torch.testing.assert_close(_root_of_inverse(b), torch.diag(torch.tensor([0.5, 1.0, 2.0])))
    root = _root_of_inverse(indefinite)
    assert (root @ root.T).diag()[:2] == pytest.approx([0.25, 1.0])
    assert root.isfinite().all()


def test_conformal_sets_cover_as_promised() -> None:
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(400):
        p = rng.beta(5, 2, 60)
        covered.append(1 - rng.beta(5, 2) <= conformal_threshold(p))
    low, high = stats.binomtest(sum(covered), 400).proportion_ci(0.999)
    assert low <= 0.93
    assert high >= 0.9
    assert conformal_threshold(np.array([0.9] * 5)) == 1.0  # too few for 10 %


def test_nats_of_the_laplace_posterior_by_class_are_those_of_two_gaussians() -> None:
    rng = generator_for(0, 6)
    _, _, s, laplace = drawn(rng, 30, 4, 3.0)
    inverse = laplace.root @ laplace.root.T
    prior = MultivariateNormal(torch.zeros(4), torch.eye(4) / s**2)
    for c, nats in enumerate(laplace.nats().tolist()):
        own = MultivariateNormal(torch.zeros(4), inverse[c, c] * laplace.inner)
        assert nats == pytest.approx(float(kl_divergence(own, prior)), rel=1e-4)
        assert nats > 0.1
