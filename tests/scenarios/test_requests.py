from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from clapforget.errors import UserError
from clapforget.scenarios import Forget, Learn


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
