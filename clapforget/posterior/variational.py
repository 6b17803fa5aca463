"""CLAP's amortised Gaussian posterior over the class weights, in closed form in logit space.

The posterior itself is in :mod:`clapforget.posterior.guided`: logits are Gaussian. Sampling logits
instead of weights leaves every image's marginal as it is (local reparameterisation, Kingma et al.
2015) and costs M·B·C normals instead of M·C·d. The definition is the Pyro model in
:mod:`clapforget.posterior.pyro_form`; a test holds the two equal.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from clapforget.errors import UserError
from clapforget.objectives import expected_cross_entropy
from clapforget.posterior.forgetting import PosteriorForgetting, forget_posterior, solve_adapters
from clapforget.posterior.guided import GuidedHead
from clapforget.posterior.head import HEADS, Change
from clapforget.posterior.predicting import predict
from clapforget.posterior.predictive import Predictive
from clapforget.posterior.previous import Previous
from clapforget.posterior.sample_forgetting import forget_samples_posterior
from clapforget.posterior.settings import ClapSettings
from clapforget.posterior.terms import divergence, regularisers
from clapforget.posterior.weights import ClassWeights, LogitNoise, Stage, TopLatent

__all__ = ["ClapSettings", "VariationalHead"]


@HEADS.register("variational")
class VariationalHead(GuidedHead):
    """CLAP's head: text features guided by images, and adapters that give their posterior.

    No class attends to a retired one; a retired class takes no part in later likelihoods.
    """

    previous: Previous | None

    def __init__(
        self, width: int, scale: float, settings: ClapSettings | None = None, seed: int = 0
    ) -> None:
        """:param seed: of the initial weights and of the predictive's fixed noise."""
        super().__init__(width, scale, settings, seed)
        self.previous = None

    # ---- training --------------------------------------------------------------------------
    def requires_grad_(self, requires_grad: bool = True) -> VariationalHead:
        """Ask for gradients or not; what is kept of the model before stays frozen."""
        super().requires_grad_(requires_grad)
        if self.previous is not None:
            self.previous.requires_grad_(False)
        return self

    def train_only(self, stage: Stage) -> None:
        """Ask for gradients of what a stage trains: attention and the newest adapter (and token) in
        stage 1, all adapters (and tokens) in stage 2; a global adapter in both."""
        self.requires_grad_(False)
        parts: list[nn.Module | None] = [self.top]
        if stage == "newest":
            parts += [self.attention]
            self.adapters.open_weight.requires_grad_(True)
            self.adapters.open_bias.requires_grad_(True)
            if self.tokens is not None:
                self.tokens.open_token.requires_grad_(True)
        else:
            self.close()
            parts += [self.adapters, self.tokens]
        for part in parts:
            if part is not None:
                part.requires_grad_(True)

    def train_stage(self, stage: Stage) -> None:
        """Training mode, without dropout in what the stage does not train."""
        self.train()
        if self.attention is not None:
            self.attention.train(stage == "newest")

    def close(self) -> None:
        """End the newest task's training."""
        self.adapters.close()
        if self.tokens is not None:
            self.tokens.close()

    def draw(self, v: Tensor, stage: Stage, generator: torch.Generator) -> LogitNoise:
        """Fresh noise for a stage's loss on the batch v [B, d]."""
        s = self.settings
        part = -int(-s.prior_context * len(v) // 1) if s.prior == "neural-process" else 0
        top = s.top_samples if s.hierarchical else 0
        read = len(self.task[self.mean_columns(stage)])
        return LogitNoise.draw(s.draws, v, len(self.labels), read, generator, top, part)

    def mean_columns(self, stage: Stage) -> Tensor | slice:
        """The columns whose samples' mean z̄ a term of a stage's loss reads."""
        every = self.settings.orthogonality_weight > 0
        return slice(None) if every else self.layout.terms[stage].kl_counting

    def loss(
        self, weights: ClassWeights, v: Tensor, y: Tensor, stage: Stage, noise: LogitNoise,
        top: TopLatent | None = None,
    ) -> Tensor:  # fmt: skip
        """CLAP's objective ``L_CE + L_KL + L_LASP + …`` on one batch, in closed form.

        :param weights: of all columns, guided by this batch. :param v: image features [B, d].
        :param y: columns of the true classes [B]. :param stage: whose KL and language term count.
        :param noise: see :meth:`draw`. :param top: the global latent, as :meth:`posterior` gave it.
        """
        near = weights.take(self.layout.terms[stage].kl_counting)
        mean, std = self._logits(weights, near, v, stage)
        mean = self.shifted(mean, v)
        logits = mean.unsqueeze(-3) + std.unsqueeze(-3) * noise.logits
        if len(self.layout.awake) < len(self.retired):
            logits = logits.masked_fill(self.retired, -torch.inf)
        logits = logits.flatten(0, -3)
        return (
            expected_cross_entropy(logits, y)
            + self.settings.kl_weight * divergence(self, weights, v, stage, noise.subset, top, near)
            + regularisers(self, weights, noise.mean_latent, v, stage, top, near)
        )

    def _logits(
        self, weights: ClassWeights, near: ClassWeights, v: Tensor, stage: Stage
    ) -> tuple[Tensor, Tensor]:
        """:meth:`logits`. Where only the newest task's columns, ``near``, have gradients (stage 1 without
        guidance) the others are worked out without a graph, so that no gradient of all columns is made.
        """
        rows = self.layout.terms[stage].kl_counting
        closed = (weights.x, self.adapters.weight, self.adapters.bias)
        if stage == "all" or isinstance(rows, Tensor) or any(part.requires_grad for part in closed):
            return self.logits(weights, v)
        still = ClassWeights(*(part.detach() for part in weights.take(slice(rows.start))))
        mean, std = (
            torch.cat(pair, -1) for pair in zip(self.logits(still, v), self.logits(near, v))
        )
        return mean, std

    def share(self, stage: Stage) -> Tensor:
        """Weight of each column in sums over classes, [C]; see
        :class:`~clapforget.posterior.layout.StageTerms`."""
        return self.layout.terms[stage].share

    def kl_share(self, stage: Stage) -> Tensor:
        """As :meth:`share`, with retired classes counting fully. [C]"""
        return self.layout.terms[stage].kl_share

    # ---- prediction ------------------------------------------------------------------------
    def predict(self, v: Tensor, batch_size: int = 1024) -> Predictive:
        """Posterior predictive of image features v [B, d] over all columns; see
        :mod:`clapforget.posterior.predicting`."""
        return predict(self, v, batch_size)

    # ---- forgetting ------------------------------------------------------------------------
    @torch.no_grad()
    def hold(self) -> ClassWeights | None:
        """The posterior of every column as it is now.

        :raises UserError: with a global latent. The task's adapter then reads a random input; no
            linear map of it gives one class exactly N(0, I) and leaves the others as they are.
        """
        if self.top is not None:
            raise UserError(
                "clap.hierarchical=true cannot forget: below a global latent no class can be put "
                "back to the prior exactly", "use clap.hierarchical=false for such a stream"
            )  # fmt: skip
        self.eval()  # no dropout in what is to be held
        self.close()
        return self.weights() if len(self.labels) else None

    def forget(
        self, change: Change, held: Any, settings: PosteriorForgetting, generator: torch.Generator
    ) -> dict[str, Any]:
        """Release the forgotten columns to the prior, hold the others, see
        :mod:`clapforget.posterior.forgetting`. What is kept of the model before goes too."""
        if held is None:
            return {}
        before = torch.cat([change.memory_before[:, 0], change.forget_before[:, 0]])
        after = torch.cat([change.memory_after[:, 0], change.forget_after[:, 0]])
        labels = torch.cat([change.memory_labels, change.forget_labels])
        losses = forget_posterior(
            self, change.labels, held, before, after, labels, settings, generator
        )
        if self.tokens is not None:
            awake = torch.bincount(self.task[~self.retired], minlength=self.tasks) > 0
            with torch.no_grad():
                self.tokens.token[~awake] = 0  # a task without a class has no use for its token
        self._remember()
        return dict(losses)

    keeps_of_samples = (
        "the attention and the other classes' posteriors, trained while the samples stood in their "
        "batches"
    )

    def forget_samples(
        self, change: Change, held: Any, settings: PosteriorForgetting, generator: torch.Generator
    ) -> dict[str, Any]:
        """Make the samples' classes again from the exemplars that are left, see
        :mod:`clapforget.posterior.sample_forgetting`. What is kept of the model before goes too."""
        if held is None:
            return {}
        losses = forget_samples_posterior(self, held, change, settings, generator)
        self._remember()
        return dict(losses)

    def settle(self) -> None:
        """Put the posterior of forgotten classes back to the prior, exactly, and hold the others:
        what shared attention learned since must not bring anything back."""
        self.eval()
        self.close()
        if self.retired.any():
            with torch.no_grad():
                solve_adapters(self, self.weights())
        self._remember()

    def _remember(self) -> None:
        """Keep the model as it is now for the next experience's prior or distillation."""
        s = self.settings
        wanted = s.prior == "previous" or s.distillation_weight > 0
        self.previous = Previous(self) if wanted else None

    # ---- saved state -----------------------------------------------------------------------
    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Load a state of any number of classes and tasks."""
        kept = any(name.startswith("previous.") for name in state_dict)
        self.previous = Previous(self) if kept else None
        for prefix, parts in (("", self), ("previous.", self.previous)):
            if parts is not None:
                sizes = (f"{prefix}adapters.weight", f"{prefix}adapters.open_weight")
                parts.adapters.resize(*(len(state_dict[name]) for name in sizes))
                if parts.tokens is not None and f"{prefix}tokens.token" in state_dict:
                    sizes = (f"{prefix}tokens.token", f"{prefix}tokens.open_token")
                    parts.tokens.resize(*(len(state_dict[name]) for name in sizes))
        if self.previous is not None:
            self.previous.requires_grad_(False)
        return super().load_state_dict(state_dict, strict, assign)
