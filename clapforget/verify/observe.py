"""Look at a system, before or after a request, on test images: plain numbers an image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from clapforget.clip import Clip
from clapforget.posterior import Predictive

__all__ = ["Answering", "Observation", "ViewObservation", "Views", "observe"]

SCORES = ("entropy", "expected_entropy", "mutual_information", "energy")
"""Uncertainties of the head's predictive that are recorded."""


@dataclass(frozen=True)
class Views:
    """Classes by the part they play in a request."""

    forget: tuple[int, ...]
    retain: tuple[int, ...] = ()
    """Learned and not forgotten."""
    neighbours: tuple[int, ...] = ()
    """Retained classes that resemble a forgotten one."""
    bystanders: tuple[int, ...] = ()
    """Known from pretraining, shown neither by the request nor by the memory."""
    unseen: tuple[int, ...] = ()
    """Never learned, nor known from pretraining: the stand-in for the twin."""
    known: tuple[int, ...] = ()
    """Retained classes that pretraining knows as well."""

    def items(self) -> list[tuple[str, tuple[int, ...]]]:
        """Name and classes of every view."""
        return [(name, getattr(self, name)) for name in self.__dataclass_fields__]


@dataclass
class ViewObservation:
    """One view's images. Arrays have one entry an image unless said otherwise."""

    n: int
    clip_right: np.ndarray
    """Whether bare CLIP names the class, among all names."""
    matched_cosine: np.ndarray
    unmatched_cosine: np.ndarray
    """Mean cosine with the names of other classes."""
    right: np.ndarray | None = None
    """Whether the strategy names the class, among all classes it met; None if it met none of
    the view's."""
    scores: dict[str, np.ndarray] = field(default_factory=dict)


class Answering(Protocol):
    """A head, as far as it is looked at."""

    labels: Tensor
    """Class label of each column [C]."""

    def predict(self, v: Tensor) -> Predictive:
        """Of image features [n, d]."""


@dataclass
class Observation:
    """A system seen through all views."""

    views: dict[str, ViewObservation]


@torch.no_grad()
def observe(
    clip: Clip,
    head: Answering | None,
    features: Callable[[tuple[int, ...]], tuple[Tensor, Tensor]],
    views: Views,
    names: Sequence[str],
    templates: Sequence[str],
    read: Callable[[tuple[int, ...]], Tensor] | None = None,
) -> Observation:
    """Look at every view that has classes.

    :param head: the strategy's head, or None for a bare CLIP.
    :param features: gives image features [n, d] and labels [n] of the test images of some classes.
    :param names: of all classes, by label: what a prediction chooses among.
    :param read: gives the same images' features as the head reads them, where they are others.
    """
    text = clip.class_features(names, templates)
    seen = {
        name: _look(*features(classes), head, text, read and read(classes))
        for name, classes in views.items()
        if classes
    }
    return Observation({name: view for name, view in seen.items() if view.n})


def _look(
    v: Tensor, labels: Tensor, head: Answering | None, text: Tensor, read: Tensor | None
) -> ViewObservation:
    labels = labels.to(v.device)
    similarity = v @ text.T
    matched = similarity.gather(1, labels[:, None])[:, 0]
    others = (similarity.sum(1) - matched) / max(len(text) - 1, 1)
    view = ViewObservation(
        n=len(v),
        clip_right=(similarity.argmax(1) == labels).cpu().numpy(),
        matched_cosine=matched.cpu().numpy(),
        unmatched_cosine=others.cpu().numpy(),
    )
    if head is not None and len(head.labels) and len(v):
        predictive = head.predict(v if read is None else read)
        answer = head.labels[predictive.probs.argmax(1)]
        if torch.isin(labels, head.labels).any():
            view.right = (answer == labels).cpu().numpy()
        view.scores = {name: predictive.score(name).cpu().numpy() for name in SCORES}
    return view
