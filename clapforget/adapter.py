"""The Gaussian adapters: of all tasks as one stacked module, of the global latent, and task tokens.

They follow CLAP (Jha et al., "CLAP4CLIP: Continual Learning with Probabilistic Finetuning for
Vision-Language Models", NeurIPS 2024) as its released program runs.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from clapforget.blocks import Blocks
from clapforget.unchanged import Seen

__all__ = ["GaussianAdapter", "StackedGaussianAdapters", "TaskTokens"]


def _gaussian(out: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation from an adapter's output [..., 2d]."""
    mu, raw = out.chunk(2, dim=-1)
    return mu, 0.999 * F.softplus(raw) + 0.001


def _joined(parts: tuple[Tensor, ...]) -> Tensor:
    return torch.cat(parts) if len(parts) > 1 else parts[0]


class _Linear(torch.autograd.Function):
    """``x Wᵀ + b`` for a batch of few rows each. PyTorch's own gradient of W comes out transposed and
    is copied, which costs as much as all the rest of an adapter's step."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.baddbmm(bias[:, None], x, weight.mT)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            grad.contiguous() @ weight if of_x else None,
            grad.mT.contiguous() @ x if of_weight else None,
            grad.sum(1) if of_bias else None,
        )


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """[T, n, 2d] from x [T, n, d], weight [T, 2d, d] and bias [T, 2d]."""
    return _Linear.apply(x, weight, bias)


class GaussianAdapter(nn.Module):
    """One linear Gaussian adapter for all classes, that of the hierarchical latent.

    ``μ = W_μ x + b_μ``, ``σ = 0.999 softplus(W_σ x + b_σ) + 0.001``, PyTorch's default start.
    """

    def __init__(self, width: int) -> None:
        """:param width: d of the joint space."""
        super().__init__()
        self.linear = nn.Linear(width, 2 * width)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [..., d] from inputs [..., d]."""
        return _gaussian(self.linear(x))


class TaskTokens(nn.Module):
    """One learnable query a task (``--expandable-tokens``), started from N(0, 0.02²).

    As with the adapters, the newest task's token is kept apart while its task is in training.
    """

    def __init__(self, width: int) -> None:
        """:param width: d of the joint space."""
        super().__init__()
        self.token = nn.Parameter(torch.zeros(0, width))
        self.open_token = nn.Parameter(torch.zeros(0, width))

    def open(self, generator: torch.Generator) -> None:
        """Add the newest task's token."""
        self.close()
        start = 0.02 * torch.randn(1, self.token.shape[1], generator=generator)
        self.open_token = nn.Parameter(start.to(self.token))

    def close(self) -> None:
        """Put the open token with the others."""
        self.token = nn.Parameter(self.forward().detach().clone())
        self.open_token = nn.Parameter(self.open_token[:0].detach().clone())

    def resize(self, closed: int, opened: int) -> None:
        """Make room for a saved state of ``closed`` closed and ``opened`` (0 or 1) open tokens."""
        self.token = nn.Parameter(self.token.new_zeros(closed, self.token.shape[1]))
        self.open_token = nn.Parameter(self.token.new_zeros(opened, self.token.shape[1]))

    def forward(self) -> Tensor:
        """All tokens, [T, d]."""
        return torch.cat([self.token, self.open_token])


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
        self._frozen: tuple[Seen, tuple[Tensor, Tensor]] | None = None

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
        """Put the open task's adapter with the others, and keep nothing of what they said."""
        self._frozen = None
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

    def forward(self, x: Tensor, blocks: Blocks) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each class's latent, [..., C, d] each.

        :param x: adapter inputs [..., C, d]. :param blocks: the classes by task, all T of them.
        """
        rows = x.movedim(-2, 0)
        flat = rows.reshape(len(rows), math.prod(x.shape[:-2]), self.width)
        padded = blocks.pad(flat).flatten(1, 2)
        closed, opened = padded.split([len(self.weight), len(self.open_weight)])
        parts = [self._closed(x, closed)] if len(closed) else []
        if len(opened):
            parts.append(_gaussian(_linear(opened, self.open_weight, self.open_bias)))
        mu, sigma = (
            blocks.unpad(_joined(part).unflatten(1, (blocks.size, flat.shape[1])))
            .reshape(rows.shape)
            .movedim(0, -2)
            for part in zip(*parts)
        )
        return mu, sigma

    def _closed(self, x: Tensor, padded: Tensor) -> tuple[Tensor, Tensor]:
        """The closed tasks' latents, [T, n, d] each. In training they are kept while nothing that they
        are made of trains or has changed: without guidance that is all of a stage 1."""
        made_of = (x, self.weight, self.bias)
        if not self.training or any(part.requires_grad for part in made_of):
            return _gaussian(_linear(padded, self.weight, self.bias))
        if self._frozen is None or not self._frozen[0].same(*made_of):
            self._frozen = Seen(*made_of), _gaussian(_linear(padded, self.weight, self.bias))
        return self._frozen[1]
