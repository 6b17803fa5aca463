"""Images with captions in Flickr30K's layout, split by image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath

import torch
from torch import Tensor

from clapforget.errors import UserError
from clapforget.scenarios.data import ImageData, Split
from clapforget.scenarios.files import FileImages, image_size
from clapforget.seeding import generator_for

__all__ = ["CAPTION_FILES", "captioned"]

CAPTION_FILES = ("results_20130124.token", "results.csv")
_FOLDERS = ("flickr30k-images", "flickr30k_images", "images", "")
_SHOWN = 60
_LAYOUT = "lay it out as Flickr30K: results_20130124.token or results.csv beside a folder of images"


def captioned(
    path: str | Path, size: int = 224, test_part: float = 0.3, seed: int = 0
) -> ImageData:
    """A data set of captions, which has no classes: everything is one class, called ``photo``.

    Whole images go to train or test with all their captions: no caption of a train image is in test
    unless another image has the same one.

    :param path: a folder that holds ``results_20130124.token`` (``NAME.jpg#0<TAB>caption``) or
        ``results.csv`` (``NAME.jpg| 0| caption`` after titles, if any), and the images beside it
        or in ``flickr30k-images``, ``flickr30k_images`` or ``images``.
    :param size: side of the images, in pixels. :param test_part: of the images, above 0 and below 1.
    :param seed: of the split.
    :raises UserError: for another layout or encoding, a line that is none, or an image that is missing
        or outside the folder.
    """
    root = Path(path).expanduser()
    if not 0 < test_part < 1:
        raise UserError(f"a test part of {test_part}", "give a part between 0 and 1")
    file = next((root / name for name in CAPTION_FILES if (root / name).is_file()), None)
    if file is None:
        raise UserError(f"{root} holds no captions ({' or '.join(CAPTION_FILES)})", _LAYOUT)
    captions: dict[str, list[str]] = {}
    for name, caption in _lines(file):
        captions.setdefault(name, []).append(caption)
    names = sorted(captions)
    if len(names) < 2:
        raise UserError(f"{file} describes {len(names)} images", "give two or more")
    paths = [_find(root, name) for name in names]
    order = torch.randperm(len(names), generator=generator_for(seed, 41))
    cut = min(max(1, round(len(names) * test_part)), len(names) - 1)
    rows = {"test": order[:cut].sort().values.tolist(), "train": order[cut:].sort().values.tolist()}
    said = {split: [tuple(captions[names[i]]) for i in rows[split]] for split in rows}
    train, test = (
        FileImages([paths[i] for i in rows[split]], [0] * len(rows[split]), split, size)
        for split in ("train", "test")
    )
    return ImageData(
        name=root.resolve().name, class_names=("photo",), train=train, test=test,
        templates=("a {}",), captions=partial(_captions, said),
    )  # fmt: skip


def _captions(
    said: Mapping[str, Sequence[tuple[str, ...]]], split: Split, rows: Tensor
) -> list[tuple[str, ...]]:
    return [said[split][row] for row in rows.tolist()]


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    """Image name and caption of each line; captions may be empty nowhere."""
    token = file.suffix == ".token"
    for number, line in enumerate(_text(file).split("\n"), start=1):
        if not line.strip() or (number == 1 and not token and _is_title(line)):
            continue
        name, caption = _of_token(line) if token else _of_csv(line)
        if not name or not caption:
            raise UserError(f"{file}, line {number}, is no image and caption", _LAYOUT)
        if not _lies_within(name):
            raise UserError(
                f"{file}, line {number}, names an image outside the folder", "name images in it"
            )
        yield name, caption


def _of_token(line: str) -> tuple[str, str]:
    name, _, caption = line.partition("\t")
    return name.strip().rpartition("#")[0], caption.replace("\t", " ").strip()


def _of_csv(line: str) -> tuple[str, str]:
    name, _, rest = line.partition("|")
    number, bar, caption = rest.partition("|")
    if not bar:  # one row of Kaggle's Flickr30K has blanks where the second separator should be
        caption = number.strip().lstrip("0123456789")
        caption = caption if caption[:1].isspace() else ""
    return name.strip(), caption.replace("|", " ").strip()


def _is_title(line: str) -> bool:
    """Whether it names columns: no image file, and no number of a caption."""
    name, _, rest = line.partition("|")
    return not PurePosixPath(name.strip()).suffix and not rest.strip()[:1].isdigit()


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not in UTF-8 ({error.reason})", "save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror})", "check the file") from error


def _lies_within(name: str) -> bool:
    """Whether a name leads to no place above the folder or elsewhere, on any system."""
    return not any(
        path.is_absolute() or path.anchor or ".." in path.parts
        for path in (PurePosixPath(name), PureWindowsPath(name))
    )


def _find(root: Path, name: str) -> Path:
    for folder in _FOLDERS:
        path = root / folder / name
        try:
            there = path.is_file()
        except (OSError, ValueError):  # longer than any name can be, or with a null in it
            break
        if there:
            image_size(path)  # find what is no image now, not in the middle of a run
            return path
    shown = name if len(name) <= _SHOWN else f"{name[:_SHOWN]}…"
    raise UserError(f"{root} has no image {shown}, which its captions describe", _LAYOUT)
