"""The experiences of an interleaved stream: plain Avalanche experiences that know their request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, TypeAlias

from avalanche.benchmarks.scenarios.dataset_scenario import DatasetExperience
from avalanche.benchmarks.utils import TaskAwareSupervisedClassificationDataset

from clapforget.scenarios.data import ImageData
from clapforget.scenarios.requests import Learn, LearnForNow, Request
from clapforget.scenarios.sequence import (
    forgotten_after,
    learned_for_now_after,
    retained_after,
)

__all__ = ["ForgetExperience", "LearnExperience", "ProbeExperience", "Samples"]

Samples: TypeAlias = TaskAwareSupervisedClassificationDataset


class _ClassExperience(DatasetExperience):
    """Images of some classes.

    Every sample is ``(x, y, 0)``: float32 [3, h, w] in [0, 1], label, task label. The attribute
    ``dataset.sample_id`` holds each sample's row in ``data.train`` (of a probe: ``data.test``).
    """

    kind: ClassVar[Literal["learn", "forget", "probe"]]

    def __init__(self, *, dataset: Samples, data: ImageData, classes: tuple[int, ...]) -> None:
        """:param classes: labels of the samples. :param data: where the samples come from."""
        super().__init__(dataset=dataset)
        self.data = data
        self.classes = classes


class _RequestExperience(_ClassExperience):
    """Train images of one request, and how things stand once it is done."""

    def __init__(
        self, *, dataset: Samples, data: ImageData, requests: Sequence[Request], index: int
    ) -> None:
        """:param requests: the whole sequence. :param index: which request this one carries out."""
        request = requests[index]
        super().__init__(dataset=dataset, data=data, classes=request.classes)
        self.request = request
        self.request_index = index
        """Which of the sequence's requests this is, or is a part of, from 0."""
        self.learned_classes = retained_after(requests, index)
        """Labels learned and not forgotten once this experience is done, in learning order."""
        self.forgotten_classes = forgotten_after(requests, index)
        """Labels forgotten and not learned again by then, in forgetting order."""
        self.forgotten_samples: tuple[int, ...] = ()
        """Ids that requests so far, this one included, took out sample by sample or pair by pair."""
        self._number = sum(other.kind == request.kind for other in requests[:index])


class LearnExperience(_RequestExperience):
    """Train images of the classes to learn, without those that were forgotten one by one."""

    kind: ClassVar[Literal["learn"]] = "learn"
    request: Learn

    def __init__(
        self, *, dataset: Samples, data: ImageData, requests: Sequence[Request], index: int
    ) -> None:
        """Arguments as those of every request's experience."""
        super().__init__(dataset=dataset, data=data, requests=requests, index=index)
        self.part, self.parts = 0, 1
        """Which part of its request this experience is, and of how many: they differ from (0, 1) where
        samples come online, a few at a time and once."""
        temporary = learned_for_now_after(requests[:index], index)
        self.promoted = tuple(c for c in self.classes if c in temporary)
        """Classes that were learned for now and are to be kept for good."""

    @property
    def learn_id(self) -> int:
        """Number among the Learn requests, from 0: the index in the test stream."""
        return self._number

    @property
    def opens(self) -> tuple[int, ...]:
        """Classes that begin here: the request's, in its first part."""
        return () if self.part else self.classes

    @property
    def title(self) -> str:
        """What a table calls it: the request's title, with the part if there are several."""
        part = f" {self.part + 1}/{self.parts}" if self.parts > 1 else ""
        return self.request.title + part

    @property
    def for_now(self) -> bool:
        """Whether a later request may take exactly this back."""
        return isinstance(self.request, LearnForNow)


class ForgetExperience(_RequestExperience):
    """Train images to forget: those of the request that are not forgotten already.

    Of a request by samples or by pairs, ``classes`` is empty: no class is to be forgotten.
    """

    kind: ClassVar[Literal["forget"]] = "forget"

    def __init__(
        self, *, dataset: Samples, data: ImageData, requests: Sequence[Request], index: int
    ) -> None:
        """Arguments as those of every request's experience."""
        super().__init__(dataset=dataset, data=data, requests=requests, index=index)
        before = requests[:index]
        gone = forgotten_after(before, index)
        self.already_forgotten = tuple(c for c in self.classes if c in gone)
        """Classes of the request that an earlier one forgot."""
        self.fresh_classes = tuple(c for c in self.classes if c not in gone)
        """Classes of the request that are to be forgotten now ..."""
        learned = retained_after(before, index)
        self.never_learned = tuple(c for c in self.fresh_classes if c not in learned)
        """... those of them that at most pretraining taught ..."""
        temporary = learned_for_now_after(before, index)
        self.learned_for_now = tuple(c for c in self.fresh_classes if c in temporary)
        """... and those that were learned for now."""

    @property
    def title(self) -> str:
        """What a table calls it: the request's title."""
        return self.request.title

    @property
    def by_sample(self) -> bool:
        """Whether the request names samples or pairs, and no class."""
        return not self.classes

    @property
    def nothing_to_do(self) -> str:
        """Why nothing is to be done, in words; empty if something is."""
        if self.by_sample:
            pairs = getattr(self.request, "pairs", None)
            what = "no caption matches" if pairs else "none of these samples is learned"
            return "" if len(self.dataset) else f"{what}, or all were forgotten before"
        return "" if self.fresh_classes else "forgotten before"

    @property
    def forget_id(self) -> int:
        """Number among the forget experiences, from 0: the index in the forget stream."""
        return self._number


class ProbeExperience(_ClassExperience):
    """Test images of some classes."""

    kind: ClassVar[Literal["probe"]] = "probe"
