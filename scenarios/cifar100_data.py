"""CIFAR-100 from class folders, with its superclasses as neighbours and a fixed known/new split."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import cache
from pathlib import Path

from clapforget.errors import UserError
from clapforget.scenarios.cifar100_words import SYNONYMS
from clapforget.scenarios.data import ImageData
from clapforget.scenarios.folder_data import folder

__all__ = [
    "DATA_VARIABLE",
    "SUPERCLASSES",
    "cifar100",
    "class_folders",
    "known_classes",
    "neighbours",
    "new_classes",
    "unseen_classes",
]

DATA_VARIABLE = "CLAPFORGET_DATA"

SUPERCLASSES: dict[str, tuple[str, ...]] = {
    "aquatic mammals": ("beaver", "dolphin", "otter", "seal", "whale"),
    "fish": ("aquarium_fish", "flatfish", "ray", "shark", "trout"),
    "flowers": ("orchid", "poppy", "rose", "sunflower", "tulip"),
    "food containers": ("bottle", "bowl", "can", "cup", "plate"),
    "fruit and vegetables": ("apple", "mushroom", "orange", "pear", "sweet_pepper"),
    "household electrical devices": ("clock", "keyboard", "lamp", "telephone", "television"),
    "household furniture": ("bed", "chair", "couch", "table", "wardrobe"),
    "insects": ("bee", "beetle", "butterfly", "caterpillar", "cockroach"),
    "large carnivores": ("bear", "leopard", "lion", "tiger", "wolf"),
    "large man-made outdoor things": ("bridge", "castle", "house", "road", "skyscraper"),
    "large natural outdoor scenes": ("cloud", "forest", "mountain", "plain", "sea"),
    "large omnivores and herbivores": ("camel", "cattle", "chimpanzee", "elephant", "kangaroo"),
    "medium-sized mammals": ("fox", "porcupine", "possum", "raccoon", "skunk"),
    "non-insect invertebrates": ("crab", "lobster", "snail", "spider", "worm"),
    "people": ("baby", "boy", "girl", "man", "woman"),
    "reptiles": ("crocodile", "dinosaur", "lizard", "snake", "turtle"),
    "small mammals": ("hamster", "mouse", "rabbit", "shrew", "squirrel"),
    "trees": ("maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"),
    "vehicles 1": ("bicycle", "bus", "motorcycle", "pickup_truck", "train"),
    "vehicles 2": ("lawn_mower", "rocket", "streetcar", "tank", "tractor"),
}
"""The standard table: twenty groups of five class folders, each in alphabetical order."""


@cache
def class_folders() -> tuple[str, ...]:
    """The hundred folder names in alphabetical order; the canonical class id is the position."""
    return tuple(sorted(name for group in SUPERCLASSES.values() for name in group))


@cache
def _roles() -> dict[str, tuple[int, ...]]:
    """Ids that are known, new and unseen.

    Of superclass ``i`` the classes at positions ``i, i+1, i+2`` (modulo 5) are known, so that every
    position takes its turn; the other two are new. In every second superclass the last new one is
    unseen: never taught by a built-in stream.
    """
    roles: dict[str, list[int]] = {"known": [], "new": [], "unseen": []}
    for i, group in enumerate(SUPERCLASSES.values()):
        left = [position for position in range(5) if (position - i) % 5 >= 3]
        for position, name in enumerate(group):
            last_new = i % 2 == 0 and position == left[-1]
            role = "known" if position not in left else "unseen" if last_new else "new"
            roles[role].append(class_folders().index(name))
    return {role: tuple(sorted(ids)) for role, ids in roles.items()}


def known_classes() -> tuple[int, ...]:
    """The sixty classes of pretraining: three of each superclass."""
    return _roles()["known"]


def new_classes() -> tuple[int, ...]:
    """Thirty classes that pretraining leaves out and a stream may teach."""
    return _roles()["new"]


def unseen_classes() -> tuple[int, ...]:
    """Ten classes that neither pretraining nor a built-in stream teaches: the reference."""
    return _roles()["unseen"]


def neighbours(label: int) -> frozenset[int]:
    """The four other classes of the same superclass."""
    name = class_folders()[label]
    group = next(names for names in SUPERCLASSES.values() if name in names)
    return frozenset(class_folders().index(other) for other in group if other != name)


def cifar100(path: str | Path | None = None, max_per_class: int | None = None) -> ImageData:
    """CIFAR-100, read into memory from PNG files in class folders.

    :param path: the folder that holds ``train/`` and ``test/``, or one that holds ``cifar100/``
        with them; by default what the variable ``CLAPFORGET_DATA`` says.
    :param max_per_class: keep the first so many files of each class and split.
    :raises UserError: if it is not there, or not all of it.
    """
    data = folder(_find(path), name="cifar100", max_per_class=max_per_class)
    names = tuple(name.replace("_", " ") for name in class_folders())
    if missing := [name for name in names if name not in data.class_names]:
        raise UserError(
            f"CIFAR-100 lacks {len(missing)} of its 100 classes ({', '.join(missing[:3])})",
            "unpack the data again",
        )
    if data.class_names != names:
        extra = next(name for name in data.class_names if name not in names)
        raise UserError(f"CIFAR-100 has no class {extra!r}", "unpack the data again")
    return replace(
        data,
        known=frozenset(known_classes()),
        neighbour_sets=tuple(neighbours(label) for label in range(len(names))),
        synonyms={class_folders().index(name): words for name, words in SYNONYMS.items()},
        flip=True,
    )


def _find(path: str | Path | None) -> Path:
    how = (
        "unpack it into class folders (cifar100/train/apple/*.png ...) and give their place with "
        f"--data DIR or the variable {DATA_VARIABLE}"
    )
    given = path if path is not None else os.environ.get(DATA_VARIABLE)
    if not given:
        raise UserError("CIFAR-100 does not come with the package", how)
    root = Path(given).expanduser()
    for candidate in (root, root / "cifar100"):
        if (candidate / "train").is_dir() and (candidate / "test").is_dir():
            return candidate
    archives = [root] if root.is_file() else sorted(root.glob("cifar100*.tar*"))
    if archives:
        how = f"unpack it (tar -xf {archives[0]}) and give the folder that holds train/ and test/"
    raise UserError(f"{root} holds no CIFAR-100 (no folders train/ and test/)", how)
