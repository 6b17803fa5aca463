from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from clapforget.errors import UserError
from clapforget.scenarios import FileImages, TensorImages, folder


def test_small_images_are_read_into_memory(make_folder):
    root = make_folder(size=(8, 6))
    data = folder(root)
    assert isinstance(data.train, TensorImages)
    assert data.name == "things"
    assert data.class_names == ("ant hill", "bee", "cow")
    assert data.train.targets.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert data.test.targets.tolist() == [0, 0, 1, 1, 2, 2]
    with Image.open(root / "train" / "bee" / "2.png") as image:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    assert torch.equal(data.train.images(torch.tensor([5]))[0], pixels)
    assert data.known is None


def test_large_images_stay_in_their_files(make_folder):
    data = folder(make_folder(size=(100, 80)))
    assert isinstance(data.train, FileImages)
    assert data.train.images(torch.tensor([0, 4])).shape == (2, 3, 224, 224)
    assert data.test[0][0].shape == (3, 224, 224)


def test_images_of_different_sizes_come_out_in_one(write_image, make_folder):
    root = make_folder()
    write_image(root / "train" / "cow" / "big.png", (40, 20))
    data = folder(root, size=96)
    assert data.train.images(torch.arange(len(data.train))).shape == (10, 3, 96, 96)
    small = folder(root, size=12)
    assert isinstance(small.train, TensorImages)
    assert small.train.images(torch.arange(10)).shape == (10, 3, 12, 12)
    assert folder(root).train.images(torch.tensor([0])).shape == (1, 3, 224, 224)


def test_options(make_folder):
    root = make_folder()
    data = folder(root, name="pets", templates=["my {}"], known=["Ant_hill", 2], max_per_class=1)
    assert (data.name, data.templates, data.known) == ("pets", ("my {}",), {0, 2})
    assert (len(data.train), len(data.test)) == (3, 3)
    with pytest.raises(UserError, match="no class 'dog'"):
        folder(root, known=["dog"])
    with pytest.raises(UserError, match="max_per_class"):
        folder(root, max_per_class=0)


def test_hidden_files_are_ignored_and_suffixes_know_no_case(make_folder):
    root = make_folder()
    (root / "train" / ".cache").mkdir()
    (root / "train" / "bee" / ".DS_Store").write_text("x")
    (root / "train" / "bee" / "0.png").rename(root / "train" / "bee" / "0.PNG")
    assert len(folder(root).train) == 9


def test_fingerprints_of_the_splits_differ_and_stay(write_image, make_folder):
    root = make_folder()
    data = folder(root)
    assert data.train.fingerprint != data.test.fingerprint
    assert folder(root).train.fingerprint == data.train.fingerprint
    write_image(root / "train" / "cow" / "1.png", seed=77)
    assert folder(root).train.fingerprint != data.train.fingerprint


def test_a_layout_that_will_not_do_is_named(make_folder, tmp_path):
    root = make_folder()

    def refused(message: str) -> None:
        with pytest.raises(UserError, match=message):
            folder(root)

    with pytest.raises(UserError, match="nowhere does not exist"):
        folder(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"0\.png is a file"):
        folder(root / "train" / "bee" / "0.png")
    shutil.move(root / "test" / "cow", tmp_path / "cow")
    refused("train/cow has no counterpart in .*test")
    shutil.move(root / "train" / "cow", tmp_path / "train_cow")
    shutil.move(tmp_path / "cow", root / "test" / "cow")
    refused("test/cow has no counterpart in .*train")
    (root / "train" / "cow").mkdir()
    refused("train/cow holds no image")
    (root / "train" / "cow").rmdir()
    shutil.rmtree(root / "test")
    refused("no folder test/")
    (root / "test").mkdir()
    refused("test holds no class folder")


@pytest.mark.parametrize("size", [(8, 8), (100, 100)])
def test_a_file_that_is_no_image_is_named(make_folder, size):
    root = make_folder(size=size)
    bad = root / "test" / "bee" / "9.png"
    bad.write_text("no image")
    with pytest.raises(UserError, match=r"test/bee/9\.png is no image"):
        folder(root)
    bad.rename(bad.with_suffix(".txt"))
    with pytest.raises(UserError, match=r"test/bee/9\.txt is no image file"):
        folder(root)
