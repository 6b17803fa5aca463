"""What a forgetter is given for a request: pairs to forget, pairs to keep, names to keep."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clapforget.errors import UserError
from clapforget.seeding import generator_for
from clapforget.unlearn.base import ForgetTask, Pairs

__all__ = ["caption_pairs", "class_task", "pair_task"]

_MOST_RETAINED = 2000  # pairs drawn from the data where no memory holds any


def class_task(strategy: Any, experience: Any, rows: Tensor) -> ForgetTask:
    """Images with their class's name, the memory to keep.

    :param rows: of the train images to forget, [n].
    """
    data = experience.data

    def named(labels: Tensor) -> list[str]:
        return [data.class_names[label] for label in labels.tolist()]

    memory = strategy.memory
    return ForgetTask(
        Pairs(data.train.images(rows), named(data.train.targets[rows])),
        strategy.retain_set or Pairs(memory.images, named(memory.labels)),
        data.templates,
        data.class_names,
        seed=strategy.request_seed,
        progress=strategy.on_progress,
    )


def pair_task(strategy: Any, experience: Any, rows: Tensor) -> ForgetTask:
    """Images with their captions: of a request by pairs those that match, of one by samples all.

    Kept are the memory's exemplars with their captions or, where there is no memory, pairs drawn from
    the train images that no request forgot; and the names of all classes not forgotten.

    :raises UserError: without captions: a class's name belongs to all its images, so it cannot be
        taken from some of them.
    """
    data = experience.data
    forget = caption_pairs(experience, rows)
    keep = strategy.memory.sample_ids if len(strategy.memory) else _others(strategy, experience)
    kept = [captions[0] for captions in data.captions("train", keep)]
    gone = set(experience.forgotten_classes)
    words = [name for c, name in enumerate(data.class_names) if c not in gone]
    return ForgetTask(
        forget,
        strategy.retain_set or Pairs(data.train.images(keep), kept),
        ("{}",),
        [data.templates[0].format(word) for word in words],
        seed=strategy.request_seed,
        progress=strategy.on_progress,
        captions=True,
    )


def caption_pairs(experience: Any, rows: Tensor) -> Pairs:
    """Train images with those of their captions that a request by sample or by pair asks to forget.

    :param rows: of the images, [n]. :raises UserError: without captions.
    """
    data, request = experience.data, experience.request
    if data.captions is None:
        raise UserError(
            f"{data.name} has no captions, so CLIP knows its images by their class's name alone",
            "leave requests.samples_in_clip off, or forget the class",
        )
    said = [
        (row, caption)
        for row, captions in zip(rows.tolist(), data.captions("train", rows))
        for caption in captions
        if request.samples or request.matches(caption)
    ]
    images = data.train.images(torch.tensor([row for row, _ in said], dtype=torch.long))
    return Pairs(images, [caption for _, caption in said])


def _others(strategy: Any, experience: Any) -> Tensor:
    """Rows of train images, at most so many, that no request has forgotten."""
    data = experience.data
    free = torch.ones(len(data.train), dtype=torch.bool)
    free[torch.tensor(experience.forgotten_samples, dtype=torch.long)] = False
    free[data.rows("train", experience.forgotten_classes)] = False
    rows = free.nonzero().flatten()
    order = torch.randperm(len(rows), generator=generator_for(strategy.request_seed, 8))
    return rows[order[:_MOST_RETAINED]].sort().values
