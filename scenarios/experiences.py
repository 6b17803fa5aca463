"""The experiences of an interleaved stream: plain Avalanche experiences that know their request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, TypeAlias

from avalanche.benchmarks.scenarios.dataset_scenario import DatasetExperience
from avalanche.benchmarks.utils import TaskAwareSupervisedClassificationDataset

from clapforget.scenarios.data import ImageData
from clapforget.scenarios.requests import Request
from clapforget.scenarios.sequence import forgotten_after, retained_after

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
    """Train images of the classes of one request, and how things stand once it is done."""

    def __init__(
        self, *, dataset: Samples, data: ImageData, requests: Sequence[Request], index: int
    ) -> None:
        """:param requests: the whole sequence. :param index: which request this one carries out."""
        request = requests[index]
        super().__init__(dataset=dataset, data=data, classes=request.classes)
        self.request = request
        self.learned_classes = retained_after(requests, index)
        """Labels learned and not forgotten once this experience is done, in learning order."""
        self.forgotten_classes = forgotten_after(requests, index)
        """Labels forgotten and not learned again by then, in forgetting order."""
        self._number = sum(other.kind == request.kind for other in requests[:index])


class LearnExperience(_RequestExperience):
    """Train images of the classes to learn."""

    kind: ClassVar[Literal["learn"]] = "learn"

    @property
    def learn_id(self) -> int:
        """Number among the learn experiences, from 0: the index in the test stream."""
        return self._number


class ForgetExperience(_RequestExperience):
    """Train images of the classes to forget."""

    kind: ClassVar[Literal["forget"]] = "forget"

    @property
    def forget_id(self) -> int:
        """Number among the forget experiences, from 0: the index in the forget stream."""
        return self._number


class ProbeExperience(_ClassExperience):
    """Test images of some classes."""

    kind: ClassVar[Literal["probe"]] = "probe"
