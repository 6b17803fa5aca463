"""Images of a class that were put together at a place of their own."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from clapforget.seeding import generator_for
from clapforget.verify import WITNESSES, Part, Subject
from clapforget.verify.evidence import Evidence
from clapforget.verify.weigh import weigh
from clapforget.verify.witnesses.gathered import gathering
from tests.verify.worlds import FORGET, clip, material, subject


def part(labels: list[int]) -> Part:
    return Part(torch.zeros(len(labels), 3, 8, 8, dtype=torch.uint8), torch.tensor(labels))


def test_two_images_at_an_angle_and_one_alone() -> None:
    angle = math.radians(60)
    v = torch.tensor([[1.0, 0.0], [math.cos(angle), math.sin(angle)], [0.0, 1.0]])
    assert gathering(v, part([3, 3, 5])).tolist() == pytest.approx([1.0, 1.0, 0.0])  # −log2(1 − ½)


def test_half_as_far_apart_is_one_more() -> None:
    v = F.normalize(torch.randn(60, 20, generator=generator_for(0, 0)) * 0.1 + torch.eye(20)[0], dim=-1)
    mean = F.normalize(v.mean(0), dim=0)
    near = F.normalize(mean + (v - mean) / math.sqrt(2), dim=-1)  # 1 − cos goes with the square
    rise = gathering(near, part([0] * 60)) - gathering(v, part([0] * 60))
    assert rise.mean().item() == pytest.approx(1.0, abs=0.05)


def judged(share: float) -> Evidence:
    """The witness where forgotten images lie nearer their class's mean by so much of the way."""
    m = material()
    centre = {c: F.normalize(subject().features(m.test["forget"].of([c])).mean(0), dim=0) for c in FORGET}

    class Gathering(Subject):
        def features(self, part: Part) -> torch.Tensor:
            v = subject().features(part).clone()
            for c, middle in centre.items():
                rows = part.labels == c
                v[rows] = F.normalize(v[rows] + share * (middle - v[rows]), dim=-1)
            return v

    witness = WITNESSES.get("gathered")
    (before,), (after,) = witness(subject(), m, 0), witness(Gathering(clip()), m, 0)
    (piece,) = weigh([before], [after])
    return piece


@pytest.mark.parametrize(("share", "holds", "accused"), [(0.0, True, False), (0.1, True, False), (0.6, False, True)])
def test_images_drawn_together_are_told_from_images_left(share: float, holds: bool, accused: bool) -> None:
    piece = judged(share)
    assert piece.holds is holds
    assert piece.p_inside is not None and (piece.p_inside < 0.001) is accused
    if not share:
        assert piece.value == pytest.approx(0.0, abs=1e-5) and piece.reference == pytest.approx(0.0, abs=1e-5)


def test_a_class_that_lies_close_by_nature_is_measured_by_itself() -> None:
    """The unseen classes scattered before and after: what counts is who was drawn together since."""
    m = material()
    (reading,) = WITNESSES.get("gathered")(subject(), m, 0)
    assert reading.unseen is not None
    close = replace(reading, forget=reading.forget + 3.0)
    (piece,) = weigh([close], [close])
    assert piece.holds and piece.value == 0.0
    (alone,) = weigh([], [close])
    assert alone.role == "shown", "without a model before nothing is known of what rose"
