"""How the variational head answers: which images guide the classes, and what is averaged."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clapforget import uncertainty
from clapforget.posterior import moments
from clapforget.posterior.guidance import ask
from clapforget.posterior.predictive import Predictive
from clapforget.posterior.weights import ClassWeights

if TYPE_CHECKING:
    from clapforget.posterior.variational import VariationalHead

__all__ = ["predict"]

_ROOM = 2**25  # numbers in one tensor of class weights, where every image has its own


@torch.no_grad()
def predict(head: VariationalHead, v: Tensor, batch_size: int) -> Predictive:
    """Posterior predictive of image features v [B, d] over all columns.

    The Monte Carlo noise is one fixed draw [M, C] shared by all images, so with ``memory`` or
    ``single`` as context an image's prediction depends on nothing but the image. With ``batch``, as
    released, every ``context_batch`` images in turn guide their own classes, whatever ``batch_size`` is.
    """
    was_training, context = head.training, head.settings.context
    head.eval()
    if context == "memory":
        weights = head.weights()
        parts = [_answer(head, part, weights) for part in v.split(batch_size)]
    else:
        asked = ask(head, head.text, head.layout)
        alone = context == "single"
        if not alone:
            batch_size = head.settings.context_batch
        else:
            draws = head.settings.top_samples if head.settings.hierarchical else 1
            each = max(1, _ROOM // (len(head.labels) * head.width * draws))
            batch_size = min(batch_size, each)
        parts = [
            _answer(
                head, part, head.posterior(head.inputs(part[:, None] if alone else part, asked))[0]
            )
            for part in v.split(batch_size)
        ]
    head.train(was_training)
    return Predictive.cat(parts)


def _answer(head: VariationalHead, v: Tensor, weights: ClassWeights) -> Predictive:
    """:param weights: one posterior for all images v [B, d], or one an image."""
    s = head.settings
    if s.context == "single":
        mean, std = (part.squeeze(-2) for part in head.logits(weights, v[:, None]))
    else:
        mean, std = head.logits(weights, v)
    mean = head.shifted(mean, v)
    variance = std.square().sum(-1)
    if s.hierarchical:
        variance = variance.mean(0) + mean.var(0, unbiased=False).sum(-1)
    mean = mean.masked_fill(head.hidden, -torch.inf)
    if s.uncertainty == "closed-form":
        out = moments.predictive(mean, std)
        if s.predictive == "mean-logit":
            out.probs = mean.softmax(-1)
            out.entropy = uncertainty.entropy(out.probs)
        out.logit_variance = variance
        return out
    generator = torch.Generator().manual_seed(head.seed)
    above = (s.top_samples,) if s.hierarchical else ()
    shape = (*above, s.draws, 1, len(head.labels))
    noise = torch.randn(shape, generator=generator).to(v)
    drawn = (mean.unsqueeze(-3) + std.unsqueeze(-3) * noise).flatten(0, -3)
    samples = drawn.softmax(-1)
    if s.hierarchical:
        mean = mean.mean(0)
    average, entropies = samples.mean(0), uncertainty.entropy(samples)
    probs = average if s.predictive == "mean-softmax" else mean.softmax(-1)
    expected = entropies.mean(0)
    return Predictive(
        probs=probs,
        entropy=uncertainty.entropy(probs),
        expected_entropy=expected,
        mutual_information=(uncertainty.entropy(average) - expected).clamp_min(0),
        variance=uncertainty.variance(samples),
        energy=uncertainty.energy(mean),
        variance_of_entropy=(entropies - expected).square().mean(0),
        expected_energy=uncertainty.expected_energy(drawn),
        logits=mean,
        logit_variance=variance,
    )
