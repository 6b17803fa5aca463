"""U-LiRA for a request by sample: shadows of the strategy's head that learn and delete like it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clapforget.posterior.exact import ExactHead
from clapforget.verify import Evidence
from clapforget.verify.shadow_heads import Samples, sample_membership

__all__ = ["shadow_evidence"]

_MOST = 10_000  # samples that every shadow head learns
_LEAST = 10  # members, and others: fewer tell nothing at 1 % false alarms nor of an AUROC


def shadow_evidence(
    strategy: Any, experience: Any, before: Any, towers: list[str], rows: Tensor
) -> tuple[list[Evidence], str]:
    """Whether the samples are told from images never learned, by sixteen shadow heads.

    They learn what remains, four fifths each, from the strategy's cached features. Only where a head is
    solved for in one pass and deletes exactly: training the others sixteen times would take longer
    than the stream.

    :param before: the head as it was before the request. :param towers: of CLIP that the request
        changed. :param rows: the request's images [n].
    :returns: the evidence, and else why there is none.
    """
    data, head = experience.data, strategy.model.head
    if not isinstance(head, ExactHead) or not isinstance(before, ExactHead):
        return [], "heads that are trained: shadow heads would take longer than the stream"
    if "image" in towers or head.sums.carried.any():
        return [], "the image tower was changed: shadow heads would have to change it too"
    columns = head.labels[head.sums.count > 0].cpu()
    rows = rows[torch.isin(data.train.targets[rows], columns)]
    touched = sorted(set(data.train.targets[rows].tolist()))
    others = data.rows("test", touched)
    if len(rows) < _LEAST or len(others) < _LEAST:
        return [], f"{len(rows)} samples and {len(others)} others are too few"
    learned = data.rows("train", columns.tolist())
    gone = torch.tensor(experience.forgotten_samples, dtype=torch.long)
    learned = learned[~torch.isin(learned, torch.cat([gone, rows]))]
    if len(learned) > _MOST:
        return [], f"{len(learned)} samples remain: more than {_MOST} for every shadow head"
    mirrored = [False, True] if data.flip else [False]

    def cached(source: Any, some: Tensor) -> Samples:
        v = torch.stack([strategy.cache(source, some, m) for m in mirrored], 1)
        return v, source.targets[some].to(v.device)

    images = data.train.images(rows)  # not through the cache, which must not hold them again
    flips = [images.flip(-1) if m else images for m in mirrored]
    members = torch.stack([strategy.model.clip.encode_image(view) for view in flips], 1)

    def empty() -> ExactHead:
        made = ExactHead(head.width, head.scale, head.settings, head.seed).to(head.templates.device)
        made.grow(before.labels.tolist(), before.templates)
        made.retire(before.labels[before.retired].tolist())
        return made

    found = sample_membership(
        empty, before, head, cached(data.train, learned),
        (members, data.train.targets[rows].to(members.device)), cached(data.test, others),
        strategy.cache.tower, seed=strategy.request_seed,
    )  # fmt: skip
    return found, ""
