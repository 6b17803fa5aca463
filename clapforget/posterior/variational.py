"""CLAP's amortised Gaussian posterior over the class weights, in closed form in logit space.

A class weight is ``w = x + z`` with ``x = t + a`` (text feature plus visual guidance) and
``z ~ q = N(μ(x), σ(x)²)`` from the class's task adapter. Logits ``s v·w`` are linear in z, so their
posterior is Gaussian: mean ``s v·(x + μ)``, standard deviation ``s √(v² · σ²)``. Sampling logits
instead of weights leaves every image's marginal as it is (local reparameterisation, Kingma et al.
2015) and costs M·B·C normals instead of M·C·d. The definition is the Pyro model in
:mod:`clapforget.posterior.pyro_form`; a test holds the two equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clapforget import uncertainty
from clapforget.adapter import StackedGaussianAdapters, VisualGuidedAttention
from clapforget.errors import UserError
from clapforget.objectives import expected_cross_entropy, kl_to_prior, language_aware
from clapforget.posterior.predictive import Predictive

__all__ = ["ClapSettings", "ClassWeights", "LogitNoise", "Stage", "VariationalHead"]

Stage = Literal["newest", "all"]
"""Whose KL and language term count: the newest task's (stage 1) or every task's (stage 2)."""


@dataclass(frozen=True)
class ClapSettings:
    """The head's own options; defaults are the released README configuration, but for
    ``context`` and ``predictive`` (released: ``batch``, ``mean-logit``)."""

    samples: int = 20
    """Monte Carlo samples M, in training and at test."""
    kl_weight: float = 1e-3
    """Weight of the KL term; each task's is averaged over its classes."""
    language_weight: float = 15.0
    """β, weight of the language-aware term (LASP)."""
    context: Literal["memory", "batch"] = "memory"
    """Which images guide the classes at test: the memory's exemplars, or the batch itself."""
    predictive: Literal["mean-softmax", "mean-logit"] = "mean-softmax"
    """Average the samples' probabilities (Bayesian), or their logits first (as released)."""
    heads: int = 1
    feedforward: int = 2048
    dropout: float = 0.1


class ClassWeights(NamedTuple):
    """The posterior over the class weights, ``N(x + μ, σ²)``: three tensors [C, d]."""

    x: Tensor
    mu: Tensor
    sigma: Tensor

    def mean_logits(self, v: Tensor, scale: float) -> Tensor:
        """Mean of the logits of image features v [B, d]: [B, C]."""
        return scale * v @ (self.x + self.mu).T

    def std_logits(self, v: Tensor, scale: float) -> Tensor:
        """Standard deviation of the logits of image features v [B, d]: [B, C]."""
        return scale * (v.square() @ self.sigma.square().T).sqrt()

    def take(self, rows: Tensor) -> ClassWeights:
        """The posterior of some classes only."""
        return ClassWeights(self.x[rows], self.mu[rows], self.sigma[rows])


class LogitNoise(NamedTuple):
    """Standard normal draws behind one loss: for the logits [M, B, C], for z̄ [C, d] with
    variance 1/M."""

    logits: Tensor
    mean_latent: Tensor

    @classmethod
    def draw(cls, samples: int, v: Tensor, classes: int, generator: torch.Generator) -> LogitNoise:
        """Fresh noise for a batch v [B, d]."""
        shape = (samples, len(v), classes)
        logits = torch.randn(shape, generator=generator, device=v.device, dtype=v.dtype)
        latent = (classes, v.shape[1])
        mean = torch.randn(latent, generator=generator, device=v.device, dtype=v.dtype)
        return cls(logits, mean / samples**0.5)

    @classmethod
    def from_latent(cls, eps: Tensor, v: Tensor, sigma: Tensor) -> LogitNoise:
        """The same noise as draws ``z = μ + σ ε`` in weight space would make, eps [M, C, d]."""
        norm = (v.square() @ sigma.square().T).sqrt()
        return cls(torch.einsum("bd,mcd->mbc", v, sigma * eps) / norm, eps.mean(0))


