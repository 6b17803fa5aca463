"""Images changed in many ways: how well is each way answered, and are images answered under the best of them?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from clapforget.verify.material import Material, Part
from clapforget.verify.subject import Subject
from clapforget.verify.witnesses.answers import hits, own_probability

__all__ = ["Change", "looked_at", "surest", "under_the_best"]

Change = Callable[[Tensor], Tensor]
"""Images [n, 3, h, w] in [0, 1] to the same."""

_AT_ONCE = 256  # images; 154 MB at 224 pixels
_HOPELESS = 1e-3  # no less probable counts an image that a change does not give back


@torch.no_grad()
def looked_at(
    subject: Subject, part: Part, changes: Sequence[Change], look: Callable[[Subject, Part], Tensor]
) -> list[Tensor]:
    """What each of the :meth:`~clapforget.verify.subject.Subject.ways` makes of images under every change,
    [changes, n]: a changed image is encoded once for all ways, in batches of several changes, and not kept.

    :param look: one number an image, of a subject and its images.
    """
    images = part.unit
    found: list[list[Tensor]] = [[] for _ in subject.ways()]
    each = max(1, _AT_ONCE // max(1, len(part)))
    for start in range(0, len(changes), each):
        some = changes[start : start + each]
        changed = Part(torch.cat([change(images) for change in some]), part.labels.repeat(len(some)))
        for rows, way in zip(found, subject.passing().ways(), strict=True):
            rows.append(look(way, changed).view(len(some), -1))
    return [torch.cat(rows) for rows in found]


def surest(subject: Subject, m: Material, part: Part, changes: Sequence[Change]) -> list[Tensor]:
    """Mean log probability of the own name under every change [changes], by each way."""
    likely = looked_at(subject, part, changes, partial(_probability, m))
    return [rows.clamp_min(_HOPELESS).log().mean(1) for rows in likely]


def under_the_best(
    subject: Subject, m: Material, part: Part, changes: Sequence[Change], few: Part | None = None
) -> list[Tensor]:
    """Whether images are answered, each as 0 or 1 [n], under the change that leaves most of them, by each way.

    :param few: the images that choose, by the mean probability of the own name, which still tells changes apart
        where none is answered; None: all of them do, by how many are answered.
    """
    hit = partial(_hit, m)
    if few is None:
        return [rows[rows.mean(1).argmax()] for rows in looked_at(subject, part, changes, hit)]
    likely = looked_at(subject, few, changes, partial(_probability, m))
    best = [changes[int(rows.mean(1).argmax())] for rows in likely]
    return [looked_at(subject, part, [change], hit)[way][0] for way, change in enumerate(best)]


def _hit(m: Material, way: Subject, changed: Part) -> Tensor:
    return hits(way, m, 1, changed)


def _probability(m: Material, way: Subject, changed: Part) -> Tensor:
    return own_probability(way, m, changed)
