"""What CLAP says of its class weights: texts guided by images, and the adapters' Gaussians.

A class weight is ``w = x + z`` with ``x = t + a`` (text feature plus visual guidance) and
``z ~ q = N(μ(x), σ(x)²)`` from the class's task adapter. Logits ``s v·w`` are linear in z, so their
posterior is Gaussian: mean ``s v·(x + μ)``, standard deviation ``s √(v² · σ²)``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from clapforget.adapter import GaussianAdapter, StackedGaussianAdapters, TaskTokens
from clapforget.attention import VisualGuidedAttention
from clapforget.errors import UserError
from clapforget.objectives import kl_to_prior
from clapforget.posterior.guidance import ask, guide
from clapforget.posterior.head import Head
from clapforget.posterior.layout import Layout
from clapforget.posterior.settings import ClapSettings
from clapforget.posterior.weights import ClassWeights, Gaussian, TopLatent
from clapforget.seeding import generator_for
from clapforget.unchanged import Seen

__all__ = ["GuidedHead"]

_CONTEXT = 512  # exemplars that guide the classes at prediction, at most


class GuidedHead(Head):
    """The posterior half of :class:`~clapforget.posterior.VariationalHead`.

    No class attends to a retired one.
    """

    Settings = ClapSettings
    settings_group = "clap"
    settings: ClapSettings
    context: Tensor
    attention: VisualGuidedAttention | None
    tokens: TaskTokens | None
    top: GaussianAdapter | None

    def __init__(
        self, width: int, scale: float, settings: ClapSettings | None = None, seed: int = 0
    ) -> None:
        """:param seed: of the initial weights and of the predictive's fixed noise."""
        super().__init__(width, scale, settings, seed)
        s = self.settings
        if width % s.heads:
            raise UserError(
                f"setting clap.heads={s.heads} does not divide the model's width {width}",
                "choose a divisor",
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            guided = VisualGuidedAttention(
                width, s.heads, s.feedforward, s.dropout, s.precision == "bfloat16"
            )
            self.attention = guided if s.guidance == "attention" else None
            self.top = GaussianAdapter(width) if s.hierarchical else None
        self.adapters = StackedGaussianAdapters(width)
        self.tokens = TaskTokens(width) if s.tokens else None
        self.register_buffer("context", torch.zeros(0, width))
        self._layout: tuple[int, Seen, Layout] | None = None
        self._texts: tuple[Seen, Tensor, Tensor] | None = None

    # ---- classes ---------------------------------------------------------------------------
    @property
    def tasks(self) -> int:
        return self.adapters.tasks

    @property
    def layout(self) -> Layout:
        """What tasks and retired classes imply; worked out anew when they change."""
        known = self._layout
        if known is None or known[0] != self.tasks or not known[1].same(self.task, self.retired):
            s = self.settings
            mean = s.over_tasks == "mean"
            layout = Layout.of(self.task, self.retired, self.tasks, s.tokens, mean)
            self._layout = known = self.tasks, Seen(self.task, self.retired), layout
        return known[2]

    @property
    def text(self) -> Tensor:
        return self.worded(self._mean_texts()[1])

    @property
    def mean_text(self) -> Tensor:
        """Ē, mean of the template features, not normalised, [C, d]."""
        return self._mean_texts()[0]

    def _mean_texts(self) -> tuple[Tensor, Tensor]:
        """Worked out anew when the templates change."""
        known = self._texts
        if known is None or not known[0].same(self.templates):
            mean = self.templates.mean(1)
            self._texts = known = Seen(self.templates), mean, F.normalize(mean, dim=-1)
        return known[1:]

    def grow(self, labels: Sequence[int], templates: Tensor) -> None:
        """Open a task and its adapter; see :meth:`Head.grow`."""
        super().grow(labels, templates)
        seed = self.seed * 1009 + self.adapters.tasks
        self.adapters.open(self.templates[~self.retired], torch.Generator().manual_seed(seed))
        if self.tokens is not None:
            self.tokens.open(generator_for(seed, 1))

    def guide(self, features: Tensor) -> None:
        """Let these image features [K, d] guide the classes at prediction.

        At most 512 of them, drawn with the head's seed; the class texts where there are none.
        """
        if not len(features):
            features = self.text
        if len(features) > _CONTEXT:
            rows = torch.randperm(len(features), generator=generator_for(self.seed, 5))[:_CONTEXT]
            features = features[rows.sort().values.to(features.device)]
        self.context = features.detach().clone()

    # ---- posterior -------------------------------------------------------------------------
    def inputs(self, context: Tensor | None = None, asked: Tensor | None = None) -> Tensor:
        """What the adapters read, ``x = t + a``, of every column: [..., C, d].

        :param context: image features [..., K, d], K > 0; default: the memory's.
        :param asked: what :func:`~clapforget.posterior.guidance.ask` gave, where it is at hand.
        """
        text, layout = self.text, self.layout
        asked = ask(self, text, layout) if asked is None else asked
        context = self.context if context is None else context
        return guide(self, asked, text, context, layout, self.settings.normalise == "guidance")

    def latent(self, x: Tensor) -> Gaussian:
        """``q(z | x)`` of every column, [..., C, d] each; a point latent has σ = 0."""
        mu, sigma = self.adapters(x, self.layout.blocks)
        return Gaussian(mu, torch.zeros_like(mu) if self.settings.latent == "point" else sigma)

    def posterior(
        self, x: Tensor, noise: Tensor | None = None
    ) -> tuple[ClassWeights, TopLatent | None]:
        """The posterior of every column, given :meth:`inputs`, and the global latent if there is one.

        :param noise: standard normals [M_g, C, d] of its draws; default: the fixed ones.
        """
        top = None
        if self.top is not None:
            mu, sigma = self.top(x)
            noise = self.top_noise(generator_for(self.seed, 7)) if noise is None else noise
            assert noise is not None
            shape = (len(noise), *[1] * (x.ndim - 2), *noise.shape[1:])
            draws = mu + sigma * noise.reshape(shape).to(x)
            top = TopLatent(x, mu, sigma, draws)
            x = x + draws
        return ClassWeights(x, *self.latent(x)), top

    def top_noise(self, generator: torch.Generator) -> Tensor | None:
        """Fresh normals behind the draws of the global latent, [M_g, C, d]; None without one."""
        if self.top is None:
            return None
        shape = (self.settings.top_samples, len(self.labels), self.width)
        return torch.randn(shape, generator=generator, device=generator.device)

    def weights(self, context: Tensor | None = None) -> ClassWeights:
        """The posterior of every column, guided by image features [K, d] (default: the memory's)."""
        return self.posterior(self.inputs(context))[0]

    def logit_scale(self, weights: ClassWeights) -> float | Tensor:
        """The factor between ``v·(x + z)`` and the logits: s, or ``s / ‖x + μ‖`` [..., 1, C] where
        the weights are normalised."""
        if self.settings.normalise != "weights":
            return self.scale
        return self.scale / (weights.x + weights.mu).norm(dim=-1).unsqueeze(-2)

    def logits(self, weights: ClassWeights, v: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the logits of image features v [B, d], [..., B, C] each."""
        scale = self.logit_scale(weights)
        return weights.mean_logits(v, scale), weights.std_logits(v, scale)

    @torch.no_grad()
    def nats(self) -> Tensor:
        """KL of each class's posterior over the prior N(0, I), in nats, [C].

        For a point, that of ``N(μ, I)``: half its squared distance from the prior's mean. Under a
        global latent, both levels', the lower one's mean over the draws.
        """
        weights, top = self.posterior(self.inputs())
        sigma = torch.ones_like(weights.sigma) if self.settings.latent == "point" else weights.sigma
        nats = kl_to_prior(weights.mu, sigma)
        return nats if top is None else nats.mean(0) + kl_to_prior(top.mu, top.sigma)
