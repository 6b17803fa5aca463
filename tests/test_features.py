from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from clapforget import lab
from clapforget.clip import Clip
from clapforget.features import FeatureCache


class Drawn:
    """A hundred images of the lab, with a count of how often each was read."""

    def __init__(self, split: str = "train") -> None:
        self.fingerprint = split
        self.read = torch.zeros(100, dtype=torch.long)
        self.pixels = lab.draw(split, range(100))

    def images(self, indices: Tensor) -> Tensor:
        self.read += torch.bincount(indices, minlength=100)
        return self.pixels[indices]

    def __len__(self) -> int:
        return 100


@pytest.fixture
def cache(lab_clip: Clip) -> FeatureCache:
    return FeatureCache(lab_clip)


def test_features_are_those_of_the_model_whatever_the_order(cache: FeatureCache) -> None:
    source, rows = Drawn(), torch.tensor([5, 3, 5, 99, 0])
    wanted = cache.clip.encode_image(source.pixels[rows])
    for _ in range(2):
        torch.testing.assert_close(cache(source, rows), wanted, atol=1e-5, rtol=0)
    assert cache(source, torch.tensor([], dtype=torch.long)).shape == (0, cache.clip.width)


def test_each_image_is_encoded_once(cache: FeatureCache) -> None:
    source = Drawn()
    cache(source, torch.tensor([1, 2, 2, 3]))
    assert cache.encoded == 3
    cache(source, torch.arange(10))
    assert cache.encoded == 10
    cache(source, torch.arange(10).flip(0))
    assert cache.encoded == 10
    assert source.read[:10].eq(1).all() and source.read.sum() == 10


def test_mirrored_views_and_other_data_are_kept_apart(cache: FeatureCache) -> None:
    source, other, rows = Drawn(), Drawn("test"), torch.arange(4)
    plain, mirrored = cache(source, rows), cache(source, rows, mirrored=True)
    assert cache.encoded == 8
    torch.testing.assert_close(
        mirrored, cache.clip.encode_image(source.pixels[rows].flip(-1)), atol=1e-5, rtol=0
    )
    assert (plain - mirrored).norm(dim=1).min() > 1e-3
    assert (cache(other, rows) - plain).norm(dim=1).min() > 1e-3


def test_dropped_rows_are_zeroed_in_every_view_and_others_stay(cache: FeatureCache) -> None:
    source, rows = Drawn(), torch.arange(6)
    cache(source, rows), cache(source, rows, mirrored=True)
    cache.drop(source, torch.tensor([2, 4]))
    for store in cache._features.values():
        assert not store[[2, 4]].any()
        assert store[[0, 1, 3, 5]].any(1).all()
    cache(source, rows)
    assert cache.encoded == 12 + 2  # those that were dropped, and no other
    cache.drop(Drawn("test"), rows)  # never seen: nothing to do


def moved(clip: Clip, name: str) -> Clip:
    other = copy.deepcopy(clip)
    with torch.no_grad():
        dict(other.model.named_parameters())[name].mul_(1.5)
    return other


def test_another_text_tower_keeps_the_features(cache: FeatureCache) -> None:
    source = Drawn()
    before = cache(source, torch.arange(3))
    other = moved(cache.clip, "text_projection")
    assert not cache.use(other)
    assert cache.clip is other
    assert torch.equal(cache(source, torch.arange(3)), before)
    assert cache.encoded == 3


def test_another_image_tower_drops_them_all(cache: FeatureCache) -> None:
    source = Drawn()
    before = cache(source, torch.arange(3))
    original = cache.clip
    assert cache.use(moved(original, "visual.conv1.weight"))
    after = cache(source, torch.arange(3))
    assert cache.encoded == 6
    assert (after - before).norm(dim=1).min() > 1e-4
    assert cache.use(original)
    torch.testing.assert_close(cache(source, torch.arange(3)), before)


def test_nothing_remembers_a_graph(lab_clip: Clip) -> None:
    cache = FeatureCache(lab_clip.trainable_copy())
    assert not cache(Drawn(), torch.arange(2)).requires_grad


def test_caches_of_one_tower_can_share_until_it_changes(cache: FeatureCache) -> None:
    source, rows = Drawn(), torch.arange(4)
    other = FeatureCache(cache.clip)
    other.share(cache)
    first = other(source, rows)
    assert torch.equal(cache(source, rows), first) and source.read.sum() == 4
    changed = copy.deepcopy(cache.clip)
    with torch.no_grad():
        next(changed.model.visual.parameters()).mul_(1.5)
    assert other.use(changed)
    other(source, rows)
    assert torch.equal(cache(source, rows), first) and source.read.sum() == 8