class VariationalHead(nn.Module):
    """Classes met so far, their text, the adapters that give their posterior, and its predictions.

    A class is a *column*. A forgotten class stays a column (so that predicting it would show) but
    is *retired*: it takes no part in later likelihoods, no other class attends to it, and its
    posterior is held at the prior.
    """

    templates: Tensor
    labels: Tensor
    task: Tensor
    retired: Tensor
    hidden: Tensor
    context: Tensor

    def __init__(
        self, width: int, scale: float, settings: ClapSettings | None = None, seed: int = 0
    ) -> None:
        """:param width: d of the joint space. :param scale: CLIP's frozen ``exp(logit_scale)``.
        :param seed: of the initial weights and of the predictive's fixed noise.
        """
        super().__init__()
        self.settings = settings or ClapSettings()
        self.scale = scale
        self.width = width
        self.seed = seed
        s = self.settings
        if s.heads < 1 or width % s.heads:
            raise UserError(
                f"setting clap.heads={s.heads} does not divide the model's width {width}",
                "choose a divisor",
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.attention = VisualGuidedAttention(width, s.heads, s.feedforward, s.dropout)
        self.adapters = StackedGaussianAdapters(width)
        self.register_buffer("templates", torch.zeros(0, 1, width))
        self.register_buffer("labels", torch.zeros(0, dtype=torch.long))
        self.register_buffer("task", torch.zeros(0, dtype=torch.long))
        self.register_buffer("retired", torch.zeros(0, dtype=torch.bool))
        self.register_buffer("hidden", torch.zeros(0, dtype=torch.bool))
        self.register_buffer("context", torch.zeros(0, width))

    # ---- classes ---------------------------------------------------------------------------
    @property
    def text(self) -> Tensor:
        """Class text features t [C, d]: mean of the template features, unit norm."""
        return F.normalize(self.templates.mean(1), dim=-1)

    def columns(self, labels: Sequence[int] | Tensor) -> Tensor:
        """Columns of class labels, [n]; every label must have one."""
        wanted = torch.as_tensor(labels, device=self.labels.device)
        match = wanted[:, None] == self.labels[None, :]
        assert match.any(1).all() if len(wanted) else True, "a label that the head has not met"
        return match.int().argmax(1) if len(wanted) else wanted.long()

    def grow(self, labels: Sequence[int], templates: Tensor) -> None:
        """Open a task for some classes. A class that was forgotten before joins the new task.

        :param labels: class labels. :param templates: their template features E [n, L, d].
        """
        known = torch.isin(self.labels, torch.as_tensor(labels, device=self.labels.device))
        kept = ~known
        n, device = len(labels), self.labels.device
        old = self.templates[kept] if len(self.labels) else templates[:0]
        self.templates = torch.cat([old, templates.to(old)])
        self.labels = torch.cat([self.labels[kept], torch.tensor(list(labels), device=device)])
        newest = torch.full((n,), self.adapters.tasks, device=device)
        self.task = torch.cat([self.task[kept], newest])
        awake = torch.zeros(n, dtype=torch.bool, device=device)
        self.retired = torch.cat([self.retired[kept], awake])
        self.hidden = torch.cat([self.hidden[kept], awake])
        generator = torch.Generator().manual_seed(self.seed * 1009 + self.adapters.tasks)
        self.adapters.open(self.templates[~self.retired], generator)

    def retire(self, labels: Sequence[int]) -> None:
        """Mark classes as forgotten."""
        self.retired = self.retired.clone()
        self.retired[self.columns(labels)] = True

    def hide(self, labels: Sequence[int]) -> None:
        """Never predict these classes, whatever the posterior says of them: what a forgetter that
        only pretends would do. Kept for the control of that name."""
        self.hidden = self.hidden.clone()
        self.hidden[self.columns(labels)] = True

    @property
    def group(self) -> Tensor:
        """Attention group of each class: its task, or itself alone once retired. [C]"""
        alone = self.adapters.tasks + torch.arange(len(self.task), device=self.task.device)
        return torch.where(self.retired, alone, self.task)

    # ---- posterior -------------------------------------------------------------------------
    def weights(self, context: Tensor | None = None) -> ClassWeights:
        """The posterior of every column, guided by image features (default: the memory's).

        :param context: [K, d], K > 0.
        """
        text = self.text
        x = text + self.attention(text, self.context if context is None else context, self.group)
        return ClassWeights(x, *self.adapters(x, self.task))

    def nats(self) -> Tensor:
        """KL of each class's posterior over the prior N(0, 1), in nats. [C]"""
        weights = self.weights()
        return kl_to_prior(weights.mu, weights.sigma)

    def share(self, stage: Stage) -> Tensor:
        """Weight of each column in sums over classes [C]: one over its task's size where the task
        counts in this stage, else zero. Retired classes have none."""
        counts = ~self.retired
        if stage == "newest":
            counts = counts & (self.task == self.adapters.tasks - 1)
        size = torch.bincount(self.task[~self.retired], minlength=self.adapters.tasks)
        return counts / size[self.task].clamp_min(1)

    def loss(
        self, weights: ClassWeights, v: Tensor, y: Tensor, stage: Stage, noise: LogitNoise
    ) -> Tensor:
        """CLAP's objective ``L_CE + L_KL + L_LASP`` on one batch, in closed form.

        :param weights: posterior of every column. :param v: image features [B, d].
        :param y: column of each image's class, [B]; never a retired one.
        :param noise: over all columns; see :class:`LogitNoise`.
        """
        s = self.settings
        logits = weights.mean_logits(v, self.scale)
        logits = logits + weights.std_logits(v, self.scale) * noise.logits
        likelihood = expected_cross_entropy(logits.masked_fill(self.retired, -torch.inf), y)
        divergence = (self.kl_share(stage) * kl_to_prior(weights.mu, weights.sigma)).sum()
        return (
            likelihood
            + s.kl_weight * divergence
            + self.language_term(weights, weights.mu + weights.sigma * noise.mean_latent, stage)
        )

    def kl_share(self, stage: Stage) -> Tensor:
        """As :meth:`share`, but a retired class counts fully in every stage: it is held at the
        prior while the others learn. [C]"""
        return self.share(stage) + self.retired

    def language_term(self, weights: ClassWeights, mean_latent: Tensor, stage: Stage) -> Tensor:
        """``β · L_LASP`` for the latent means z̄ [C, d]."""
        share = self.share(stage)
        term = language_aware(self.templates.mean(1), mean_latent, self.group, share)
        return self.settings.language_weight * term

    # ---- prediction ------------------------------------------------------------------------
    @torch.no_grad()
    def predict(self, v: Tensor, batch_size: int = 1024) -> Predictive:
        """Posterior predictive of image features v [B, d] over all columns.

        The Monte Carlo noise is one fixed draw [M, C] shared by all images, so with the memory
        as context an image's prediction depends on nothing but the image. With ``batch``, as
        released, each batch guides its own classes: then the split into batches matters.
        """
        was_training = self.training
        self.eval()
        weights = None if self.settings.context == "batch" else self.weights()
        parts = [
            self._predict(part, weights if weights is not None else self.weights(part))
            for part in v.split(batch_size)
        ]
        self.train(was_training)
        return Predictive.cat(parts)

    def _predict(self, v: Tensor, weights: ClassWeights) -> Predictive:
        generator = torch.Generator().manual_seed(self.seed)
        noise = torch.randn(self.settings.samples, 1, len(self.labels), generator=generator).to(v)
        mean = weights.mean_logits(v, self.scale).masked_fill(self.hidden, -torch.inf)
        samples = (mean + weights.std_logits(v, self.scale) * noise).softmax(-1)
        bayes = self.settings.predictive == "mean-softmax"
        return Predictive(
            probs=samples.mean(0) if bayes else mean.softmax(-1),
            entropy=uncertainty.predictive_entropy(samples),
            expected_entropy=uncertainty.expected_entropy(samples),
            mutual_information=uncertainty.mutual_information(samples),
            variance=uncertainty.variance(samples),
            energy=uncertainty.energy(mean),
        )

    # ---- saved state -----------------------------------------------------------------------
    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Load a state of any number of classes and tasks."""
        self.adapters.resize(
            len(state_dict["adapters.weight"]), len(state_dict["adapters.open_weight"])
        )
        for name in ("templates", "labels", "task", "retired", "hidden", "context"):
            setattr(self, name, state_dict[name].to(getattr(self, name)))
        return super().load_state_dict(state_dict, strict, assign)
