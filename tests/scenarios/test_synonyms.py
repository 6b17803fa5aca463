"""Other words for classes: from a file, beside a folder, CIFAR-100's own; and where labels are renamed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from clapforget.errors import UserError
from clapforget.scenarios import ImageData, folder, read_synonyms
from clapforget.scenarios.cifar100_data import class_folders
from clapforget.scenarios.cifar100_words import SYNONYMS

MakeFolder = Callable[..., Path]


def test_words_are_read_by_class_name(make_folder: MakeFolder, tmp_path: Path) -> None:
    file = tmp_path / "words.yaml"
    file.write_text("Ant_hill: [formicary, ' nest ', nest]\ncow: bovine\n")
    found = read_synonyms(file, folder(make_folder()))
    assert found == {0: ("formicary", "nest"), 2: ("bovine",)}


def test_a_folder_brings_its_own(make_folder: MakeFolder) -> None:
    root = make_folder()
    assert folder(root).synonyms == {}
    (root / "synonyms.yaml").write_text("bee: [honey bee]\n")
    assert folder(root).synonyms == {1: ("honey bee",)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- cow\n", "holds no classes"), ("cow: 3\n", "'cow' has no list of words"),
        ("cow: ['']\n", "'cow' has no list"), ("cow: [3]\n", "'cow' has no list"),
        ("3: [cow]\n", "3 has no list of words"), ("dog: [hound]\n", "no class 'dog'"),
        ("cow: [Bee]\n", "'Bee' for 'cow' is 'bee' too"),
        ("cow: [beast]\nbee: [beast]\n", "'beast' for 'bee' is 'cow' too"),
        ("cow: [a\n", "cannot be read as synonyms"),
        ("cow: !!python/object/apply:os.getcwd []\n", "cannot be read as synonyms"),
        ("", "holds no classes"), ("[" * 5000, "cannot be read as synonyms"),
    ],
)  # fmt: skip
def test_a_file_that_will_not_do_is_told_in_a_line(
    text: str, words: str, make_folder: MakeFolder, tmp_path: Path
) -> None:
    file = tmp_path / "words.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=words) as error:
        read_synonyms(file, folder(make_folder()))
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_told(make_folder: MakeFolder, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read as synonyms"):
        read_synonyms(tmp_path / "none.yaml", folder(make_folder()))
    with pytest.raises(UserError, match="cannot be read as synonyms"):
        read_synonyms(tmp_path, folder(make_folder()))


def test_words_go_with_their_class_where_labels_are_renamed(small_lab: ImageData) -> None:
    data = replace(small_lab, synonyms={3: ("three",), 5: ("five", "cinque")})
    order = list(range(99, -1, -1))
    assert data.reorder(order).synonyms == {96: ("three",), 94: ("five", "cinque")}
    with pytest.raises(UserError, match="label 100 of the synonyms"):
        replace(small_lab, synonyms={100: ("none",)})


def test_every_word_of_cifar100_means_one_class_and_is_no_classes_name() -> None:
    assert set(SYNONYMS) <= set(class_folders())
    words = [word.casefold() for own in SYNONYMS.values() for word in own]
    assert len(set(words)) == len(words)
    assert not set(words) & {name.replace("_", " ") for name in class_folders()}
