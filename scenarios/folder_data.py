"""Any folder of class folders as a data set: ``train/<class>/*`` and ``test/<class>/*``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from clapforget.errors import UserError
from clapforget.scenarios.data import ImageData, LabelledImages, Split, TensorImages
from clapforget.scenarios.files import FileImages, image_size, read_image
from clapforget.scenarios.synonyms import SYNONYMS_FILE, read_synonyms

__all__ = ["IMAGE_SUFFIXES", "PHOTO_TEMPLATES", "folder"]

IMAGE_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm",
)  # fmt: skip
PHOTO_TEMPLATES = (
    "a photo of a {}",
    "a picture of a {}",
    "an image of a {}",
    "this is a {}",
    "a {}",
    "{}",
)
_SMALL = 64  # images with no longer side are read into memory ...
_MEMORY = 2 << 30  # ... as long as they take no more bytes than this
_LAYOUT = "lay the images out as train/<class>/* and test/<class>/*"


def folder(
    path: str | Path,
    size: int | None = None,
    *,
    name: str | None = None,
    templates: Sequence[str] | None = None,
    known: Iterable[int | str] | None = None,
    max_per_class: int | None = None,
) -> ImageData:
    """A data set of class folders. Labels follow the folders' names in alphabetical order.

    Small images of one size (sides up to 64 pixels) are read into memory; others are decoded when
    they are needed, their short side resized to ``size`` and their centre cropped.

    :param path: holds ``train/`` and ``test/``, which hold a folder a class. Underscores in their
        names become spaces in :attr:`ImageData.class_names`. Hidden files are ignored. A
        ``synonyms.yaml`` beside them gives other words for classes.
    :param size: side of the images, in pixels; by default small ones keep theirs, others get 224.
    :param name: of the data set; by default the folder's name.
    :param templates: prompts with one ``{}``; default :data:`PHOTO_TEMPLATES`.
    :param known: classes known from pretraining, as labels or names, if that is known.
    :param max_per_class: keep the first so many files, by name, of each class and split.
    :raises UserError: for a folder of another layout or a file that is no image, naming it.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        fault = "is a file, not a folder" if root.exists() else "does not exist"
        raise UserError(
            f"data folder {root} {fault}", "give the folder that holds train/ and test/"
        )
    for what, number in (("size", size), ("max_per_class", max_per_class)):
        if number is not None and number < 1:
            raise UserError(f"{what} of data folder {root} is {number}", "give 1 or more")
    train = _class_folders(root, "train")
    test = _class_folders(root, "test")
    for here, there, missing in (
        ("train", "test", sorted(train.keys() - test.keys())),
        ("test", "train", sorted(test.keys() - train.keys())),
    ):
        if missing:
            raise UserError(
                f"class folder {root / here / missing[0]} has no counterpart in {root / there}",
                "give every class train and test images",
            )
    data = ImageData(
        name=name or root.resolve().name,
        class_names=tuple(folder_name.replace("_", " ") for folder_name in train),
        train=_load(train, "train", size, max_per_class),
        test=_load(test, "test", size, max_per_class),
        templates=tuple(templates) if templates is not None else PHOTO_TEMPLATES,
    )
    if (words := root / SYNONYMS_FILE).is_file():
        data = replace(data, synonyms=read_synonyms(words, data))
    return data if known is None else with_known(data, known)


def with_known(data: ImageData, known: Iterable[int | str]) -> ImageData:
    """The data with these classes, labels or names, as those known from pretraining."""
    labels = (data.label_of(c) if isinstance(c, str) else int(c) for c in known)
    return replace(data, known=frozenset(labels))


def _class_folders(root: Path, split: Split) -> dict[str, list[Path]]:
    """The image files of each class folder, both sorted by name."""
    home = root / split
    if not home.is_dir():
        raise UserError(f"data folder {root} has no folder {split}/", _LAYOUT)
    folders = sorted(p for p in home.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not folders:
        raise UserError(f"folder {home} holds no class folder", _LAYOUT)
    return {class_folder.name: _image_files(class_folder) for class_folder in folders}


def _image_files(class_folder: Path) -> list[Path]:
    names = sorted(name for name in os.listdir(class_folder) if not name.startswith("."))
    if not names:
        raise UserError(f"class folder {class_folder} holds no image", "add images or remove it")
    for name in names:
        if not name.lower().endswith(IMAGE_SUFFIXES):
            kinds = ", ".join(suffix[1:] for suffix in IMAGE_SUFFIXES)
            raise UserError(
                f"{class_folder / name} is no image file ({kinds})",
                "take it out of the class folder",
            )
    return [class_folder / name for name in names]


def _load(
    classes: dict[str, list[Path]], split: Split, size: int | None, limit: int | None
) -> LabelledImages:
    kept = [files[:limit] for files in classes.values()]
    paths = [path for files in kept for path in files]
    counts = torch.tensor([len(files) for files in kept])
    targets = torch.arange(len(kept)).repeat_interleave(counts)
    images = _in_memory(paths, size)
    if images is not None:
        return TensorImages(images, targets, split)
    for path in paths:
        image_size(path)  # find what is no image now, not in the middle of a run
    return FileImages(paths, targets, split, size or 224)


def _in_memory(paths: Sequence[Path], size: int | None) -> torch.Tensor | None:
    """All images, uint8 [N, 3, h, w], if they are small and of one size."""
    width, height = (size, size) if size else image_size(paths[0])
    if max(width, height) > _SMALL or 3 * width * height * len(paths) > _MEMORY:
        return None
    images = np.empty((len(paths), height, width, 3), dtype=np.uint8)
    for row, path in enumerate(paths):  # in one thread: on small files threads only wait in turn
        image = read_image(path, size)
        if image.shape != images.shape[1:]:
            return None
        images[row] = image
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
