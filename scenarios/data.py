"""Labelled images and what is known about their classes, apart from any stream."""

from __future__ import annotations

import copy
import difflib
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from clapforget.errors import UserError

__all__ = ["Captions", "ImageData", "LabelledImages", "Split", "TensorImages"]

Split = Literal["train", "test"]
Captions = Callable[[Split, Tensor], list[tuple[str, ...]]]
"""``captions(split, rows)``: one or more captions of each image."""


class LabelledImages(Dataset[tuple[Tensor, int]], ABC):
    """Images with class labels. A sample's id is its row, whatever the labels are called."""

    def __init__(self, targets: Tensor | Sequence[int], split: str) -> None:
        """:param targets: a label an image, [N]. :param split: ``"train"`` or ``"test"``."""
        self.targets = torch.as_tensor(targets, dtype=torch.int64)
        self.split = split

    @abstractmethod
    def images(self, indices: Tensor) -> Tensor:
        """Images of the given rows: uint8 [n, 3, h, w] of int64 [n]."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256, as hex, that identifies the pixels by row. Labels do not enter into it."""

    def with_targets(self, targets: Tensor) -> LabelledImages:
        """The same images (shared, not copied) under other labels [N]."""
        other = copy.copy(self)
        other.targets = torch.as_tensor(targets, dtype=torch.int64)
        return other

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """The image, float32 [3, h, w] in [0, 1], and its label."""
        label = int(self.targets[index])  # first: an index out of range ends iteration here
        row = torch.tensor([int(index) % len(self)])
        return self.images(row)[0].float().div_(255), label


class TensorImages(LabelledImages):
    """Images held in memory."""

    def __init__(
        self,
        images: Tensor,
        targets: Tensor | Sequence[int],
        split: str,
        fingerprint: str | None = None,
    ) -> None:
        """:param images: uint8 [N, 3, h, w]. :param targets: labels [N].
        :param fingerprint: hex digest that identifies the pixels; computed from them if left out.
        :raises UserError: for images of another type or shape.
        """
        super().__init__(targets, split)
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
            raise UserError(
                f"{split} images are {images.dtype} {list(images.shape)}", "give uint8 [N, 3, h, w]"
            )
        if len(images) != len(self.targets):
            raise UserError(
                f"there are {len(images)} {split} images and {len(self.targets)} labels",
                "give a label for each image",
            )
        self._images = images
        self._fingerprint = fingerprint or _digest(images)

    def images(self, indices: Tensor) -> Tensor:
        return self._images.index_select(0, indices)

    @property
    def fingerprint(self) -> str:
        return self._fingerprint


