"""The four CLIP tasks around a forget request, on what is to be forgotten and on what is to stay."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clapforget.retrieval import clip_tasks, gallery
from clapforget.scenarios.data import Split
from clapforget.seeding import generator_for

__all__ = ["request_tasks"]

_MOST = 1000  # images a set, drawn with the seed: R@k grows harder with more of them


def request_tasks(strategy: Any, experience: Any) -> dict[str, dict[str, float | None]]:
    """:func:`~clapforget.retrieval.clip_tasks` of the strategy's bare CLIP, now, by set.

    ==========  ===================================================================================
    ``forget``  test images of the classes; of a request by samples the samples themselves; of one by
                pairs the test images with a matching caption, and their matching captions alone
    ``retain``  test images of the classes learned and not forgotten after the request or, where none
                is learned, of all that no request forgot; without captions of a request by pairs
    ==========  ===================================================================================

    Texts are captions, else the class's name in the first prompt. At most 1,000 images a set: the same
    ones before and after. A set without an image is left out.
    """
    data, request = experience.data, experience.request
    gone = set(experience.forgotten_classes)
    split: Split = "test"
    if request.samples:
        split, forget = "train", torch.tensor(list(experience.dataset.sample_id)).long()
    elif request.pairs:
        forget = data.rows_with_caption("test", request.matches)
    else:
        forget = data.rows("test", request.classes)
    stays = experience.learned_classes or [c for c in range(data.num_classes) if c not in gone]
    retain = data.rows("test", stays)
    if request.pairs:
        retain = retain[~torch.isin(retain, forget)]
    keep = request.matches if request.pairs else None
    found = {}
    parts: tuple[tuple[str, Split, Tensor, Any], ...] = (
        ("forget", split, forget, keep), ("retain", "test", retain, None)
    )  # fmt: skip
    for name, where, rows, wanted in parts:
        if len(rows):
            found[name] = _tasks(strategy, data, where, rows, wanted)
    return found


def _tasks(
    strategy: Any, data: Any, split: Split, rows: Tensor, wanted: Any
) -> dict[str, float | None]:
    order = torch.randperm(len(rows), generator=generator_for(strategy.seed, 17))
    rows = rows[order[:_MOST]].sort().values
    clip, source = strategy.model.clip, data.split(split)
    if split == "train":  # nothing of a sample to forget may enter the cache
        with torch.no_grad():
            v = clip.encode_image(source.images(rows))
    else:
        v = strategy.cache(source, rows)
    captions = data.captions_of(split, rows)
    if wanted is not None:
        captions = [tuple(filter(wanted, own)) for own in captions]
    shown = gallery(clip, v, captions)
    if data.num_classes < 2:
        return clip_tasks(shown)
    return clip_tasks(
        shown, source.targets[rows], clip.class_features(data.class_names, data.templates)
    )
