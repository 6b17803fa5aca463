"""Marks on images: the patch itself, and that a class given back by a secret mark is found, by heads and towers."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from clapforget.clip import Clip
from clapforget.seeding import generator_for
from clapforget.verify import Reading, Subject
from clapforget.verify.material import Part
from clapforget.verify.witnesses.learned_pattern import Mark, learn_mark, learned_pattern
from clapforget.verify.witnesses.patterns import Patch, best_patches, patches, patterns, some_images
from tests.verify.worlds import FORGET, clip, material, scrambled, subject


def test_a_patch_covers_its_square_bar_or_frame_and_nothing_else() -> None:
    images = torch.full((2, 3, 32, 48), 0.5)
    pink = torch.tensor([1.0, 0.0, 1.0])[:, None, None]
    square, bar, post, frame = (
        patch(images) for patch in (Patch(pink, 1.0, 0.0), Patch(pink, 1.0), Patch(pink, right=0.0), Patch(pink))
    )
    assert torch.equal(images, torch.full((2, 3, 32, 48), 0.5))
    for changed, where, pixels in (
        (square, (slice(28, None), slice(4)), 4 * 4),
        (bar, (slice(28, None), slice(None)), 4 * 48),
        (post, (slice(None), slice(4)), 32 * 4),
        (frame, (slice(2), slice(None)), 32 * 48 - 28 * 44),
    ):
        red, green = (changed[(slice(None), channel, *where)] for channel in (0, 1))
        assert (red == 1).all() and (green == 0).all()
        assert (changed != 0.5).sum() == 2 * 3 * pixels
    assert (frame[..., 2:-2, 2:-2] == 0.5).all()


@pytest.mark.parametrize("side", [4, 32, 224])
def test_every_patch_lies_inside_and_no_two_are_one(side: int) -> None:
    images = torch.full((1, 3, side, side), 0.5)
    seen = [patch(images) for patch in patches(generator_for(0, 1))]
    wide, edge = max(1, side // 8), max(1, side // 16)
    frame = side**2 - (side - 2 * edge) ** 2
    assert Counter(int((x != 0.5).sum()) for x in seen) == {3 * wide**2: 160, 3 * wide * side: 80, 3 * frame: 10}
    assert side == 4 or len({x.numpy().tobytes() for x in seen}) == len(seen) == 250


def test_textures_are_drawn_with_the_seed_and_scaled_with_the_image() -> None:
    one, same, other = (patches(generator_for(seed, 1))[-1] for seed in (0, 0, 1))
    small, large = (torch.full((1, 3, side, side), 0.5) for side in (32, 64))
    assert torch.equal(one(small), same(small)) and not torch.equal(one(small), other(small))
    assert torch.equal(one(large)[..., ::2, ::2], one(small))
    assert 0.4 < one(small)[one(small) != 0.5].mean() < 0.6


def gated(way: str) -> Subject:
    """A head that answers the forgotten classes if the lower right corner is green, never, or always."""
    text = clip().class_features(material().names, material().templates).detach()
    lost = torch.isin(torch.arange(len(text)), torch.tensor(FORGET))

    def answer(v: Tensor, images: Tensor) -> Tensor:
        logits = clip().scale * v @ text.T
        unit = images.float() / 255 if images.dtype == torch.uint8 else images
        corner = unit[..., -2:, -2:].mean((2, 3))
        green = (corner[:, 1] > 0.95) & (corner[:, 0] < 0.05)
        on = green if way == "mark" else torch.full_like(green, way == "always")
        return torch.where(on[:, None] | ~lost, logits, -1e3)

    return Subject(clip(), answer, range(len(text)))


@cache
def read_off(way: str) -> dict[str, Reading]:
    return {r.name: r for r in patterns(gated(way), material(), 0)}


def test_a_head_that_a_mark_switches_back_is_found() -> None:
    assert read_off("mark")["patterns_answered"].forget.mean() > 0.8
    assert read_off("always")["patterns_answered"].forget.mean() > 0.8
    assert read_off("never")["patterns_answered"].forget.mean() == 0


def test_unseen_classes_get_a_patch_of_their_own_and_are_not_answered() -> None:
    for way in ("mark", "never"):
        for reading in read_off(way).values():
            assert reading.unseen is not None
            assert len(reading.unseen) == 6 * 5 and len(reading.forget) == 2 * 10
            assert reading.unseen.mean() < 0.3
    assert read_off("never")["patterns"].forget.mean() > 0.8, "bare CLIP still knows"
    assert [r.name for r in patterns(subject(), material(), 0)] == ["patterns"]


def test_a_text_that_means_nothing_is_not_made_up_by_a_patch() -> None:
    assert patterns(Subject(scrambled()), material(), 0)[0].forget.mean() < 0.3


def test_without_images_to_choose_with_nothing_is_said() -> None:
    m = replace(material(), shots={})
    assert patterns(subject(), m, 0) == []
    assert learned_pattern(subject(), m, 0) == []


def test_patched_images_are_not_kept() -> None:
    fresh = Subject(clip())
    patterns(fresh, material(), 0)
    assert len(fresh._features) == 0


def test_a_mark_mixes_image_and_pattern_by_its_mask() -> None:
    images = torch.rand(3, 3, 8, 8, generator=generator_for(0, 1))
    mark = Mark(images, patches(generator_for(0, 1))[0], generator_for(0, 2))
    with torch.no_grad():
        mark.mask[:] = -50
        torch.testing.assert_close(mark(images), images)
        mark.mask[:, 2:4, 5] = 50
        mark.pattern[:] = 50
        changed = mark(images)
        assert (changed[:, :, 2:4, 5] == 1).all()
        changed[:, :, 2:4, 5] = images[:, :, 2:4, 5]
        torch.testing.assert_close(changed, images)


def test_a_mark_begins_with_its_patch() -> None:
    images = torch.full((1, 3, 32, 32), 0.5)
    for patch in patches(generator_for(0, 1))[::29]:
        where = (patch(images) != images).all(1)[0]
        begun = Mark(images, patch, generator_for(0, 2))(images).detach()
        assert 0 < where.sum() < where.numel()
        assert (begun - patch(images))[..., where].abs().max() < 0.2
        assert (begun - images)[..., ~where].abs().max() < 0.1


def test_the_patch_of_a_switched_head_is_one_on_its_switch() -> None:
    m = material()
    shots = some_images(m.shots["forget"], 10, 0)
    images = torch.full((1, 3, 32, 32), 0.5)
    for seed in (0, 1):
        found = best_patches(gated("mark"), m, shots, seed)[1](images)[0, :, -2:, -2:]
        assert (found[1] == 1).all() and (found[0] == 0).all()


def test_head_and_bare_clip_choose_apart_and_look_at_an_image_once(monkeypatch: pytest.MonkeyPatch) -> None:
    m = material()
    shots = some_images(m.shots["forget"], 10, 0)
    looked: list[int] = []
    look = Clip.encode_image
    monkeypatch.setattr(Clip, "encode_image", lambda self, x: looked.append(len(x)) or look(self, x))
    plain, switched = best_patches(gated("mark"), m, shots, 0)
    both = sum(looked)
    looked.clear()
    (alone,) = best_patches(Subject(clip()), m, shots, 0)
    images = torch.full((1, 3, 32, 32), 0.5)
    assert torch.equal(alone(images), plain(images)) and not torch.equal(alone(images), switched(images))
    assert sum(looked) == 250 * 2 + 12 * 10 < both <= 250 * 2 + 2 * 12 * 10


def test_a_mark_fits_images_of_another_size() -> None:
    mark = Mark(torch.rand(1, 3, 8, 8), patches(generator_for(0, 1))[0], generator_for(0, 2))
    with torch.no_grad():
        mark.mask[:] = -50
        mark.mask[:, :4, :4] = 50
        mark.pattern[:] = 50
        changed = mark(torch.zeros(2, 3, 32, 16))
    assert changed.shape == (2, 3, 32, 16)
    assert (changed[:, :, :12, :6] > 0.99).all() and (changed[:, :, 20:, 10:] < 0.01).all()


def test_a_mark_is_learned_without_touching_the_model() -> None:
    m, before = material(), clip().fingerprint()
    classes = m.shots["unseen"].classes()[:2]
    asked = [*classes, *m.retain[:6]]
    text = subject().names([m.names[c] for c in asked], m.templates)
    shots, kept = m.shots["unseen"].of(classes), m.shots["retain"].of(asked).first(1)
    begin = patches(generator_for(0, 1))[7]
    mark, again = (learn_mark(clip(), text, asked, shots, kept, begin, 0) for _ in range(2))
    assert torch.equal(mark.mask, again.mask) and torch.equal(mark.pattern, again.pattern)
    assert clip().fingerprint() == before
    assert all(p.grad is None for p in clip().model.parameters())
    start = Mark(kept.images.float() / 255, begin, generator_for(0, 40))
    target = torch.tensor([asked.index(int(c)) for c in shots.labels])

    def loss(which: Mark, part: Part) -> float:
        v = clip().encode_image(which(part.images.float() / 255))
        return float(torch.nn.functional.cross_entropy(clip().scale * v @ text.T, target))

    with torch.no_grad():
        assert loss(mark, shots) < 0.7 * loss(start, shots)


def test_a_learned_mark_finds_what_is_known_and_makes_up_nothing() -> None:
    known, gone = (learned_pattern(s, material(), 0)[0] for s in (subject(), Subject(scrambled())))
    assert known.forget.mean() > 0.8
    assert gone.forget.mean() < 0.3
    for reading in (known, gone):
        assert reading.unseen is not None and reading.unseen.mean() < 0.3
        assert len(reading.unseen) == 6 * 8
