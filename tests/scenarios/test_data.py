from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from avalanche.benchmarks import class_incremental_benchmark
from torch.utils.data import DataLoader

from clapforget.errors import UserError
from clapforget.scenarios import TensorImages


@pytest.fixture
def order(small_lab):
    return np.random.default_rng(3).permutation(small_lab.num_classes).tolist()


def test_a_sample_is_a_float_image_and_an_int_label(small_lab):
    image, label = small_lab.train[7]
    assert image.shape == (3, 32, 32)
    assert image.dtype == torch.float32
    assert 0 <= image.min() < image.max() <= 1
    assert (type(label), label) == (int, 7)
    assert torch.equal((image * 255).round().byte(), small_lab.train.images(torch.tensor([7]))[0])


def test_indexing_ends_where_the_images_end(small_lab):
    assert len(list(small_lab.test)) == len(small_lab.test) == 200
    assert torch.equal(small_lab.test[-1][0], small_lab.test[199][0])
    with pytest.raises(IndexError):
        small_lab.test[200]


def test_batches_come_from_an_ordinary_loader(small_lab):
    images, labels = next(iter(DataLoader(small_lab.train, batch_size=16)))
    assert images.shape == (16, 3, 32, 32)
    assert labels.tolist() == list(range(16))


def test_reorder_renames_classes_and_leaves_pixels_in_their_rows(small_lab, order):
    shuffled = small_lab.reorder(order)
    for split in ("train", "test"):
        before, after = small_lab.split(split), shuffled.split(split)
        assert torch.equal(torch.tensor(order)[after.targets], before.targets)
        assert before.fingerprint == after.fingerprint
        rows = torch.arange(len(before))
        assert torch.equal(before.images(rows), after.images(rows))
    assert shuffled.class_order == tuple(order)
    for label, canonical in enumerate(order):
        assert shuffled.class_names[label] == small_lab.class_names[canonical]
        assert (label in shuffled.known) == (canonical in small_lab.known)
        back = {order[near] for near in shuffled.neighbour_sets[label]}
        assert back == small_lab.neighbour_sets[canonical]
        rows = shuffled.rows("test", [label])
        assert torch.equal(rows, small_lab.rows("test", [canonical]))


def test_reorderings_compose(small_lab, order):
    twice = small_lab.reorder(order).reorder(order)
    assert twice.class_order == tuple(order[label] for label in order)
    assert torch.equal(
        torch.tensor(twice.class_order)[twice.train.targets], small_lab.train.targets
    )


@pytest.mark.parametrize("wrong", [[0, 1], [*range(99), 98], list(range(1, 101))])
def test_an_order_that_is_no_permutation_is_refused(small_lab, wrong):
    with pytest.raises(UserError, match="no permutation"):
        small_lab.reorder(wrong)


def test_neighbours_leave_out_the_given_classes(small_lab):
    assert small_lab.neighbours([0]) == tuple(sorted(small_lab.neighbour_sets[0]))
    assert 1 in small_lab.neighbours([0])
    both = small_lab.neighbours([0, 1])
    assert both == tuple(
        sorted((small_lab.neighbour_sets[0] | small_lab.neighbour_sets[1]) - {0, 1})
    )
    assert replace(small_lab, neighbour_sets=()).neighbours([0]) == ()


def test_rows_are_ascending_and_complete(small_lab):
    rows = small_lab.rows("train", [5, 2])
    assert rows.tolist() == [2, 5, 102, 105, 202, 205, 302, 305]
    assert small_lab.rows("train", []).tolist() == []


def test_label_of(small_lab):
    name = small_lab.class_names[42]
    assert small_lab.label_of(name) == small_lab.label_of(name.upper()) == 42
    with pytest.raises(UserError, match=f"no class '{name}x'; did you mean {name}"):
        small_lab.label_of(name + "x")


def test_unknown_labels_and_splits_are_refused(small_lab):
    with pytest.raises(UserError, match="label 100"):
        small_lab.rows("train", [100])
    with pytest.raises(UserError, match="label -1"):
        small_lab.neighbours([-1])
    with pytest.raises(UserError, match="no split 'valid'"):
        small_lab.rows("valid", [1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"templates": ("a photo",)}, "'a photo'"),
        ({"templates": ()}, "template"),
        ({"templates": ("a {} {name}",)}, "{name}"),
        ({"known": frozenset([100])}, "label 100 of the known classes"),
        ({"neighbour_sets": (frozenset(),)}, "1 neighbour sets for 100"),
        ({"class_names": ("a",) * 100}, "called 'a'"),
        ({"class_names": ("a", "b"), "known": None, "neighbour_sets": ()}, "train targets"),
    ],
)
def test_data_that_contradicts_itself_is_refused(small_lab, changes, message):
    with pytest.raises(UserError, match=message):
        replace(small_lab, **changes)


def test_fingerprint_identifies_pixels_and_not_labels():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (3, 3, 4, 4), generator=generator, dtype=torch.uint8)
    first = TensorImages(pixels, [0, 1, 2], "train").fingerprint
    assert TensorImages(pixels.clone(), [2, 1, 0], "train").fingerprint == first
    other = pixels.clone()
    other[2, 1, 3, 3] ^= 1
    assert TensorImages(other, [0, 1, 2], "train").fingerprint != first
    assert TensorImages(pixels.view(3, 3, 2, 8), [0, 1, 2], "train").fingerprint != first
    assert TensorImages(pixels.flip(0), [0, 1, 2], "train").fingerprint != first


def test_images_of_another_type_or_number_are_refused():
    with pytest.raises(UserError, match="uint8"):
        TensorImages(torch.zeros(2, 3, 4, 4), [0, 1], "train")
    with pytest.raises(UserError, match="2 train images and 1 labels"):
        TensorImages(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), [0], "train")


def test_avalanche_reads_the_targets(small_lab):
    benchmark = class_incremental_benchmark(
        {"train": small_lab.train, "test": small_lab.test},
        num_experiences=5,
        class_order=list(range(100)),
    )
    assert benchmark.train_stream[1].classes_in_this_experience == set(range(20, 40))
