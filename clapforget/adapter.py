"""Visual-guided attention, and the Gaussian adapters of all tasks as one stacked module.

Both follow CLAP (Jha et al., "CLAP4CLIP: Continual Learning with Probabilistic Finetuning for
Vision-Language Models", NeurIPS 2024) as its released program runs.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["StackedGaussianAdapters", "VisualGuidedAttention", "block_mask"]


def block_mask(group: Tensor) -> Tensor:
    """Attention mask [C, C], True where class i must not look at class j.

    :param group: group id of each class, [C]; a class sees only classes of its own group.
    """
    return group[:, None] != group[None, :]


class VisualGuidedAttention(nn.Module):
    """One post-norm transformer decoder layer, shared by all tasks.

    Class text features ask (self-attention inside the task), images answer (cross-attention).
    Feed-forward width 2048, GELU, dropout 0.1, one head; the closing layer norm makes the guidance
    about √d long where the text feature has length one. That is the released scale, kept.
    """

    def __init__(
        self, width: int, heads: int = 1, feedforward: int = 2048, dropout: float = 0.1
    ) -> None:
        """:param width: d of the joint space."""
        super().__init__()
        self.layer = nn.TransformerDecoderLayer(
            width, heads, feedforward, dropout, activation="gelu", batch_first=True
        )

    def forward(self, text: Tensor, context: Tensor, group: Tensor) -> Tensor:
        """Guidance a [C, d].

        :param text: class text features t [C, d]. :param context: image features [K, d].
        :param group: attention group of each class [C].
        """
        return self.layer(text[None], context[None], tgt_mask=block_mask(group))[0]


class StackedGaussianAdapters(nn.Module):
    """One linear Gaussian adapter a task: ``μ = W_μ x + b_μ``, ``σ = 0.999 softplus(W_σ x + b_σ) + 0.001``.

    The closed tasks' weights are one tensor [T, 2d, d], so all tasks run as one batched product.
    The task in training is kept apart while it is open, so that its gradient (and the optimiser's
    work) does not grow with the number of tasks.
    """

    def __init__(self, width: int) -> None:
        """:param width: d of the joint space."""
        super().__init__()
        self.width = width
        self.weight = nn.Parameter(torch.zeros(0, 2 * width, width))
        self.bias = nn.Parameter(torch.zeros(0, 2 * width))
        self.open_weight = nn.Parameter(torch.zeros(0, 2 * width, width))
        self.open_bias = nn.Parameter(torch.zeros(0, 2 * width))

    @property
    def tasks(self) -> int:
        """Number of adapters, the open one included."""
        return len(self.weight) + len(self.open_weight)

    def open(self, templates: Tensor, generator: torch.Generator) -> None:
        """Add the newest task's adapter (CLAP Eqs. 9-10, as released).

        ``W_μ = SᵀS / d`` with S the mean over templates of the text features, ``W_σ`` likewise from
        their variance; biases uniform in ±1/√d. One template has no variance: then ``W_σ = 0``.

        :param templates: template features E of the classes seen so far, [C, L, d].
        """
        self.close()
        mean = templates.mean(1)
        several = templates.shape[1] > 1
        spread = templates.var(1) if several else torch.zeros_like(mean)
        weight = torch.cat([mean.T @ mean, spread.T @ spread]) / self.width
        bound = 1 / math.sqrt(self.width)
        noise = torch.rand(2 * self.width, generator=generator).to(weight)
        self.open_weight = nn.Parameter(weight.detach().clone()[None])
        self.open_bias = nn.Parameter(((2 * noise - 1) * bound)[None])

    def close(self) -> None:
        """Put the open task's adapter with the others."""
        if len(self.open_weight):
            self.weight = nn.Parameter(torch.cat([self.weight, self.open_weight]).detach())
            self.bias = nn.Parameter(torch.cat([self.bias, self.open_bias]).detach())
            self.open_weight = nn.Parameter(self.open_weight[:0].detach().clone())
            self.open_bias = nn.Parameter(self.open_bias[:0].detach().clone())

    def resize(self, closed: int, opened: int) -> None:
        """Make room for a saved state of ``closed`` closed and ``opened`` (0 or 1) open tasks."""
        d = self.width
        for name, tasks in (("", closed), ("open_", opened)):
            weight = torch.zeros(
                tasks, 2 * d, d, device=self.weight.device, dtype=self.weight.dtype
            )
            setattr(self, f"{name}weight", nn.Parameter(weight))
            setattr(self, f"{name}bias", nn.Parameter(weight[:, :, 0].clone()))

    def forward(self, x: Tensor, task: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each class's latent, [C, d] each.

        :param x: adapter inputs [C, d]. :param task: adapter of each class [C].
        """
        place, size = _places(task, self.tasks)
        padded = x.new_zeros(self.tasks, size, self.width)
        padded = padded.index_put((task, place), x)
        closed = torch.baddbmm(self.bias[:, None], padded[: len(self.weight)], self.weight.mT)
        opened = torch.baddbmm(
            self.open_bias[:, None], padded[len(self.weight) :], self.open_weight.mT
        )
        out = torch.cat([closed, opened])[task, place]
        mu, raw = out.chunk(2, dim=-1)
        return mu, 0.999 * F.softplus(raw) + 0.001


def _places(task: Tensor, tasks: int) -> tuple[Tensor, int]:
    """Position of each class inside its task [C], and the size of the largest task."""
    hot = F.one_hot(task, tasks)
    place = (hot.cumsum(0) - 1).gather(1, task[:, None])[:, 0]
    return place, int(hot.sum(0).max()) if len(task) else 0
