"""Four CLIP tasks on images and their texts: zero-shot classification, image retrieval, text
retrieval, image-text matching.

Texts repeat (two images of one class may have the same caption), and an image may have several: a
text and an image are a positive pair where the image has a text of these words. Any of the positives
counts, so that a repeated caption is no mistake.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from clapforget.clip import Clip
from clapforget.errors import UserError

__all__ = ["Gallery", "clip_tasks", "gallery", "matching", "recall_at"]

KS = (1, 5, 10)


class Gallery(NamedTuple):
    """Images, the distinct texts said of them, and which belongs to which."""

    images: Tensor
    """Unit-norm features [n, d]."""
    texts: Tensor
    """Unit-norm features [m, d]."""
    positive: Tensor
    """Whether text j is said of image i, bool [n, m]; every row and column has one."""


def gallery(clip: Clip, images: Tensor, captions: Sequence[Sequence[str]]) -> Gallery:
    """Encode the texts of n images.

    :param images: unit-norm image features [n, d]. :param captions: one or more texts of each.
    :raises UserError: for an image without a text, or another number of images.
    """
    if len(images) != len(captions) or not all(captions):
        raise UserError(
            f"{len(images)} images and {sum(map(bool, captions))} with a caption", "give each one"
        )
    texts = list(dict.fromkeys(text for own in captions for text in own))
    column = {text: j for j, text in enumerate(texts)}
    positive = torch.zeros(len(images), len(texts), dtype=torch.bool, device=images.device)
    for i, own in enumerate(captions):
        positive[i, [column[text] for text in own]] = True
    with torch.no_grad():
        return Gallery(images, clip.encode_text(texts).to(images), positive)


def recall_at(similarity: Tensor, positive: Tensor, k: int) -> float:
    """R@k: the share of queries with a positive among their k nearest, in [0, 1].

    A candidate as near as the k-th positive place is counted against the query: ties never help.

    :param similarity: queries by candidates, [q, c]. :param positive: bool [q, c], one a row at least.
    :raises UserError: for k below 1.
    """
    if k < 1:
        raise UserError(f"recall at {k}", "give 1 or more")
    best = similarity.masked_fill(~positive, -torch.inf).amax(1, keepdim=True)
    ahead = ((similarity >= best) & ~positive).sum(1)
    return float((ahead < k).float().mean())


def matching(similarity: Tensor, positive: Tensor) -> dict[str, float | None]:
    """Image-text matching: is this text said of this image?

    =====================  ======================================================================
    ``matching_auc``       P(a positive pair scores above a negative one), over all pairs, a tie
                           counting half
    ``matching_accuracy``  share of (image, its text, another image's text), over all triples, in
                           which the image is nearer to its own: two-way forced choice, no threshold
                           to tune, a tie counting half; each image weighs the same
    =====================  ======================================================================

    Both in [0, 1], chance is 1/2; ``None`` without a negative pair.

    :param similarity: images by texts, [n, m]. :param positive: bool [n, m].
    """
    if positive.all():
        return {"matching_auc": None, "matching_accuracy": None}
    own = [_auc(row[yes], row[~yes]) for row, yes in zip(similarity, positive) if not yes.all()]
    return {
        "matching_auc": _auc(similarity[positive], similarity[~positive]),
        "matching_accuracy": sum(own) / len(own),
    }


def _auc(above: Tensor, below: Tensor) -> float:
    ordered = below.sort().values
    less = torch.searchsorted(ordered, above.contiguous(), right=False)
    at_most = torch.searchsorted(ordered, above.contiguous(), right=True)
    return float((less + at_most).double().mean() / (2 * len(below)))


@torch.no_grad()
def clip_tasks(
    shown: Gallery, labels: Tensor | None = None, class_texts: Tensor | None = None
) -> dict[str, float | None]:
    """All four tasks on one set of images, in [0, 1].

    :param labels: classes of the images [n], with ``class_texts`` [C, d] to choose among; without
        them there is no ``zero_shot``.
    :returns: ``zero_shot``, ``image_retrieval@k`` (texts ask for images), ``text_retrieval@k``
        (images ask for texts) for k in 1, 5, 10, and :func:`matching`.
    """
    similarity = shown.images @ shown.texts.T
    result: dict[str, float | None] = {}
    if labels is not None and class_texts is not None:
        right = (shown.images @ class_texts.T).argmax(1) == labels.to(shown.images.device)
        result["zero_shot"] = float(right.float().mean())
    for k in KS:
        result[f"image_retrieval@{k}"] = recall_at(similarity.T, shown.positive.T, k)
    for k in KS:
        result[f"text_retrieval@{k}"] = recall_at(similarity, shown.positive, k)
    result |= matching(similarity, shown.positive)
    return {name: None if v is None else round(v, 6) for name, v in result.items()}
