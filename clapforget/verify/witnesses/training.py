"""A short training of a copy, as attacks use it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from clapforget.clip import Clip
from clapforget.seeding import generator_for
from clapforget.verify.material import Material, Part

__all__ = ["BATCH", "LEARNING_RATE", "fit", "some_names"]

LEARNING_RATE = 3e-4
BATCH = 32
_NAMES = 24


def some_names(m: Material, classes: Sequence[int], seed: int) -> list[int]:
    """Labels among which an attack chooses: the given ones, and kept ones drawn at random up to 24 in all."""
    rest = [c for c in m.retain if c not in set(classes)]
    order = torch.randperm(len(rest), generator=generator_for(seed, 31))
    return [*classes, *(rest[i] for i in order[: max(0, _NAMES - len(classes))].tolist())]


def fit(
    clip: Clip,
    part: Part,
    m: Material,
    labels: Sequence[int],
    steps: Sequence[int],
    look: Callable[[Clip, int], None],
    seed: int,
    lr: float = LEARNING_RATE,
) -> None:
    """Train a copy of all weights by Adam on the cross-entropy of images against class names in one
    template a step; batch statistics stay frozen.

    :param labels: classes whose names are chosen among. :param steps: after how many steps to call
        ``look(copy, steps)``.
    """
    trained = clip.trainable_copy()
    optimizer = torch.optim.Adam(trained.model.parameters(), lr=lr)
    rng = generator_for(seed, 32)
    place = {label: i for i, label in enumerate(labels)}
    target = torch.tensor([place[int(c)] for c in part.labels], device=trained.device)
    for step in range(max(steps) + 1):
        if step in steps:
            with torch.no_grad():
                look(trained, step)
        if step == max(steps):
            return
        rows = torch.randperm(len(part), generator=rng)[:BATCH]
        template = m.templates[int(torch.randint(len(m.templates), (1,), generator=rng))]
        text = trained.encode_text([template.format(m.names[c]) for c in labels])
        logits = trained.scale * trained.encode_image(part.images[rows]) @ text.T
        loss = F.cross_entropy(logits, target[rows.to(target.device)])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