def _digest(images: Tensor) -> str:
    digest = hashlib.sha256(f"uint8 {tuple(images.shape)}".encode())
    digest.update(images.flatten().numpy().data)
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set: train and test images, and what is known about the classes.

    Labels are positions in :attr:`class_names`; :meth:`reorder` renames them. A sample's id is
    its row in :attr:`train`, which no reordering changes.
    """

    name: str
    class_names: tuple[str, ...]
    """What label ``i`` is called, as it stands in a prompt."""
    train: LabelledImages
    test: LabelledImages
    known: frozenset[int] | None = None
    """Labels known from pretraining; ``None`` if nothing is known about pretraining."""
    neighbour_sets: tuple[frozenset[int], ...] = ()
    """For each label the labels that resemble it; empty if nothing is known about that."""
    templates: tuple[str, ...] = ("a photo of a {}",)
    """Prompts with one ``{}`` for the class name."""
    flip: bool = False
    """Whether a mirrored image still shows its class."""
    class_order: tuple[int, ...] = ()
    """The canonical class id of each label: the identity, unless reordered."""
    synonyms: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    """Other words for a class, by label, each as it stands in a prompt; labels without any may be left out."""
    captions: Captions | None = None
    """What is said of single images; ``None``: nothing but their class."""

    def __post_init__(self) -> None:
        if not self.class_order:
            object.__setattr__(self, "class_order", tuple(range(self.num_classes)))
        twice = [name for name in self.class_names if self.class_names.count(name) > 1]
        if twice:
            raise UserError(f"two classes of {self.name} are called {twice[0]!r}", "rename one")
        bad = [t for t in self.templates if t.count("{}") != 1 or "{" in t.replace("{}", "")]
        if bad or not self.templates:
            which = repr(bad[0]) if bad else "()"
            raise UserError(f"prompt template {which} of {self.name} has not one {{}}", "add it")
        if self.neighbour_sets and len(self.neighbour_sets) != self.num_classes:
            raise UserError(
                f"{self.name} has {len(self.neighbour_sets)} neighbour sets for "
                f"{self.num_classes} classes",
                "give one a class, or none",
            )
        self.check_labels(self.known or (), "the known classes")
        self.check_labels(self.synonyms, "the synonyms")
        for images in (self.train, self.test):
            if len(images):
                extremes = (int(images.targets.min()), int(images.targets.max()))
                self.check_labels(extremes, f"the {images.split} targets")

    @property
    def num_classes(self) -> int:
        """Labels are ``0 .. num_classes - 1``."""
        return len(self.class_names)

    def check_labels(self, labels: Iterable[int], where: str) -> None:
        """:raises UserError: if any label is none of this data's; ``where`` it was given."""
        if bad := [label for label in labels if not 0 <= label < self.num_classes]:
            raise UserError(
                f"label {bad[0]} of {where}: {self.name} has {self.num_classes} classes",
                f"use labels from 0 to {self.num_classes - 1}",
            )

    def neighbours(self, labels: Iterable[int]) -> tuple[int, ...]:
        """Labels that resemble any of the given ones, without those, sorted."""
        given = set(labels)
        self.check_labels(given, "the given classes")
        if not self.neighbour_sets:
            return ()
        return tuple(sorted(set().union(*(self.neighbour_sets[i] for i in given)) - given))

    def split(self, split: Split) -> LabelledImages:
        """The train or the test images.

        :raises UserError: for another name.
        """
        if split not in ("train", "test"):
            raise UserError(f"{self.name} has no split {split!r}", "use 'train' or 'test'")
        return self.train if split == "train" else self.test

    def rows(self, split: Split, labels: Iterable[int]) -> Tensor:
        """Rows of one split that show any of the labels: int64 [n], ascending."""
        wanted = torch.tensor(sorted(labels), dtype=torch.int64)
        self.check_labels(wanted.tolist(), "the given classes")
        return torch.isin(self.split(split).targets, wanted).nonzero().flatten()

    def captions_of(self, split: Split, rows: Tensor) -> list[tuple[str, ...]]:
        """What is said of the images of some rows [n]: their captions, else their class's name in the
        first prompt."""
        if self.captions is not None:
            return self.captions(split, rows)
        labels = self.split(split).targets[rows].tolist()
        return [(self.templates[0].format(self.class_names[label]),) for label in labels]

    def rows_with_caption(self, split: Split, matches: Callable[[str], bool]) -> Tensor:
        """Rows of the images that have a matching caption: int64 [n], ascending."""
        rows = torch.arange(len(self.split(split)))
        found = [any(map(matches, captions)) for captions in self.captions_of(split, rows)]
        return rows[torch.tensor(found, dtype=torch.bool)]

    def reorder(self, order: Sequence[int]) -> ImageData:
        """Rename the labels: label ``i`` of the result is label ``order[i]`` of this data.

        Pixels, rows and fingerprints stay; reorderings compose, so :attr:`class_order` always
        leads back to the canonical ids.

        :raises UserError: if ``order`` is no permutation of the labels.
        """
        order = tuple(int(label) for label in order)
        if sorted(order) != list(range(self.num_classes)):
            raise UserError(
                f"the class order ({len(order)} entries) is no permutation of the labels of "
                f"{self.name}",
                f"name each label from 0 to {self.num_classes - 1} once",
            )
        now = torch.empty(self.num_classes, dtype=torch.int64)
        now[torch.tensor(order)] = torch.arange(self.num_classes)
        renamed = now.tolist()
        rename = lambda labels: frozenset(renamed[label] for label in labels)  # noqa: E731
        return replace(
            self,
            class_names=tuple(self.class_names[i] for i in order),
            train=self.train.with_targets(now[self.train.targets]),
            test=self.test.with_targets(now[self.test.targets]),
            known=None if self.known is None else rename(self.known),
            neighbour_sets=tuple(
                rename(self.neighbour_sets[i]) for i in (order if self.neighbour_sets else ())
            ),
            class_order=tuple(self.class_order[i] for i in order),
            synonyms={renamed[label]: words for label, words in self.synonyms.items()},
        )

    def label_of(self, name: str) -> int:
        """The label of a class name; case does not matter, and ``_`` stands for a space.

        :raises UserError: for an unknown name, with the nearest ones.
        """
        names = {_plain(known): label for label, known in enumerate(self.class_names)}
        if _plain(name) not in names:
            near = difflib.get_close_matches(_plain(name), names, n=3)
            shown = [self.class_names[names[n]] for n in near] or self.class_names[:3]
            hint = "did you mean" if near else "its classes are such as"
            raise UserError(f"{self.name} has no class {name!r}", f"{hint} {', '.join(shown)}?")
        return names[_plain(name)]


def _plain(name: str) -> str:
    return name.replace("_", " ").casefold().strip()
