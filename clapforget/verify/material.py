"""What a verifier looks at: images by the part their classes play, and names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from clapforget.errors import UserError
from clapforget.seeding import generator_for

__all__ = ["Material", "Part", "kept_images", "material_from", "nearest_names"]

_KEPT, _KEPT_IN_ALL = 12, 160


@dataclass(frozen=True, eq=False)
class Part:
    """Labelled images: uint8 [n, 3, h, w] and labels [n]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def unit(self) -> Tensor:
        """The images as float32 in [0, 1]."""
        floats = self.images.float()
        return floats / 255 if self.images.dtype == torch.uint8 else floats

    def drawn(self, classes: int, rng: torch.Generator) -> list[int]:
        """At most so many of its classes, at random."""
        own = self.classes()
        return [own[i] for i in torch.randperm(len(own), generator=rng)[:classes].tolist()]

    def first(self, n: int) -> Part:
        """The first n images of each class."""
        order = torch.cat([(self.labels == c).nonzero().flatten()[:n] for c in self.classes()])
        return Part(self.images[order], self.labels[order])

    def of(self, classes: Sequence[int]) -> Part:
        """The images of some classes."""
        rows = torch.isin(self.labels, torch.tensor(list(classes)))
        return Part(self.images[rows], self.labels[rows])

    def classes(self) -> list[int]:
        """The labels that occur, ascending."""
        return sorted(set(self.labels.tolist()))


_NEAREST = 3
_ASKED = {("test", "forget"), ("test", "retain")}  # without them there is nothing to examine


@dataclass(frozen=True, eq=False)
class Material:
    """Images and names for one request.

    Test images are only looked at. Attack images (``shots``) are what an attacker is given; no image
    is both.
    """

    names: Sequence[str]
    """Of all classes, by label: what an answer chooses among."""
    templates: Sequence[str]
    forget: tuple[int, ...]
    retain: tuple[int, ...]
    unseen: tuple[int, ...] = ()
    neighbours: tuple[int, ...] = ()
    bystanders: tuple[int, ...] = ()
    nearest: bool = False
    """Whether the neighbours are nearest names (:meth:`with_nearest_names`); else the data set gives them."""
    test: Mapping[str, Part] = field(default_factory=dict)
    """Test images of ``forget``, ``retain`` (bystanders among them) and ``unseen``."""
    shots: Mapping[str, Part] = field(default_factory=dict)
    """Attack images by the same names; a part without any is left out, as are unseen classes without test
    images."""
    synonyms: Mapping[int, Sequence[str]] = field(default_factory=dict)
    """Other words for classes, by label; each as it stands in a prompt."""
    members: Part | None = None
    """Images of ``forget`` that the model before is known to have been trained on, from a random split of
    which the test images are the other part; None where that is not known."""

    def __post_init__(self) -> None:
        for name, parts in (("test", self.test), ("shots", self.shots)):
            empty = {k for k, p in parts.items() if not len(p) and (name, k) not in _ASKED}
            if empty:
                left = {k: p for k, p in parts.items() if k not in empty}
                object.__setattr__(self, name, left)

    def with_fewer(self, **images: int) -> Material:
        """With at most so many test images of each class of a part: ``with_fewer(unseen=5)``. For witnesses
        that look at every image many times over."""
        test = {k: p.first(images[k]) if k in images else p for k, p in self.test.items()}
        return replace(self, test=test)

    def with_nearest_names(self, text: Tensor) -> Material:
        """Where no neighbours are given, the :func:`nearest_names` of kept classes, no bystanders among them.

        :param text: features [C, d] of all names, by the model before: the one after may have moved them.
        """
        kept = [c for c in self.retain if c not in self.bystanders]
        if self.neighbours or not kept:
            return self
        return replace(self, neighbours=nearest_names(text, self.forget, kept), nearest=True)

    @property
    def kept(self) -> Tensor:
        """Labels whose names are to be kept: retained classes, bystanders among them."""
        return torch.tensor(self.retain)


