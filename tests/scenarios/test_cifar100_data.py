from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from clapforget.errors import UserError
from clapforget.scenarios import cifar100
from clapforget.scenarios.cifar100_data import (
    DATA_VARIABLE,
    SUPERCLASSES,
    class_folders,
    known_classes,
    neighbours,
    new_classes,
    unseen_classes,
)


@pytest.fixture
def tiny_cifar(make_folder) -> Path:
    """A hundred class folders of the right names, one image in each."""
    return make_folder(class_folders(), train=1, test=1)


def test_the_split_of_the_classes():
    known, new, unseen = known_classes(), new_classes(), unseen_classes()
    assert (len(known), len(new), len(unseen)) == (60, 30, 10)
    assert sorted(known + new + unseen) == list(range(100))
    positions = [0] * 5
    for i, group in enumerate(SUPERCLASSES.values()):
        ids = [class_folders().index(name) for name in group]
        assert list(group) == sorted(group)
        assert sum(label in known for label in ids) == 3
        left = [label for label in ids if label not in known]
        assert [label in unseen for label in left] == [False, i % 2 == 0]
        for position, label in enumerate(ids):
            positions[position] += label in known
    assert positions == [12] * 5


def test_neighbours_are_the_rest_of_the_superclass():
    label = class_folders().index("otter")
    names = {class_folders()[near] for near in neighbours(label)}
    assert names == {"beaver", "dolphin", "seal", "whale"}
    assert all(label in neighbours(near) for label in range(100) for near in neighbours(label))


def test_data_is_found_by_path_parent_and_variable(tiny_cifar, tmp_path, monkeypatch):
    data = cifar100(tiny_cifar)
    assert data.name == "cifar100"
    assert data.class_names[class_folders().index("lawn_mower")] == "lawn mower"
    assert data.known == set(known_classes())
    assert data.flip
    shutil.move(tiny_cifar, tmp_path / "cifar100")
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    assert cifar100().train.fingerprint == cifar100(tmp_path / "cifar100").train.fingerprint


def test_data_that_is_not_there_or_not_whole(tiny_cifar, tmp_path, monkeypatch):
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    with pytest.raises(UserError, match=f"--data DIR or the variable {DATA_VARIABLE}"):
        cifar100()
    with pytest.raises(UserError, match="holds no CIFAR-100"):
        cifar100(tmp_path)
    (tmp_path / "cifar100.tar.xz").touch()
    with pytest.raises(UserError, match=r"unpack it \(tar -xf .*cifar100\.tar\.xz"):
        cifar100(tmp_path)
    for name in ("apple", "bear", "bee", "worm"):
        for split in ("train", "test"):
            shutil.rmtree(tiny_cifar / split / name)
    with pytest.raises(UserError, match=r"lacks 4 of its 100 classes \(apple, bear, bee\)"):
        cifar100(tiny_cifar)


@pytest.mark.skipif(DATA_VARIABLE not in os.environ, reason=f"needs CIFAR-100 in {DATA_VARIABLE}")
def test_the_real_data():
    data = cifar100(max_per_class=2)
    assert (len(data.train), len(data.test)) == (200, 200)
    assert data.train[0][0].shape == (3, 32, 32)
