from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from clapforget.errors import UserError
from clapforget.lab import captions, draw
from clapforget.scenarios import captioned

INDEX = np.array([c + 100 * i for c in (10, 11, 12, 13, 14, 20, 21, 22) for i in range(25)])


def write(root, token=True):
    """Two hundred lab pictures in Flickr30K's layout, two captions each."""
    folder = root / "flickr30k-images"
    folder.mkdir(parents=True)
    lines = [] if token else ["image_name| comment_number| comment"]
    both = zip(captions("test", INDEX), captions("test", INDEX, variant=1))
    images = draw("test", INDEX).permute(0, 2, 3, 1).numpy()
    for i, (image, said) in enumerate(zip(images, both)):
        Image.fromarray(image).save(folder / f"{i}.png")
        for k, caption in enumerate(said):
            lines.append(f"{i}.png#{k}\t{caption}" if token else f"{i}.png| {k}| {caption}")
    name = "results_20130124.token" if token else "results.csv"
    (root / name).write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("pairs"))


def names(data, split):
    return [path.name for path in data.split(split).paths]


def test_every_image_has_its_captions_and_is_in_one_split(folder):
    data = captioned(folder, size=32)
    train, test = names(data, "train"), names(data, "test")
    assert len(train) == 140
    assert len(test) == 60
    assert not set(train) & set(test)
    for split in ("train", "test"):
        said = data.captions_of(split, torch.arange(len(data.split(split))))
        for name, own in zip(names(data, split), said):
            i = int(name.split(".")[0])
            one = INDEX[i : i + 1]
            assert own == (*captions("test", one), *captions("test", one, variant=1))


def test_the_seed_decides_the_split(folder):
    splits = [names(captioned(folder, 32, seed=s), "test") for s in (0, 0, 1)]
    assert splits[0] == splits[1] != splits[2]


def test_both_layouts_say_the_same(folder, tmp_path):
    one, other = captioned(folder, 32), captioned(write(tmp_path, token=False), 32)
    rows = torch.arange(len(one.test))
    assert one.captions_of("test", rows) == other.captions_of("test", rows)


def add(root, line):
    with (root / "results_20130124.token").open("a") as file:
        file.write(line)


def recode(root, encoding, more=""):
    path = root / "results_20130124.token"
    path.write_text(f"{path.read_text()}0.png#9\ta dog {more}\n", encoding=encoding)


def said_of(root, number):
    """The captions of one image, whichever split it is in."""
    data = captioned(root, size=32)
    for split in ("train", "test"):
        if f"{number}.png" in names(data, split):
            row = names(data, split).index(f"{number}.png")
            return data.captions_of(split, torch.tensor([row]))[0]
    raise AssertionError(number)


def test_a_mark_of_the_byte_order_is_no_part_of_a_name(tmp_path):
    recode(write(tmp_path), "utf-8-sig")
    assert len(said_of(tmp_path, 0)) == 3


def test_a_caption_may_be_long_and_hold_quotes(tmp_path):
    long = '"dog ' * 50_000
    add(write(tmp_path), f"0.png#9\t{long}\n")
    assert said_of(tmp_path, 0)[2] == long.strip()


@pytest.mark.parametrize(
    "titles", ["image_name| comment_number| comment\n", "image|n|caption\n", ""]
)
def test_only_titles_are_left_out_of_a_table(tmp_path, titles):
    path = write(tmp_path, token=False) / "results.csv"
    _, _, rows = path.read_text().partition("\n")
    path.write_text(titles + rows)
    one = INDEX[:1]
    assert said_of(tmp_path, 0) == (*captions("test", one), *captions("test", one, variant=1))


def test_a_row_without_its_second_separator_is_read(tmp_path):
    """Kaggle's Flickr30K has one such row."""
    path = write(tmp_path, token=False) / "results.csv"
    with path.open("a") as file:
        file.write("0.png| 4   A dog runs across the grass .\n")
    assert said_of(tmp_path, 0)[2] == "A dog runs across the grass ."


@pytest.mark.parametrize(
    "row", ["0.png| 4\n", "0.png|\n", "0.png| 4| \n", "0.png| a dog\n", "| 4| a dog\n"]
)
def test_a_row_that_lacks_a_part_is_named(tmp_path, row):
    path = write(tmp_path, token=False) / "results.csv"
    with path.open("a") as file:
        file.write(row)
    with pytest.raises(UserError, match="line 402, is no"):
        captioned(tmp_path, 32)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "results_20130124.token").unlink(), "holds no captions"),
        (lambda root: (root / "flickr30k-images" / "3.png").unlink(), "has no image 3.png"),
        (
            lambda root: (root / "results_20130124.token").write_text("0.png a dog\n"),
            "line 1, is no",
        ),
        (lambda root: (root / "results_20130124.token").write_text("0.png#0\ta\n"), "describes 1"),
        (
            lambda root: add(root, "../../secret.png#0\ta dog\n"),
            "line 401, names an image outside",
        ),
        (lambda root: add(root, f"{root.resolve()}/x.png#0\ta dog\n"), "names an image outside"),
        (lambda root: add(root, "C:\\x.png#0\ta dog\n"), "names an image outside"),
        (lambda root: add(root, "a" * 400 + ".png#0\ta dog\n"), "has no image aaa"),
        (lambda root: add(root, "a\0.png#0\ta dog\n"), "has no image a"),
        (lambda root: recode(root, "latin-1", "ein wei\xdfer Hund"), "token is not in UTF-8"),
        (lambda root: recode(root, "utf-16"), "token is not in UTF-8"),
    ],
)
def test_mistakes_are_named(tmp_path, spoil, message):
    root = write(tmp_path)
    spoil(root)
    with pytest.raises(UserError, match=message):
        captioned(root, 32)
