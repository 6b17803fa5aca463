"""What a subject answers when it is asked about the same images again and again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from clapforget.seeding import generator_for
from clapforget.verify.material import Material, Part
from clapforget.verify.statistics import correlation
from clapforget.verify.subject import Subject

__all__ = ["settled_logits"]

_TIMES = 64
_NOISY = 0.1
_NUDGE = 1e-4
_WAYS: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda answers: answers.mean(0),
    lambda answers: answers.amax(0),
    lambda answers: answers.amin(0),
)


@torch.no_grad()
def settled_logits(
    subject: Subject, m: Material, parts: Sequence[Part], seed: int
) -> dict[Part, Tensor]:
    """Logits [n, columns] of each part; those of a forgotten class's column out of 64 askings where a head answers it
    otherwise each time, for noise hides what is under it until it is taken out.

    Each asking puts the images in another order, their features a ten-thousandth away and a tenth of their pixels a
    grey level off: noise that is drawn anew by call, by place or by content comes out different,
    and an answer to the image does not. Asked again only where one such asking moves a forgotten column
    by more than a tenth of its spread over the images of all parts. Of mean, largest and smallest answer each column
    takes one, for all parts alike, by how well two halves of the askings agree (split-half correlation): the mean
    takes out noise of any kind; the others, which such noise as goes one way asks for, have to halve the
    disagreement.
    """
    plain = [subject.logits(part, m.names, m.templates) for part in parts]
    logits, sizes = torch.cat(plain), [len(part) for part in parts]
    if subject.answer is None:
        return dict(zip(parts, plain))
    columns = subject.column_labels(len(m.names)).to(logits.device)
    gone = torch.isin(columns, torch.tensor(m.forget, device=columns.device)).nonzero().flatten()
    if not len(gone):
        return dict(zip(parts, plain))
    rng = generator_for(seed, 46)

    def ask() -> Tensor:
        return torch.cat([_asked(subject, part, rng) for part in parts])[:, gone]

    own, again = logits[:, gone], ask()
    moved = (again - own).square().mean(0).sqrt()
    noisy = moved.isfinite() & (moved > _NOISY * own.std(0, unbiased=False))
    if not noisy.any():
        return dict(zip(parts, plain))
    answers = torch.stack([own, again, *(ask() for _ in range(_TIMES - 2))])[..., noisy]
    logits = logits.index_copy(1, gone[noisy], _settled(answers))
    return dict(zip(parts, logits.split(sizes)))


def _settled(answers: Tensor) -> Tensor:
    """:param answers: [askings, n, columns]. :returns: [n, columns]."""
    first, second = answers[::2], answers[1::2]
    agree = torch.stack([correlation(way(first), way(second)) for way in _WAYS])
    agree[0] = (1 + agree[0]) / 2
    found = torch.stack([way(answers) for way in _WAYS])
    return found[agree.argmax(0), :, torch.arange(answers.shape[2], device=answers.device)].T


def _asked(subject: Subject, part: Part, rng: torch.Generator) -> Tensor:
    assert subject.answer is not None
    order = torch.randperm(len(part), generator=rng)
    v = subject.features(part)
    nudge = _NUDGE * torch.randn(v.shape, generator=rng).to(v)
    nudged = F.normalize(v + nudge, dim=-1)[order.to(v.device)]
    images = _nudged(part.images, rng)[order.to(part.images.device)]
    answered = subject.answer(nudged, images)
    return torch.empty_like(answered).index_copy(0, order.to(answered.device), answered)


def _nudged(images: Tensor, rng: torch.Generator) -> Tensor:
    """A tenth of the pixels, the same of all images, by a grey level."""
    where = (torch.rand(images.shape[1:], generator=rng) < 0.1).to(images.device)
    if images.dtype == torch.uint8:
        return images ^ where.to(torch.uint8)
    return (images + where.to(images) / 255).clamp(0, 1)
