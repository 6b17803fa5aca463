"""What the subject answers: right, among the first five, how surely; and zero-shot by bare CLIP."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from clapforget.verify.material import Material, Part
from clapforget.verify.reading import Reading, read, witness
from clapforget.verify.subject import Subject

__all__ = ["answers", "hits", "own_or_any", "own_probability"]


@witness("answers")
def answers(subject: Subject, m: Material, seed: int) -> list[Reading]:
    """Top-1, top-5 and probability of the own name.

    Where a head has no column for unseen classes, their reference is how often their images are
    answered by a forgotten class, averaged over those: with few columns an image that nothing fits
    must be answered by something, and that is no memory.
    """
    found = [
        read("answers", "forgotten classes, answered", "behaviour", m, partial(hits, subject, m, 1),
             margin=0.10, absolute=True),
        read("answers_top5", "forgotten classes, among the first five answers", "behaviour", m,
             partial(hits, subject, m, 5), role="accuses", margin=0.5),
        read("answers_probability", "probability of the forgotten class", "behaviour", m,
             partial(own_probability, subject, m), role="accuses", margin=0.25),
    ]  # fmt: skip
    if subject.answer is not None:
        found.append(read("zero_shot", "forgotten classes, zero-shot by bare CLIP", "clip", m,
                          partial(hits, subject.bare(), m, 1)))  # fmt: skip
    return found


def hits(subject: Subject, m: Material, rank: int, part: Part) -> Tensor:
    """Whether the own name is among the first ``rank`` answers [n]; see :func:`own_or_any`."""
    logits = subject.logits(part, m.names, m.templates)
    top = logits.topk(min(rank, logits.shape[1]), 1).indices
    hit = torch.zeros_like(logits).scatter(1, top, 1.0)
    return own_or_any(hit, subject.column_labels(len(m.names)), part, m)


def own_probability(subject: Subject, m: Material, part: Part) -> Tensor:
    """Probability of the own name [n]; see :func:`own_or_any`."""
    probs = subject.logits(part, m.names, m.templates).softmax(1)
    return own_or_any(probs, subject.column_labels(len(m.names)), part, m)


def own_or_any(score: Tensor, columns: Tensor, part: Part, m: Material) -> Tensor:
    """The score in the own class's column [n]; without such a column, the mean over the columns of
    the forgotten classes (0 if there are none).

    :param score: [n, C]. :param columns: class label of each column [C].
    """
    columns = columns.to(score.device)
    own = part.labels.to(score.device)[:, None] == columns[None, :]
    forgotten = torch.isin(columns, torch.tensor(m.forget, device=columns.device))
    instead = score[:, forgotten].mean(1) if forgotten.any() else score.new_zeros(len(score))
    return torch.where(own.any(1), score.masked_fill(~own, 0).sum(1), instead)
