"""Batch normalisation's running statistics estimated anew: does what is forgotten live in them?"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from clapforget.clip import Clip
from clapforget.seeding import generator_for
from clapforget.verify.material import Material
from clapforget.verify.reading import Reading, read, witness
from clapforget.verify.subject import Subject
from clapforget.verify.witnesses.answers import hits

__all__ = ["batch_statistics", "estimated_anew", "normalisations"]

_IMAGES, _UNSEEN, _BATCH = 5, 3, 128


@witness("batch_statistics")
def batch_statistics(subject: Subject, m: Material, seed: int) -> list[Reading]:
    """Zero-shot accuracy where the statistics of batch normalisation are those of the attacker's images of
    retained classes: no gradient, no forgotten image, and a model that kept its knowledge under other
    statistics gives it back. Nothing where the image tower has none.
    """
    shots = m.shots.get("retain")
    if shots is None or not normalisations(subject.clip):
        return []
    images = shots.first(_IMAGES).images
    images = images[torch.randperm(len(images), generator=generator_for(seed, 36))]
    anew = subject.bare().with_image_tower(estimated_anew(subject.clip, images))
    few = m.with_fewer(unseen=_UNSEEN)
    return [read("batch_statistics", "zero-shot with batch statistics estimated anew on retained images",
                 "attack", few, partial(hits, anew, m, 1), role="accuses")]  # fmt: skip


@torch.no_grad()
def estimated_anew(clip: Clip, images: Tensor) -> Clip:
    """A copy whose batch normalisations have the mean statistics of these images [n, 3, h, w], in batches
    of 128."""
    copy = clip.trainable_copy([])
    found = normalisations(copy)
    for module in found:
        module.reset_running_stats()
        module.momentum = None  # the mean over all batches
        module.train()
    for batch in images.split(_BATCH):
        copy.encode_image(batch)
    for module in found:
        module.eval()
    return copy


def normalisations(clip: Clip) -> list[nn.modules.batchnorm._BatchNorm]:
    """The image tower's batch normalisations that keep running statistics."""
    modules = clip.model.visual.modules()  # type: ignore[operator,union-attr]
    kind = nn.modules.batchnorm._BatchNorm
    return [x for x in modules if isinstance(x, kind) and x.track_running_stats]
