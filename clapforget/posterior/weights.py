"""A Gaussian posterior over class weights, and the noise its samples are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

__all__ = ["ClassWeights", "Gaussian", "LogitNoise", "Stage", "TopLatent"]

Stage = Literal["newest", "all"]
"""Whose KL and language term count: the newest task's (stage 1) or every task's (stage 2)."""


class Gaussian(NamedTuple):
    """Independent normals, by mean and standard deviation [..., C, d]."""

    mu: Tensor
    sigma: Tensor


class ClassWeights(NamedTuple):
    """The posterior over the class weights, ``N(x + μ, σ²)``: three tensors [C, d].

    Under a global latent they have a leading dimension, one entry a draw of it, and x holds that
    draw; where every image guides the classes alone, one entry an image comes next.
    """

    x: Tensor
    mu: Tensor
    sigma: Tensor

    def mean_logits(self, v: Tensor, scale: float | Tensor) -> Tensor:
        """Mean of the logits of image features v [B, d]: [..., B, C].

        :param scale: logit scale, one for all or by class [..., 1, C].
        """
        return _scaled(lambda u: u @ (self.x + self.mu).mT, v, scale)

    def std_logits(self, v: Tensor, scale: float | Tensor) -> Tensor:
        """Standard deviation of the logits of image features v [B, d]: [..., B, C]."""
        return _scaled(lambda u: (u.square() @ self.sigma.square().mT).sqrt(), v, scale)

    def take(self, rows: Tensor | slice) -> ClassWeights:
        """The posterior of some classes only."""
        return ClassWeights(*(part[..., rows, :] for part in self))


def _scaled(product: Callable[[Tensor], Tensor], v: Tensor, scale: float | Tensor) -> Tensor:
    """Logits of ``scale · v``; a scale by class stays outside the product."""
    return product(v) * scale if isinstance(scale, Tensor) else product(v * scale)


class TopLatent(NamedTuple):
    """The global latent ``z'`` of a hierarchical head: its posterior, and the draws in use."""

    x: Tensor
    """The guided texts above which it stands, [..., C, d]."""
    mu: Tensor
    sigma: Tensor
    draws: Tensor
    """[M_g, ..., C, d]"""


class LogitNoise(NamedTuple):
    """What is random in one loss."""

    logits: Tensor
    """Standard normals of the logits, [M, B, C]; with M_g draws of a global latent
    [M_g, M, B, C]."""
    mean_latent: Tensor
    """Noise of z̄, the samples' mean, of variance 1/M: [n, d] or [M_g, n, d], of the n columns that
    :meth:`~clapforget.posterior.VariationalHead.mean_columns` names."""
    subset: Tensor | None = None
    """Rows of the batch that guide a neural-process prior."""

    @classmethod
    def draw(
        cls, samples: int, v: Tensor, classes: int, read: int, generator: torch.Generator,
        top: int = 0, subset: int = 0,
    ) -> LogitNoise:  # fmt: skip
        """Fresh noise for a batch v [B, d].

        :param read: columns whose mean latent is read. :param top: draws M_g of a global latent, 0
            without one. :param subset: rows to choose.
        """

        def normal(*shape: int) -> Tensor:
            shape = (top, *shape) if top else shape
            place = generator.device
            return torch.randn(shape, generator=generator, device=place, dtype=v.dtype).to(v.device)

        logits = normal(samples, len(v), classes)
        mean = normal(read, v.shape[1]).div_(samples**0.5)
        rows = None
        if subset:
            order = torch.randperm(len(v), generator=generator, device=generator.device)
            rows = order[:subset].to(v.device)
        return cls(logits, mean, rows)

    @classmethod
    def from_latent(
        cls, eps: Tensor, v: Tensor, sigma: Tensor, read: Tensor | slice, subset: Tensor | None = None,
    ) -> LogitNoise:  # fmt: skip
        """The same noise as draws ``z = μ + σ ε`` in weight space would make.

        :param eps: [M, C, d], or [M_g, M, C, d] with sigma [M_g, C, d].
        :param read: columns whose mean latent is read.
        """
        norm = (v.square() @ sigma.square().mT).sqrt()
        logits = torch.einsum("bd,...mcd->...mbc", v, sigma.unsqueeze(-3) * eps)
        return cls(logits / norm.unsqueeze(-3), eps.mean(-3)[..., read, :], subset)
