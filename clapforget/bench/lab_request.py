"""A request to forget on the lab, with its twin: what it shows a forgetter, and how the outcome is seen.

Of the 60 classes that ``lab-tiny`` knows, a stream is taken to have learned 20, and 1, 2 or 3 of those
are forgotten (by seed). The memory holds 20 exemplars a class of the others; the 40 classes that
neither shows are bystanders. Train, memory and test images never overlap, and no measure is seen by a
forgetter.

====================  ==============================================================================
forget, retain,       zero-shot accuracy among all 100 names on 30 test images a class: of the
neighbours,           forgotten, of those in memory, of known classes with the outline or the mark of
bystanders            a forgotten one, of those that nothing shows
captioned             forget accuracy where each name stands in a caption (colour, size, background)
cosine                mean matched cosine of the forgotten classes' test images
retrieval             R@1, mean of both directions, among test images of retained classes with
                      distinct captions that say every attribute
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

from clapforget import lab
from clapforget.clip import Clip
from clapforget.seeding import generator_for
from clapforget.unlearn import ForgetTask, Pairs

__all__ = ["AT", "LabRequest", "Look", "curve_area", "lab_pairs"]

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
    captioned: float
    cosine: float
    retrieval: float
    trained_forget: float
    curve: list[float]
    """Relearning, at :data:`AT`."""


class LabRequest:
    """One seeded request. Everything a method is not given comes from the lab's test split."""

    def __init__(self, seed: int, draws: int = 1) -> None:
        """:param draws: relearning is the mean curve over so many draws of images to relearn from."""
        known = sorted(lab.known_classes())
        order = torch.randperm(len(known), generator=generator_for(seed, 11)).tolist()
        learned = [known[i] for i in order[:_LEARNED]]
        self.seed, self.draws = seed, draws
        self.forget = sorted(learned[: 1 + seed % 3])
        """Canonical ids."""
        self.memory = [c for c in learned if c not in self.forget]
        self.bystanders = [c for c in known if c not in learned]
        near = set().union(*(lab.neighbours(c) for c in self.forget))
        self.neighbours = [c for c in known if c in near and c not in self.forget]
        self.task = ForgetTask(
            lab_pairs(self.forget, _FORGET, seed), lab_pairs(self.memory, _EXEMPLARS, seed),
            lab.TEMPLATES, lab.class_names(), seed,
        )  # fmt: skip
        tested = sorted({*learned, *self.bystanders})
        self._labels = torch.tensor(tested).repeat(_TEST)
        index = _index(tested, _TEST)
        self._images = lab.draw("test", index, seed)
        captions = lab.captions("test", index, seed)
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
        t = clip.class_features(lab.class_names(), lab.TEMPLATES)
        cosines = v @ t.T
        right = cosines.argmax(1) == self._labels

        def of(values: Tensor, classes: list[int]) -> float:
            return values[torch.isin(self._labels, torch.tensor(classes))].float().mean().item()

        spoken = torch.stack([v @ clip.class_features(lab.class_names(), [c]).T for c in _CAPTIONS])
        captioned = (spoken.argmax(2) == self._labels).float().mean(0)
        similarity = v[self._captioned] @ clip.encode_text(self._captions).T
        truth = torch.arange(len(similarity))
        both = [(similarity.argmax(side) == truth).float().mean().item() for side in (0, 1)]
        names = [lab.class_names()[i] for i in (given @ t.T).argmax(1).tolist()]
        hits = [a == b for a, b in zip(names, self.task.forget.names)]
        own = cosines.gather(1, self._labels[:, None])[:, 0]
        return Look(
            forget=of(right, self.forget),
            retain=of(right, self.memory),
            neighbours=of(right, self.neighbours),
            bystanders=of(right, self.bystanders),
            captioned=of(captioned, self.forget),
            cosine=of(own, self.forget),
            retrieval=sum(both) / 2,
            trained_forget=sum(hits) / len(hits),
            curve=self._curve(clip, again),
        )

    def _curve(self, clip: Clip, again: bool) -> list[float]:
        draws = range(again * self.draws, (again + 1) * self.draws)
        return np.mean([self._relearn(clip, draw) for draw in draws], axis=0).tolist()

    @torch.enable_grad()
    def _relearn(self, clip: Clip, draw: int) -> list[float]:
        """Accuracy on forget test images by steps of relearning, in the template of each step."""
        now = clip.trainable_copy()
        first = _FORGET + draw * _SHOTS
        shots = lab_pairs(self.forget, first + _SHOTS, self.seed)
        new = slice(first * len(self.forget), None)
        images, names = shots.images[new], shots.names[new]
        position = {name: i for i, name in enumerate(lab.class_names())}
        target = torch.tensor([position[name] for name in names])
        tokens = [now.tokenize([t.format(n) for n in lab.class_names()]) for t in lab.TEMPLATES]
        test = torch.isin(self._labels, torch.tensor(self.forget))
        optimizer = torch.optim.Adam(now.model.parameters(), lr=3e-4)
        curve: list[float] = []
        for step in range(AT[-1] + 1):
            if step in AT:
                with torch.no_grad():
                    t: Any = now.class_features(lab.class_names(), lab.TEMPLATES)
                    best = (now.encode_image(self._images[test]) @ t.T).argmax(1)
                    curve.append((best == self._labels[test]).float().mean().item())
            if step < AT[-1]:
                t = now.encode_tokens(tokens[step % len(tokens)])
                loss = F.cross_entropy(now.scale * now.encode_image(images) @ t.T, target)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
        return curve


def lab_pairs(classes: Sequence[int], each: int, seed: int) -> Pairs:
    """Train images of some classes, each with its class's name."""
    index = _index(classes, each)
    names = [lab.class_names()[i % lab.NUM_CLASSES] for i in index]
    return Pairs(lab.draw("train", index, seed), names)


def _index(classes: Sequence[int], each: int) -> np.ndarray:
    """Image numbers, class by class within each round."""
    rounds = np.arange(each)[:, None] * lab.NUM_CLASSES
    return (rounds + np.asarray(classes)[None, :]).flatten()
