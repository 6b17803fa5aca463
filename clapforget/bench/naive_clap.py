"""CLAP's training step with the arithmetic and the loops of its released program: what the fast
path is measured against, and (a test) equal to under shared noise.

As there: one ``TransformerDecoder`` layer with a mask written class by class in every forward, one
pair of linear layers a task, a Python loop over tasks, ``Normal`` with its argument checks, every
weight sampled, LASP in a loop over samples, no flushing of denormal numbers. Only what an
evaluation needs is left out (image encoder, logging).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from clapforget.posterior.variational import VariationalHead
from clapforget.posterior.weights import Stage

__all__ = ["NaiveClap"]


class NaiveClap(nn.Module):
    """A head's parameters in modules of their own, for a head without retired classes and with
    columns in the order of tasks."""

    def __init__(self, head: VariationalHead) -> None:
        """:param head: whose parameters are copied."""
        super().__init__()
        s, d = head.settings, head.width
        self.vga: nn.TransformerDecoder | None = None
        if head.attention is not None:
            layer = nn.TransformerDecoderLayer(
                d, s.heads, s.feedforward, s.dropout, activation="gelu", batch_first=True
            )
            self.vga = nn.TransformerDecoder(layer, 1)
            self.vga.layers[0].load_state_dict(head.attention.layer.state_dict())
        self.mu_adapters, self.sigma_adapters = nn.ModuleList(), nn.ModuleList()
        adapters = head.adapters
        weights = torch.cat([adapters.weight, adapters.open_weight])
        biases = torch.cat([adapters.bias, adapters.open_bias])
        for weight, bias in zip(weights, biases, strict=True):
            for where, rows in (
                (self.mu_adapters, slice(d)),
                (self.sigma_adapters, slice(d, None)),
            ):
                linear = nn.Linear(d, d)
                linear.load_state_dict({"weight": weight[rows], "bias": bias[rows]})
                where.append(linear)
        self.sizes = torch.bincount(head.task).tolist()
        self.text, self.templates = head.text.detach(), head.templates
        self.scale, self.samples = head.scale, s.samples
        self.kl_weight, self.language_weight = s.kl_weight, s.language_weight
        self.to(head.templates)

    def train_only(self, stage: Stage) -> None:
        """Gradients for what a stage trains, as released."""
        if self.vga is not None:
            self.vga.requires_grad_(stage == "newest").train(stage == "newest")
        for adapters in (self.mu_adapters, self.sigma_adapters):
            for t, adapter in enumerate(adapters):
                adapter.requires_grad_(stage == "all" or t == len(self.sizes) - 1)

    def mask(self) -> Tensor:
        """True where a class must not look, [C, C], written class by class."""
        mask = torch.zeros(
            len(self.text), len(self.text), dtype=torch.bool, device=self.text.device
        )
        end = 0
        for size in self.sizes:
            start, end = end, end + size
            for c in range(start, end):
                mask[c][:start] = True
                mask[c][end:] = True
        return mask

    def guidance(self, v: Tensor) -> Tensor:
        """Attention's output for a batch v [B, d]: [C, d]; zeros without attention."""
        if self.vga is None:
            return torch.zeros_like(self.text)
        return self.vga(self.text[None], v[None], tgt_mask=self.mask()).squeeze(0)

    def loss(
        self, v: Tensor, y: Tensor, stage: Stage, guidance: Tensor | None = None, eps: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """The whole loss of a batch.

        :param guidance: [C, d], to leave attention out. :param eps: noise [M, C, d], to share it.
        """
        a = self.guidance(v) if guidance is None else guidance
        logits, extra, end = [], [], 0
        for i, size in enumerate(self.sizes):
            start, end = end, end + size
            x = self.text[start:end].clone() + a[start:end]
            sigma = F.softplus(self.sigma_adapters[i](x)) * 0.999 + 0.001
            q = Normal(self.mu_adapters[i](x), sigma)
            if eps is None:
                z = q.rsample([self.samples])
            else:
                z = q.loc + q.scale * eps[:, start:end]
            w = z + x.unsqueeze(0).expand(self.samples, -1, -1)
            logits.append(self.scale * v @ w.permute(0, 2, 1))
            if stage == "all" or i == len(self.sizes) - 1:
                text = self.templates[start:end].clone()
                sims = torch.stack([text @ z[m].t() for m in range(len(z))], 0).mean(2).mean(0)
                target = torch.arange(size, device=sims.device)
                extra.append(F.cross_entropy(sims, target) * self.language_weight)
                prior = Normal(torch.zeros_like(x), torch.ones_like(x))
                extra.append(kl_divergence(q, prior).mean(0).sum() * self.kl_weight)
        every = torch.cat(logits, -1)
        target = y.unsqueeze(0).expand(len(every), -1).contiguous().view(-1)
        return F.cross_entropy(every.view(-1, every.shape[-1]), target) + sum(extra)
