"""Image files of any mode and size, decoded when they are needed."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clapforget.errors import UserError
from clapforget.scenarios.data import LabelledImages

__all__ = ["FileImages", "image_size", "read_image"]

R = TypeVar("R")
_WORKERS = min(8, os.cpu_count() or 1)


class FileImages(LabelledImages):
    """Images that stay in their files until they are asked for."""

    def __init__(
        self, paths: Sequence[Path], targets: Tensor | Sequence[int], split: str, size: int
    ) -> None:
        """:param paths: N image files. :param targets: labels [N].
        :param size: side of the square that images of another size are brought to, in pixels.
        :raises UserError: if the numbers of paths and labels differ.
        """
        super().__init__(targets, split)
        if len(paths) != len(self.targets):
            raise UserError(
                f"there are {len(paths)} {split} files and {len(self.targets)} labels",
                "give a label for each file",
            )
        self.paths = tuple(Path(path) for path in paths)
        self.size = size
        self._fingerprint = ""

    def images(self, indices: Tensor) -> Tensor:
        """:raises UserError: for a file that is no image or truncated."""
        if not len(indices):
            return torch.zeros(0, 3, self.size, self.size, dtype=torch.uint8)
        paths = [self.paths[i] for i in indices.tolist()]
        pixels = np.stack(list(_in_threads(lambda path: read_image(path, self.size), paths)))
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the size and every file's bytes, in row order. Read once, when asked for."""
        if not self._fingerprint:
            digest = hashlib.sha256(f"files {self.size}".encode())
            for part in _in_threads(lambda p: hashlib.sha256(_read(p)).digest(), self.paths):
                digest.update(part)
            self._fingerprint = digest.hexdigest()
        return self._fingerprint


def image_size(path: Path) -> tuple[int, int]:
    """Width and height, from the head of the file.

    :raises UserError: if it is no image.
    """
    try:
        with Image.open(path) as image:
            return image.size
    except Exception as error:  # every decoder has its own errors
        raise _unreadable(path, error) from error


def read_image(path: Path, size: int | None = None) -> np.ndarray:
    """Decode one file to uint8 [h, w, 3], whatever its mode (palette, grey, alpha, CMYK ...).

    :param size: bring an image of another size to this square: short side resized (bicubic),
        then the centre cropped. ``None`` keeps the size.
    :raises UserError: for a file that is no image, truncated or of no usual range, with its name.
    """
    data = _read(path)
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(_fit(_to_rgb(image), size))
    except UserError as error:
        raise UserError(f"image file {path}: {error}") from error
    except Exception as error:  # every decoder has its own errors; all mean: not a whole image
        raise _unreadable(path, error) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # keep the high bits, convert() would clip
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        return Image.fromarray(_to_bytes(np.asarray(image), image.mode == "F")).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_bytes(values: np.ndarray, floats: bool) -> np.ndarray:
    """Numbers whose range the file does not tell, by the narrowest usual one that holds them: floats
    in [0, 1], then 0 to 255, then 0 to 65535.

    :raises UserError: for numbers of another range.
    """
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 65535):  # nor where one is not a number
        raise UserError(
            f"its numbers lie between {low:g} and {high:g}", "save it with 0 to 255 a channel"
        )
    if floats and high <= 1:
        return (values * 255).round().astype(np.uint8)
    return (values if high <= 255 else values // 256).astype(np.uint8)


def _fit(image: Image.Image, size: int | None) -> Image.Image:
    if size is None or image.size == (size, size):
        return image
    short = min(image.size)
    width, height = (max(size, round(side * size / short)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> UserError:
    if isinstance(error, OSError) and error.strerror:
        return UserError(f"image file {path} cannot be read ({error.strerror})", "check the file")
    return UserError(
        f"file {path} is no image, or truncated ({type(error).__name__})",
        "replace it or take it out of the folder",
    )


def _in_threads(work: Callable[[Path], R], paths: Sequence[Path]) -> Iterator[R]:
    """``map`` in threads: decoders and hashes of large files let go of the interpreter's lock."""
    if len(paths) == 1:
        yield work(paths[0])
        return
    with ThreadPoolExecutor(_WORKERS) as pool:
        yield from pool.map(work, paths)
