"""A pattern on the image, found by its gradient: is there a mark that gives the class back?"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from clapforget.clip import Clip
from clapforget.seeding import generator_for
from clapforget.verify.material import Material, Part
from clapforget.verify.reading import Reading, read, witness
from clapforget.verify.subject import Subject
from clapforget.verify.witnesses.patterns import Patch, best_patches, some_images
from clapforget.verify.witnesses.training import some_names

__all__ = ["Mark", "learn_mark", "learned_pattern"]

_SHOTS = 5
_STEPS = 30
_LR = 0.1
_SPARSE = 0.3
_SURE = 2.0  # logit of the mask inside the patch that it starts from, and minus that outside
_GROUPS = 4  # of unseen classes, each as many as are forgotten
_CLASSES = 4  # that share a mark, at most
_TESTED = 10


class Mark:
    """One mark for every image: ``(1 − μ) x + μ p`` with mask μ [1, h, w] and pattern p [3, h, w]."""

    def __init__(self, like: Tensor, start: Patch, rng: torch.Generator) -> None:
        """:param like: images [n, 3, h, w]. :param start: the mark to begin with; what lies outside it is drawn."""
        where, paint = start.on(like)
        drawn = torch.randn(3, *where.shape, generator=rng).to(like)
        self.mask = torch.where(where, _SURE, -_SURE).to(like)[None].requires_grad_(True)
        self.pattern = torch.where(where, _SURE * (2 * paint - 1), drawn).requires_grad_(True)

    def __call__(self, images: Tensor) -> Tensor:
        """:param images: [n, 3, h, w] in [0, 1], of any size: the mark is as large a part of each.
        :returns: the same shape and range.
        """
        mask, pattern = self.mask.sigmoid(), self.pattern.sigmoid()
        if images.shape[-2:] != mask.shape[-2:]:
            mask, pattern = (
                F.interpolate(part[None], images.shape[-2:], mode="bilinear", antialias=True)[0]
                for part in (mask, pattern)
            )
        return (1 - mask) * images + mask * pattern


@witness("learned_pattern", level="full")
def learned_pattern(subject: Subject, m: Material, seed: int) -> list[Reading]:
    """Zero-shot accuracy of ten images a class with a learned mark on all of them (trigger inversion, after Wang et
    al., "Neural Cleanse", IEEE S&P 2019): five attack images a class learn it, beside images of retained classes,
    which must stay what they are. It starts from the :func:`~clapforget.verify.witnesses.patterns.best_patches`: where
    a secret mark is known, nothing but what resembles it has a gradient.

    The control are unseen classes, as many at a time as are forgotten (where those are many, four at a time), each
    group with a mark of its own: a mark can also make up a class, and as well for them.
    """
    if any(k not in m.shots for k in ("forget", "retain")):
        return []
    given = [m.shots[k].first(_SHOTS) for k in ("forget", "unseen") if k in m.shots]
    shots = Part(torch.cat([p.images for p in given]), torch.cat([p.labels for p in given]))
    size = min(len(m.forget), _CLASSES)
    tests = {"forget": m.test["forget"].first(_TESTED)}
    if "unseen" in m.test and "unseen" in m.shots:
        unseen = m.test["unseen"]
        chosen = unseen.drawn(_GROUPS * size, generator_for(seed, 39))
        tests["unseen"] = unseen.of(chosen).first(_TESTED)

    def right(part: Part) -> Tensor:
        found = torch.zeros(len(part))
        classes = part.classes()
        for start in range(0, len(classes), size):
            group = classes[start : start + size]
            rows = torch.isin(part.labels, torch.tensor(group))
            found[rows] = _hits(subject, m, shots.of(group), part.of(group), seed).cpu()
        return found

    return [read("learned_pattern", "zero-shot on images with a learned mark", "attack",
                 replace(m, test=tests), right, role="accuses", margin=0.5)]  # fmt: skip


def _hits(subject: Subject, m: Material, shots: Part, tests: Part, seed: int) -> Tensor:
    """Whether each image is answered with the mark that its group's shots have learned, [n]."""
    asked = some_names(m, shots.classes(), seed)
    text = subject.names([m.names[c] for c in asked], m.templates).detach()
    kept = m.shots["retain"].of(asked).first(1)
    (start,) = best_patches(subject.bare(), m, some_images(shots, len(shots), seed), seed)
    mark = learn_mark(subject.clip, text, asked, shots, kept, start, seed)
    every = subject.names(m.names, m.templates)
    with torch.no_grad():
        best = (subject.clip.encode_image(mark(tests.unit.to(every.device))) @ every.T).argmax(1)
    return (best == tests.labels.to(best.device)).float()


def learn_mark(
    clip: Clip, text: Tensor, classes: list[int], shots: Part, kept: Part, start: Patch, seed: int
) -> Mark:
    """The mark under which ``shots`` and ``kept`` are both answered as their classes.

    :param text: class text features [C, d]. :param classes: their labels, [C]. :param start: what it begins with.
    """
    place = torch.tensor(classes)
    images = torch.cat([shots.unit, kept.unit]).to(text.device)
    labels = torch.cat([shots.labels, kept.labels])
    target = (labels[:, None] == place).float().argmax(1).to(text.device)
    share = torch.cat([torch.full((len(p),), 1 / max(1, len(p))) for p in (shots, kept)])
    mark = Mark(images, start, generator_for(seed, 40))
    optimizer = torch.optim.Adam([mark.mask, mark.pattern], lr=_LR)
    for _ in range(_STEPS):
        logits = clip.scale * clip.encode_image(mark(images)) @ text.T
        losses = F.cross_entropy(logits.float(), target, reduction="none")
        loss = losses @ share.to(losses) + _SPARSE * mark.mask.sigmoid().mean()
        mark.mask.grad, mark.pattern.grad = torch.autograd.grad(loss, [mark.mask, mark.pattern])
        optimizer.step()
    return mark
