from __future__ import annotations

import pytest
import torch

import clapforget.lab as world
from clapforget.errors import UserError
from clapforget.scenarios import lab


def test_the_lab_is_the_built_in_world(small_lab):
    assert small_lab.class_names == world.class_names()
    assert small_lab.known == set(world.known_classes())
    assert small_lab.templates == world.TEMPLATES
    assert small_lab.neighbours([17]) == tuple(sorted(world.neighbours(17)))
    assert not small_lab.flip
    assert torch.bincount(small_lab.train.targets).tolist() == [4] * 100
    assert torch.bincount(small_lab.test.targets).tolist() == [2] * 100
    drawn = world.draw("test", [17, 117])
    assert torch.equal(small_lab.test.images(small_lab.rows("test", [17])), drawn)


def test_pixels_depend_on_split_and_seed_alone(small_lab):
    again = lab(4, 2, class_order=list(reversed(range(100))))
    assert again.train.fingerprint == small_lab.train.fingerprint
    assert again.class_names == small_lab.class_names[::-1]
    other = lab(1, 1, seed=1)
    assert other.train.fingerprint != lab(1, 1).train.fingerprint
    assert other.train.fingerprint != other.test.fingerprint


def test_no_images_are_a_mistake():
    with pytest.raises(UserError, match="0 train"):
        lab(train_per_class=0)