def nearest_names(
    text: Tensor, forget: Sequence[int], kept: Sequence[int], each: int = _NEAREST
) -> tuple[int, ...]:
    """The kept classes whose names lie nearest to a forgotten one by cosine, ascending.

    :param text: features [C, d] of all names. :param each: so many for every forgotten class; some of them may be
        the same.
    """
    unit = torch.nn.functional.normalize(text.cpu(), dim=-1)
    cosine = unit[list(forget)] @ unit[list(kept)].T
    first = cosine.topk(min(each, len(kept)), 1).indices.unique()
    return tuple(sorted(kept[int(i)] for i in first))


def kept_images(classes: int) -> int:
    """Test images of each class to be kept: 12, or of few classes as many as come to 160 in all, for it takes
    about 50 of which none is lost, 120 of which 2 are, to show that a loss is below 5 points."""
    return max(_KEPT, math.ceil(_KEPT_IN_ALL / max(classes, 1)))


def material_from(
    data: Any,
    forget: Sequence[int],
    *,
    retain: Sequence[int] | None = None,
    unseen: Sequence[int] | None = None,
    test_images: int = 30,
    unseen_images: int = 10,
    unseen_classes: int = 40,
    retain_images: int | None = None,
    shots: int = 20,
    members: int = 0,
    seed: int = 0,
) -> Material:
    """Material from a data set of train and test images.

    :param data: a :class:`~clapforget.scenarios.ImageData`.
    :param forget: labels of the request. :param retain: labels to be kept; default: those known from
        pretraining, else all others. :param unseen: labels that the model never learned; default:
        those not known from pretraining, where that is known.
    :param test_images: of each forgotten class; so for ``unseen_images`` and ``retain_images``
        (default: as :func:`kept_images` says).
    :param unseen_classes: at most so many of the unseen ones, drawn at random.
    :param shots: attack images of each forgotten and unseen class.
    :param members: training images of each forgotten class, to ask whether they are known one by one; 0
        unless the model before was trained on exactly the data's training images.
    :raises UserError: for a request that names no class, or a class that plays two parts.
    """
    forget = tuple(dict.fromkeys(forget))
    if not forget:
        raise UserError("the request names no class", "write F3 or class names, with commas")
    data.check_labels(forget, "the request")
    everyone = range(data.num_classes)
    known = data.known
    if unseen is None:
        unseen = [] if known is None else [c for c in everyone if c not in known]
        unseen = [c for c in unseen if c not in forget]
    if retain is None:
        retain = [c for c in everyone if c not in unseen and c not in forget]
    for name, part in (("retain", retain), ("unseen", unseen)):
        if twice := set(part) & set(forget):
            raise UserError(
                f"class {data.class_names[min(twice)]!r} is to be forgotten and in --{name}",
                "let each class play one part",
            )
    if twice := set(retain) & set(unseen):
        raise UserError(
            f"class {data.class_names[min(twice)]!r} is in --retain and in --unseen",
            "let each class play one part",
        )
    if not len(data.rows("test", retain)):
        raise UserError(
            "no test image of a class to be kept", "give --retain some, or less to --unseen"
        )
    rng = generator_for(seed, 21)
    unseen = [
        unseen[i] for i in torch.randperm(len(unseen), generator=rng)[:unseen_classes].tolist()
    ]

    def draw(split: str, classes: Sequence[int], each: int) -> Part:
        rows = data.rows(split, classes)
        order = rows[torch.randperm(len(rows), generator=rng)]
        targets = data.split(split).targets[order]
        chosen = [order[targets == c][:each] for c in sorted(set(targets.tolist()))]
        rows = torch.cat(chosen) if chosen else order
        return Part(data.split(split).images(rows), data.split(split).targets[rows])

    kept = kept_images(len(retain)) if retain_images is None else retain_images
    sizes = {"forget": test_images, "retain": kept, "unseen": unseen_images}
    parts = {"forget": forget, "retain": tuple(retain), "unseen": tuple(unseen)}
    near = set(data.neighbours(forget))
    test = {k: draw("test", c, sizes[k]) for k, c in parts.items() if len(c)}
    given = {
        k: draw("train", c, shots if k != "retain" else 10) for k, c in parts.items() if len(c)
    }
    return Material(
        data.class_names, data.templates, forget, tuple(retain), tuple(unseen),
        tuple(c for c in retain if c in near), test=test, shots=given, synonyms=data.synonyms,
        members=draw("train", forget, members) if members else None,
    )  # fmt: skip
