"""Images changed in many ways: how well is each way answered, and are images answered under the best of them?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial

import torch
from torch import Tensor

from clapforget.seeding import generator_for
from clapforget.verify.material import Material, Part
from clapforget.verify.reading import Reading, Role, read
from clapforget.verify.subject import Subject
from clapforget.verify.witnesses.answers import hits, own_probability

__all__ = ["Change", "by_way", "looked_at", "one_a_class", "surest", "under", "under_the_best"]

Change = Callable[[Tensor], Tensor]
"""Images [n, 3, h, w] in [0, 1] to the same; two are equal if they are one."""

_WAYS = (("", "zero-shot"), ("_answered", "answered"))
"""What a reading's name ends in and its title begins with, for each of a subject's ways."""

_CHOOSE = 15  # unseen classes
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


def by_way(
    subject: Subject, m: Material, name: str, images: str, look: Callable[[Part], list[Tensor]],
    roles: Sequence[Role] = ("accuses", "accuses"),
) -> list[Reading]:  # fmt: skip
    """A reading for each of the subject's ways, of one look at a part by all of them.

    :param name: of bare CLIP's reading; a head's is ``name_answered``. :param images: which they are asked about, in
        words. :param look: one number an image by each way. :param roles: of bare CLIP's reading and of a head's.
    """
    look = cache(look)
    return [
        read(name + suffix, f"{how} on {images}", "attack", m, partial(_nth, look, number), role=role)
        for number, (_, (suffix, how), role) in enumerate(zip(subject.ways(), _WAYS, roles))
    ]


def _nth(look: Callable[[Part], list[Tensor]], number: int, part: Part) -> Tensor:
    return look(part)[number]


def one_a_class(part: Part, seed: int) -> Part:
    """An image of each of at most 15 classes, drawn with the verifier's seed: of unseen classes these choose the
    change under which all are looked at."""
    return part.of(part.drawn(_CHOOSE, generator_for(seed, 47))).first(1)


def surest(subject: Subject, m: Material, part: Part, changes: Sequence[Change]) -> list[Tensor]:
    """Mean log probability of the own name under every change [changes], by each way."""
    likely = looked_at(subject, part, changes, lambda way, x: own_probability(way, m, x))
    return [rows.clamp_min(_HOPELESS).log().mean(1) for rows in likely]


def under(subject: Subject, m: Material, part: Part, chosen: Sequence[Change]) -> list[Tensor]:
    """Whether images are answered, each as 0 or 1 [n], by each way under the change chosen for it."""
    once = list(dict.fromkeys(chosen))
    rows = looked_at(subject, part, once, lambda way, x: hits(way, m, 1, x))
    return [own[once.index(change)] for own, change in zip(rows, chosen, strict=True)]


def under_the_best(
    subject: Subject, m: Material, part: Part, changes: Sequence[Change], few: Part | None = None
) -> list[Tensor]:
    """Whether images are answered, each as 0 or 1 [n], under the change that leaves most of them, by each way.

    :param few: the images that choose, by the mean probability of the own name, which still tells changes apart
        where none is answered; None: all of them do, by how many are answered.
    """
    if few is None:
        answered = looked_at(subject, part, changes, lambda way, x: hits(way, m, 1, x))
        return [rows[rows.mean(1).argmax()] for rows in answered]
    likely = looked_at(subject, few, changes, lambda way, x: own_probability(way, m, x))
    return under(subject, m, part, [changes[int(rows.mean(1).argmax())] for rows in likely])
