"""A request to forget on a small model whose pretraining can be repeated without the forgotten classes:
what it shows a forgetter, and how the outcome is seen.

Of the 60 classes that pretraining knows, a stream is taken to have learned 20, and 1, 2 or 3 of those
are forgotten (by seed). The memory holds 20 exemplars a class of the others; the 40 classes that
neither shows are bystanders. Train, memory and test images never overlap, and no measure is seen by a
forgetter.

====================  ==============================================================================
forget, retain,       zero-shot accuracy among all 100 names on test images (30 a class of the lab, all
neighbours,           50 of CIFAR-100): of the forgotten, of those in memory, of known classes that
bystanders            resemble a forgotten one, of those that nothing shows
captioned             forget accuracy where each name stands in a caption (colour, size, background);
                      of data with captions only
cosine                mean matched cosine of the forgotten classes' test images
retrieval             R@1, mean of both directions, among test images of retained classes with
                      distinct captions that say every attribute; of data with captions only
relearning            forget accuracy after 0, 4, 8, 16, 32 steps of Adam (3e-4, all weights,
                      cross-entropy among all names) on 5 images a class, as the twin has to learn it
trained_forget        forget accuracy on the very images that the forgetter was given
====================  ==============================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.integrate import trapezoid
from torch import Tensor

from clapforget.clip import Clip
from clapforget.scenarios.data import ImageData
from clapforget.scenarios.lab_data import lab
from clapforget.seeding import generator_for
from clapforget.unlearn import ForgetTask, Pairs

__all__ = ["AT", "Look", "TwinRequest", "curve_area", "lab_request", "pairs_of"]

AT = (0, 4, 8, 16, 32)
"""Steps of relearning at which the curve is seen."""
_CAPTIONS = (
    "a small red {} on a navy background",
    "a large blue {}",
    "the picture shows a small green {}",
)
_LEARNED, _EXEMPLARS, _FORGET, _TEST, _SHOTS = 20, 20, 100, 30, 5


def curve_area(curve: Sequence[float]) -> float:
    """Area under a curve over :data:`AT`, by the trapezoidal rule, as a share of the whole width."""
    return float(trapezoid(curve, AT)) / AT[-1]


@dataclass
class Look:
    """What a model shows; fractions, but for the cosine."""

    forget: float
    retain: float
    neighbours: float
    bystanders: float
    captioned: float | None
    cosine: float
    retrieval: float | None
    trained_forget: float
    curve: list[float]
    """Relearning, at :data:`AT`."""


class TwinRequest:
    """One seeded request. Everything a method is not given comes from the test split."""

    def __init__(self, data: ImageData, seed: int, draws: int = 1) -> None:
        """:param data: in canonical order, its known classes told. :param draws: relearning is the mean
        curve over so many draws of images to relearn from.
        """
        known = sorted(data.known or ())
        order = torch.randperm(len(known), generator=generator_for(seed, 11)).tolist()
        learned = [known[i] for i in order[:_LEARNED]]
        self.data, self.seed, self.draws = data, seed, draws
        self.forget = sorted(learned[: 1 + seed % 3])
        """Canonical ids."""
        self.memory = [c for c in learned if c not in self.forget]
        self.bystanders = [c for c in known if c not in learned]
        near = data.neighbours(self.forget)
        self.neighbours = [c for c in known if c in near]
        self.task = ForgetTask(
            pairs_of(data, self.forget, _FORGET), pairs_of(data, self.memory, _EXEMPLARS),
            data.templates, data.class_names, seed,
        )  # fmt: skip
        rows = data.rows("test", known)
        self._labels = data.test.targets[rows]
        self._images = data.test.images(rows)
        self._captions: list[str] = []
        if data.captions is not None:
            captions = [said[0] for said in data.captions("test", rows)]
            kept = [i for i, c in enumerate(self._labels.tolist()) if c not in self.forget]
            first = {captions[i]: i for i in reversed(kept)}
            self._captions = list(first)
            self._captioned = torch.tensor(list(first.values()))
        self._features: dict[str, Tensor] = {}

    @torch.no_grad()
    def look(self, clip: Clip, again: bool = False) -> Look:
        """Measure a model. :param again: let it relearn from other images."""
        key = clip.fingerprint("image")
        if key not in self._features:
            given = self.task.forget.images
            self._features[key] = clip.encode_image(torch.cat([self._images, given]))
        v, given = self._features[key].split([len(self._labels), len(self.task.forget)])
        t = clip.class_features(self.data.class_names, self.data.templates)
        cosines = v @ t.T
        right = cosines.argmax(1) == self._labels

        def of(values: Tensor, classes: list[int]) -> float:
            return values[torch.isin(self._labels, torch.tensor(classes))].float().mean().item()

        own = cosines.gather(1, self._labels[:, None])[:, 0]
        names = [self.data.class_names[i] for i in (given @ t.T).argmax(1).tolist()]
        hits = [a == b for a, b in zip(names, self.task.forget.names)]
        captioned = self._right_in_captions(clip, v) if self._captions else None
        return Look(
            forget=of(right, self.forget),
            retain=of(right, self.memory),
            neighbours=of(right, self.neighbours),
            bystanders=of(right, self.bystanders),
            captioned=None if captioned is None else of(captioned, self.forget),
            cosine=of(own, self.forget),
            retrieval=self._retrieval(clip, v) if self._captions else None,
            trained_forget=sum(hits) / len(hits),
            curve=self._curve(clip, again),
        )

    def _right_in_captions(self, clip: Clip, v: Tensor) -> Tensor:
        """Share of the wordings in which each image finds its name, [n]."""
        spoken = torch.stack(
            [v @ clip.class_features(self.data.class_names, [c]).T for c in _CAPTIONS]
        )
        return (spoken.argmax(2) == self._labels).float().mean(0)

    def _retrieval(self, clip: Clip, v: Tensor) -> float:
        similarity = v[self._captioned] @ clip.encode_text(self._captions).T
        truth = torch.arange(len(similarity))
        both = [(similarity.argmax(side) == truth).float().mean().item() for side in (0, 1)]
        return sum(both) / 2

    def _curve(self, clip: Clip, again: bool) -> list[float]:
        draws = range(again * self.draws, (again + 1) * self.draws)
        return np.mean([self._relearn(clip, draw) for draw in draws], axis=0).tolist()

    @torch.enable_grad()
    def _relearn(self, clip: Clip, draw: int) -> list[float]:
        """Accuracy on forget test images by steps of relearning, in the template of each step."""
        now, names = clip.trainable_copy(), self.data.class_names
        shots = pairs_of(self.data, self.forget, _SHOTS, _FORGET + draw * _SHOTS)
        position = {name: i for i, name in enumerate(names)}
        target = torch.tensor([position[name] for name in shots.names])
        tokens = [now.tokenize([t.format(n) for n in names]) for t in self.data.templates]
        test = torch.isin(self._labels, torch.tensor(self.forget))
        optimizer = torch.optim.Adam(now.model.parameters(), lr=3e-4)
        curve: list[float] = []
        for step in range(AT[-1] + 1):
            if step in AT:
                with torch.no_grad():
                    t: Any = now.class_features(names, self.data.templates)
                    best = (now.encode_image(self._images[test]) @ t.T).argmax(1)
                    curve.append((best == self._labels[test]).float().mean().item())
            if step < AT[-1]:
                t = now.encode_tokens(tokens[step % len(tokens)])
                loss = F.cross_entropy(now.scale * now.encode_image(shots.images) @ t.T, target)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
        return curve


def lab_request(seed: int, draws: int = 1) -> TwinRequest:
    """A request on the lab, on images of the request's own seed."""
    return TwinRequest(lab(_FORGET + 2 * draws * _SHOTS, _TEST, seed=seed), seed, draws)


def pairs_of(data: ImageData, classes: Sequence[int], each: int, first: int = 0) -> Pairs:
    """Train images ``first`` to ``first + each`` of some classes, each with its class's name."""
    rows = torch.cat([data.rows("train", [c])[first : first + each] for c in classes])
    names = [data.class_names[c] for c in data.train.targets[rows].tolist()]
    return Pairs(data.train.images(rows), names)
