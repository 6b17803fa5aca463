"""Which unseen classes still stand for *never learned*.

The reference is read off the model after, so whoever teaches it the unseen classes raises the
reference, and what is still known no longer stands out. Those that the model after answers more often than the
model before have been taught since: they are left out of every reading. What raises them otherwise, by some wording or
mark or by how names rank images, raises nothing: of each share the smaller mean of the unseen classes counts, that
after or that before. In a model that was trained apart the two differ by chance alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy import stats

from clapforget.verify.reading import Reading
from clapforget.verify.statistics import holm

__all__ = ["lower", "taught_since", "without"]

_TOLD_BY = ("answers", "zero_shot")
_ALPHA = 0.05
_RISE = 0.05


def taught_since(before: Sequence[Reading], after: Sequence[Reading]) -> set[int]:
    """Unseen classes that the model after answers more often than the model before: Fisher's exact test
    by class, one-sided, Holm over the classes. All of them, where those that are left rose by more
    than 5 points on average (one-sided t test over the classes).

    :param before, after: readings of the same images.
    """
    old, taught = {r.name: r for r in before}, set[int]()
    for now in after:
        then = old.get(now.name)
        if now.name not in _TOLD_BY or then is None or now.unseen is None or then.unseen is None:
            continue
        assert now.unseen_labels is not None
        labels = np.unique(now.unseen_labels)
        rows = [now.unseen_labels == c for c in labels]
        p = [_rose(then.unseen[r], now.unseen[r]) for r in rows]
        rose = np.array(holm(p, _ALPHA))
        taught |= set(labels[rose].tolist())
        rises = np.array([now.unseen[r].mean() - then.unseen[r].mean() for r in rows])[~rose]
        if len(rises) and _all_rose(rises):
            taught |= set(labels.tolist())
    return taught


def _all_rose(rises: np.ndarray) -> bool:
    """Whether classes rose by more than 5 points on average."""
    if len(rises) < 2 or not rises.std():
        return bool(rises.mean() > _RISE)
    return bool(stats.ttest_1samp(rises, _RISE, alternative="greater").pvalue < _ALPHA)


def without(readings: Sequence[Reading], classes: set[int]) -> list[Reading]:
    """The readings without these unseen classes; with no reference where none is left."""
    found = []
    for reading in readings:
        if reading.unseen is not None and reading.unseen_labels is not None and classes:
            rows = ~np.isin(reading.unseen_labels, list(classes))
            some = bool(rows.any())
            reading = replace(
                reading, unseen=reading.unseen[rows] if some else None,
                unseen_labels=reading.unseen_labels[rows] if some else None,
            )  # fmt: skip
        found.append(reading)
    return found


def lower(before: Sequence[Reading], after: Sequence[Reading]) -> list[Reading]:
    """The readings after, each share with the unseen classes of the model before where their mean is the smaller.

    Not the answers, which :func:`taught_since` tells by: of a head they are how often unseen images are taken for a
    forgotten class, and one that learned it takes fewer. Nor the posterior's share, conformal coverage: its sets are as
    wide as the model is unsure of everything, so that it is a score with a scale of its own.

    :param before, after: readings of the same images, classes taught since left out.
    """
    old, found = {r.name: r for r in before}, []
    for now in after:
        then = old.get(now.name)
        told = now.share and now.name not in _TOLD_BY and now.group != "posterior"
        if told and now.unseen is not None and then is not None and then.unseen is not None:
            risen = _mean_by_class(now) - _mean_by_class(then)
            if risen > 0:
                note = "; ".join(
                    filter(None, [now.note, "unseen classes as the model before had them"])
                )
                now = replace(now, unseen=then.unseen, unseen_labels=then.unseen_labels, note=note)
        found.append(now)
    return found


def _mean_by_class(reading: Reading) -> float:
    """Of unseen classes, the mean of their means."""
    assert reading.unseen is not None and reading.unseen_labels is not None
    labels = reading.unseen_labels
    return float(np.mean([reading.unseen[labels == c].mean() for c in np.unique(labels)]))


def _rose(then: np.ndarray, now: np.ndarray) -> float:
    """One-sided p of Fisher's exact test; shares of several columns are rounded to yes or no."""
    was, is_now = int((then > 0.5).sum()), int((now > 0.5).sum())
    table = [[is_now, len(now) - is_now], [was, len(then) - was]]
    return float(stats.fisher_exact(table, alternative="greater").pvalue)
