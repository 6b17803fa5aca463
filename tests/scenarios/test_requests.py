from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from clapforget.errors import UserError
from clapforget.scenarios import Forget, Learn, LearnForNow


@pytest.mark.parametrize(
    ("classes", "text"),
    [
        (range(10), "L0-9"),
        ([3], "L3"),
        ([12, 14], "L12,14"),
        ([4, 5], "L4,5"),
        ([4, 5, 6, 9, 2, 3], "L4-6,9,2,3"),
        ([3, 2, 1], "L3,2,1"),
    ],
)
def test_text(classes, text):
    assert Learn(classes).text == text
    assert Forget(classes).text == "F" + text[1:]


def test_any_iterable_of_whole_numbers_becomes_a_tuple_of_ints():
    expected = Learn([1, 2])
    for classes in (np.array([1, 2]), torch.tensor([1, 2]), (c for c in (1, 2)), {1: 0, 2: 0}):
        request = Learn(classes)
        assert request == expected
        assert all(type(label) is int for label in request.classes)


def test_requests_are_values():
    assert Learn([1]) != Forget([1])
    assert len({Learn([1]), Learn([1]), Forget([1])}) == 2
    assert (Learn([1]).kind, Forget([1]).kind) == ("learn", "forget")
    with pytest.raises(dataclasses.FrozenInstanceError):
        Learn([1]).classes = (2,)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([], "names no class"),
        ([1, 2, 1], "names class 1 twice"),
        ([-1], "names class -1"),
        ([1.5], "whole numbers"),
        ("12", "whole numbers"),
        (3, "whole numbers"),
    ],
)
def test_mistakes(classes, message):
    with pytest.raises(UserError, match=message):
        Forget(classes)


def test_a_forget_request_names_one_thing():
    assert Forget(samples=[5, 3]).samples == (5, 3)
    assert Forget(samples=[5, 3]).classes == ()
    for arguments in ({"classes": [1], "samples": [2]}, {"samples": [2], "pairs": "x"}):
        with pytest.raises(UserError, match="not several"):
            Forget(**arguments)
    with pytest.raises(UserError, match="names sample 3 twice"):
        Forget(samples=[3, 3])
    with pytest.raises(UserError, match="no regular expression"):
        Forget(pairs="re:(")
    with pytest.raises(UserError, match="cannot be written down"):
        Forget(pairs='a "red" ant')


def test_the_title_of_a_sample_request_lists_no_id():
    assert Forget(samples=[5, 3]).title == "F@ 2 samples"
    assert Forget([3]).title == "F3"


@pytest.mark.parametrize(
    ("caption", "found"),
    [("a small Red  Zorup here", True), ("red zorups", False), ("bored zorup", False),
     ("a red and a zorup", False), ("red zorup", True)],
)  # fmt: skip
def test_a_phrase_is_whole_words_in_any_case(caption, found):
    assert Forget(pairs="red zorup").matches(caption) == found
    assert not Forget([1]).matches(caption)


def test_learning_for_now_is_learning():
    assert isinstance(LearnForNow([1]), Learn)
    assert LearnForNow([1]) != Learn([1])
    assert (LearnForNow([1, 2, 3]).text, LearnForNow([1]).kind) == ("N1-3", "learn")
