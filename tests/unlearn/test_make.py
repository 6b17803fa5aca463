from __future__ import annotations

import dataclasses

import pytest
import torch

from clapforget.errors import UserError
from clapforget.unlearn import FORGETTERS, ForgetTask, Pairs, make_forgetter
from clapforget.unlearn.base import generator_for


@pytest.mark.parametrize("name", FORGETTERS.names())
def test_every_forgetter_can_be_made_in_every_preset(name: str) -> None:
    cls = FORGETTERS.get(name)
    assert "default" in cls.presets
    for preset in cls.presets:
        made = make_forgetter(f"{name}:{preset}")
        assert type(made) is cls
        for key, value in cls.presets[preset].items():
            assert getattr(made.settings, key) == value
    assert make_forgetter(name).settings == cls().settings or not dataclasses.is_dataclass(
        cls.Settings
    )


def test_the_expected_ones_are_there() -> None:
    controls = {"nothing", "hide", "random-edit", "finetune"}
    trained = {"cliperase", "gradient-ascent", "grad-diff", "salun", "multidelete", "munba"}
    assert controls | trained <= set(FORGETTERS.names())


def test_overrides_go_before_the_preset() -> None:
    settings = make_forgetter("cliperase:published", {"lr": 1, "train": "image"}).settings
    assert (settings.lr, settings.train, settings.retain_weight) == (1.0, "image", 1.0)
    assert isinstance(settings.lr, float)


@pytest.mark.parametrize(
    ("name", "overrides", "says"),
    [
        ("cliperas", {}, "did you mean cliperase"),
        ("cliperase:publshed", {}, "no preset 'publshed'; choose: default, published"),
        ("nothing:published", {}, "no preset"),
        ("cliperase", {"steeps": 3}, "no setting 'steeps'; choose: .*steps"),
        ("nothing", {"steps": 3}, "no setting 'steps'; choose: none"),
        ("cliperase", {"steps": 1.5}, "steps=1.5 .*; give a whole number"),
        ("cliperase", {"steps": True}, "steps=True"),
        ("cliperase", {"lr": "fast"}, "lr='fast' .*; give a number"),
        ("cliperase", {"lr": False}, "lr=False"),
        ("cliperase", {"forgetting": "cube"}, "give one of dot, square, floor, neg-ce"),
        ("random-edit", {"train": "audio"}, "give one of all, image, text"),
    ],
)
def test_mistakes_are_answered_in_one_line(name: str, overrides: dict, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        make_forgetter(name, overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [{"forget_batch": 0}, {"retain_batch": -1}, {"lr": -1.0}, {"lr": float("nan")},
     {"steps": -1}, {"steps": 0, "epochs": 0}],
)  # fmt: skip
def test_a_value_that_cannot_work_is_refused_before_the_run(overrides: dict, lab_clip) -> None:
    with pytest.raises(UserError):
        make_forgetter("cliperase", overrides).unlearn(
            lab_clip, ForgetTask(Pairs(torch.zeros(2, 3, 32, 32), ["a", "b"]), none())
        )


def none() -> Pairs:
    return Pairs(torch.zeros(0, 3, 32, 32), [])


def test_pairs_need_a_name_each() -> None:
    with pytest.raises(UserError, match="2 images and 1 names"):
        Pairs(torch.zeros(2, 3, 32, 32), ["a"])
    assert len(none()) == 0


def test_generators_are_apart_by_seed_and_purpose() -> None:
    def draw(*key: int) -> list[int]:
        return torch.randint(10**6, (5,), generator=generator_for(*key)).tolist()

    assert draw(1, 2) == draw(1, 2)
    assert len({tuple(draw(*key)) for key in [(1, 2), (2, 1), (1, 3), (1,), (3, 2)]}) == 5


@pytest.mark.parametrize(
    ("names", "templates", "told", "captions"),
    [
        (["a cat", "a dog on grass", "a red cat"], ("{}",), None, True),
        (["a cat", "a cat", "a dog on grass", "a red cat"], ("{}",), None, True),
        (["cat", "cat", "dog", "dog"], ("{}",), None, False),
        (["cat"], ("{}",), None, False),
        (["cat", "dog", "cow"], ("a {}",), None, False),
        (["cat", "dog", "cow"], ("{}",), False, False),
        (["a cat", "a cat"], ("{}",), True, True),
    ],
)
def test_names_are_captions_if_said_or_if_most_are_said_once(
    names: list[str], templates: tuple[str, ...], told: bool | None, captions: bool
) -> None:
    forget = Pairs(torch.zeros(len(names), 3, 2, 2), names)
    request = ForgetTask(forget, Pairs(torch.zeros(0, 3, 2, 2), []), templates, captions=told)
    assert request.of_captions is captions
