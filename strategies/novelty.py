"""Post-hoc detection of novel data (PhNDD, Jha et al., NeurIPS 2024): how well scores of doubt tell
images of classes learned and kept from images of classes that the stream teaches later.

Scores are of one kind here: the higher, the more the image looks like what was learned. Doubts
enter with their sign turned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve
from torch import Tensor

from clapforget.scenarios.data import ImageData

__all__ = ["SCORES", "Detection", "average_novelty", "detection", "familiarity", "novelty"]

SCORES = (
    "energy", "max_softmax", "entropy", "mutual_information", "logit_variance", "softmax_variance",
)  # fmt: skip
"""Scores by which images are told apart, see :func:`familiarity`."""


class Detection(NamedTuple):
    """How well one score tells learned from novel, each in [0, 1]. Learned is the positive class;
    equal scores are never told apart."""

    auroc: float
    """Probability that a learned image scores above a novel one, a tie counting half."""
    aupr: float
    """Average precision; chance is the part of images that is learned."""
    fpr95: float
    """Part of the novel images that is accepted where at least 95 % of the learned ones are."""


def detection(learned: Tensor, novel: Tensor) -> Detection:
    """Hold scores of learned images [n] against scores of novel ones [m], n, m > 0."""
    scores = torch.cat([learned, novel]).double().numpy(force=True)
    positive = torch.cat([torch.ones(len(learned)), torch.zeros(len(novel))]).numpy()
    accepted_novel, accepted_learned, _ = roc_curve(positive, scores, drop_intermediate=False)
    return Detection(
        float(roc_auc_score(positive, scores)),
        float(average_precision_score(positive, scores)),
        float(accepted_novel[accepted_learned >= 0.95].min()),
    )


@torch.no_grad()
def familiarity(head: Any, v: Tensor) -> dict[str, Tensor]:
    """Every score of :data:`SCORES` of image features v [B, d], [B] each, higher for what looks
    learned.

    ====================  ======================================================================
    energy                logsumexp of the mean logits, temperature 1
    max_softmax           largest probability of the posterior predictive
    entropy               minus the predictive's entropy
    mutual_information    minus what the draws disagree about
    logit_variance        minus the logits' posterior variance summed over the classes; only of a
                          head whose prediction says it
    softmax_variance      minus the probabilities' variance over the draws, summed over the classes
    ====================  ======================================================================

    All are over every column of the head, forgotten classes included.
    """
    found = head.predict(v)
    scores = {
        "energy": found.energy,
        "max_softmax": found.probs.max(1).values,
        "entropy": -found.entropy,
        "mutual_information": -found.mutual_information,
        "softmax_variance": -found.variance,
    }
    if found.logit_variance is not None:
        scores["logit_variance"] = -found.logit_variance
    return {name: scores[name] for name in SCORES if name in scores}


def novelty(
    strategy: Any, data: ImageData, learned: Sequence[int], future: Sequence[int]
) -> dict[str, Any] | None:
    """Tell the test images of what is learned from those of what comes later.

    :param strategy: with ``model.head`` and ``seen``, the features it reads.
    :param learned: labels learned and not forgotten.
    :param future: labels that later requests teach. Those met before do not count: a class that
        was forgotten and is taught again is neither known nor new.
    :returns: ``{"learned": images, "novel": images, "scores": {name: {"auroc", "aupr",
        "fpr95"}}}``; None where nothing is learned, or nothing is to come.
    """
    head = strategy.model.head
    coming = set(future) - set(head.labels.tolist())
    if not learned or not coming:
        return None
    rows = [data.rows("test", labels) for labels in (learned, coming)]
    sizes = [len(part) for part in rows]
    scores = familiarity(head, strategy.seen(data.test, torch.cat(rows)))
    found = {name: detection(*values.split(sizes)) for name, values in scores.items()}
    return {
        "learned": sizes[0], "novel": sizes[1],
        "scores": {
            name: {key: round(value, 6) for key, value in each._asdict().items()}
            for name, each in found.items()
        },
    }  # fmt: skip


def average_novelty(found: Sequence[Mapping[str, Any] | None]) -> dict[str, Any] | None:
    """The mean over the stream of what :func:`novelty` gave after each experience.

    :returns: ``{"events": how many, "scores": {name: {"auroc", "aupr", "fpr95"}}}``, or None.
    """
    tables = [each["scores"] for each in found if each is not None]
    if not tables:
        return None
    scores = {
        name: {
            key: round(sum(table[name][key] for table in tables) / len(tables), 6)
            for key in Detection._fields
        }
        for name in tables[0]
        if all(name in table for table in tables)
    }
    return {"events": len(tables), "scores": scores}
