from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from clapforget.errors import UserError
from clapforget.scenarios import FileImages
from clapforget.scenarios.files import read_image


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        ("L", "png"), ("1", "png"), ("P", "gif"), ("P", "png"), ("RGBA", "png"), ("LA", "png"),
        ("CMYK", "jpg"), ("RGB", "jpg"), ("RGB", "webp"), ("RGB", "bmp"), ("RGB", "tiff"),
        ("RGB", "ppm"),
    ],
)  # fmt: skip
def test_every_mode_and_format_becomes_rgb(write_image, tmp_path, mode, suffix):
    path = tmp_path / f"image.{suffix}"
    write_image(path, (20, 16), mode)
    image = read_image(path)
    assert (image.shape, image.dtype) == ((16, 20, 3), np.uint8)
    assert image.std() > 10


def test_lossless_pixels_come_back_as_they_were(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png"), pixels)


def test_sixteen_bits_keep_their_range(tmp_path):
    deep = (np.arange(64, dtype=np.uint16) * 1024).reshape(8, 8)
    Image.fromarray(deep).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png")[..., 0], (deep >> 8).astype(np.uint8))


@pytest.mark.parametrize(
    ("scale", "kind"),
    [(1, np.int32), (257, np.int32), (1 / 255, np.float32), (1, np.float32), (257, np.float32)],
    ids=["I-8-bit", "I-16-bit", "F-1", "F-255", "F-65535"],
)
def test_numbers_of_any_usual_range_keep_it(tmp_path, scale, kind):
    grey = np.arange(256).reshape(16, 16)
    Image.fromarray((grey * scale).astype(kind)).save(tmp_path / "a.tiff")
    image = read_image(tmp_path / "a.tiff")
    assert np.array_equal(image, np.stack([grey] * 3, 2))


@pytest.mark.parametrize(
    "values", [[-1.0, 1.0], [0.0, 1e6], [0.0, float("nan")], [-3, 4], [0, 70_000]]
)
def test_numbers_of_another_range_are_refused(tmp_path, values):
    kind = np.float32 if isinstance(values[0], float) else np.int32
    Image.fromarray(np.array([values] * 2, dtype=kind)).save(tmp_path / "a.tiff")
    with pytest.raises(UserError, match=r"a\.tiff: its numbers lie between"):
        read_image(tmp_path / "a.tiff")


def test_another_size_is_resized_by_the_short_side_and_cropped_in_the_centre(tmp_path):
    wide = np.zeros((10, 30, 3), dtype=np.uint8)
    wide[:, 10:20] = 255  # what stays after the crop
    Image.fromarray(wide).save(tmp_path / "wide.png")
    Image.fromarray(wide.transpose(1, 0, 2)).save(tmp_path / "tall.png")
    images = FileImages([tmp_path / "wide.png", tmp_path / "tall.png"], [0, 1], "train", 20)
    batch = images.images(torch.tensor([0, 1]))
    assert (batch.shape, batch.dtype) == ((2, 3, 20, 20), torch.uint8)
    assert batch[..., 4:-4, 4:-4].min() > 240
    assert torch.equal(batch[0], batch[1].transpose(1, 2))


def test_batches_follow_the_rows_asked_for(tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for i, path in enumerate(paths):
        Image.new("RGB", (4, 4), (40 * i, 0, 0)).save(path)
    images = FileImages(paths, range(5), "train", 4)
    assert images.images(torch.tensor([4, 0, 2]))[:, 0, 0, 0].tolist() == [160, 0, 80]
    assert images.images(torch.tensor([], dtype=torch.int64)).shape == (0, 3, 4, 4)
    assert images[3][0][0, 0, 0].item() == pytest.approx(120 / 255)
    assert images[3][1] == 3


def test_fingerprint_follows_content_rows_and_size_only(write_image, tmp_path):
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    write_image(paths[0], seed=1)
    write_image(paths[1], seed=2)
    first = FileImages(paths, [0, 1], "train", 8).fingerprint
    assert FileImages(paths, [1, 0], "train", 8).fingerprint == first
    assert FileImages(paths[::-1], [0, 1], "train", 8).fingerprint != first
    assert FileImages(paths, [0, 1], "train", 4).fingerprint != first
    write_image(paths[1], seed=3)
    assert FileImages(paths, [0, 1], "train", 8).fingerprint != first


def test_a_broken_file_is_named(write_image, tmp_path):
    whole, cut, text = tmp_path / "whole.png", tmp_path / "cut.png", tmp_path / "text.png"
    write_image(whole, (30, 30))
    cut.write_bytes(whole.read_bytes()[:900])
    text.write_text("no image")
    for path in (cut, text):
        with pytest.raises(UserError, match=path.name):
            FileImages([whole, path], [0, 0], "train", 8).images(torch.tensor([0, 1]))
    with pytest.raises(UserError, match=r"gone\.png cannot be read"):
        FileImages([tmp_path / "gone.png"], [0], "train", 8)[0]
