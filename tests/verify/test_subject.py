"""A subject, and the material it is shown."""

from __future__ import annotations

import pytest
import torch

from clapforget import UserError
from clapforget.verify import Subject, material_from
from tests.verify.worlds import FORGET, RETAIN, clip, data, material, subject


def test_images_are_encoded_once() -> None:
    part = material().test["forget"]
    assert subject().features(part) is subject().features(part)


def test_bare_drops_the_head_and_keeps_what_was_worked_out() -> None:
    headed = Subject(clip(), lambda v, x: v[:, :3], [5, 6, 7], torch.ones(3, 4), {5: 1.0})
    part = material().test["forget"]
    v = headed.features(part)
    bare = headed.bare()
    assert bare.features(part) is v
    assert bare.answer is None
    assert bare.class_weights is None
    assert bare.column_labels(9).tolist() == list(range(9))
    assert headed.column_labels(9).tolist() == [5, 6, 7]
    assert [way.answer for way in headed.ways()] == [None, headed.answer]
    assert headed.ways()[0].features(part) is v
    assert [way.answer for way in bare.ways()] == [None]


def test_parts_play_one_role_and_attack_images_are_not_test_images() -> None:
    m = material()
    assert m.test["forget"].classes() == sorted(FORGET)
    assert m.test["retain"].classes() == sorted(RETAIN)
    assert not {*m.unseen} & {*FORGET, *RETAIN}
    pixels = {name: {i.numpy().tobytes() for i in part.images} for name, part in m.test.items()}
    for name, part in m.shots.items():
        assert not pixels[name] & {i.numpy().tobytes() for i in part.images}


def test_counts_are_those_asked_for() -> None:
    m = material_from(data(), [6], retain=RETAIN, unseen_classes=3, test_images=7, unseen_images=4)
    assert len(m.test["forget"]) == 7
    assert len(m.unseen) == 3
    assert [int((m.test["unseen"].labels == c).sum()) for c in sorted(m.unseen)] == [4, 4, 4]


def test_another_seed_shows_other_images() -> None:
    one, other = (
        material_from(data(), [6], test_images=5, seed=s).test["forget"].images for s in (1, 2)
    )
    assert not torch.equal(one, other)
    assert torch.equal(one, material_from(data(), [6], test_images=5, seed=1).test["forget"].images)


@pytest.mark.parametrize(
    ("forget", "more", "words"),
    [
        ([], {}, "names no class"),
        ([6], {"retain": [6, 7]}, "to be forgotten and in --retain"),
        ([6], {"unseen": [6]}, "to be forgotten and in --unseen"),
        ([6], {"retain": [1], "unseen": [1]}, "in --retain and in --unseen"),
        ([600], {}, "the request"),
    ],
)
def test_bad_parts_are_refused(forget: list[int], more: dict[str, list[int]], words: str) -> None:
    with pytest.raises(UserError, match=words):
        material_from(data(), forget, **more)  # type: ignore[arg-type]


def test_an_answer_without_a_column_falls_to_the_forgotten_ones() -> None:
    from clapforget.verify.witnesses.answers import own_or_any

    m = material()
    score = torch.tensor([[0.1, 0.2, 0.7], [0.5, 0.3, 0.2]])
    part = m.test["unseen"].first(1)
    part = type(part)(part.images[:2], part.labels[:2])
    got = own_or_any(score, torch.tensor([FORGET[0], FORGET[1], RETAIN[0]]), part, m)
    assert got.tolist() == pytest.approx([0.15, 0.4])
    own = type(part)(part.images, torch.tensor([FORGET[1], RETAIN[0]]))
    assert own_or_any(
        score, torch.tensor([FORGET[0], FORGET[1], RETAIN[0]]), own, m
    ).tolist() == pytest.approx([0.2, 0.2])


def test_names_are_tokenised_once_for_every_copy_of_a_model() -> None:
    asked: list[int] = []
    before = clip().trainable_copy([])
    tokenizer = before.tokenizer

    def counting(texts: list[str]) -> torch.Tensor:
        asked.append(len(texts))
        return tokenizer(texts)

    before.tokenizer = counting
    after = before.trainable_copy([])
    names, templates = ["girel", "konid"], ["a photo of a {}", "the {}"]
    found = [Subject(one).wordings(names, templates) for one in (before, after)]
    assert asked == [4]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], before.encode_names(names, templates))
