"""Which classes stand for neighbours where the data set says nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from clapforget.scenarios import lab, stream
from clapforget.strategies.certify import Certifier
from clapforget.strategies.certify_material import request_material, request_views
from clapforget.verify.kept import kept_evidence
from clapforget.verify.material import nearest_names
from tests.verify.worlds import FORGET, material, subject


def turned(*degrees: float) -> torch.Tensor:
    """Names as directions in the plane, of any length."""
    angle = torch.tensor(degrees).deg2rad()
    return torch.stack([angle.cos(), angle.sin()], 1) * torch.arange(1, len(degrees) + 1)[:, None]


def test_nearest_names_are_those_of_least_angle_among_the_kept() -> None:
    text = turned(0, 5, 12, 40, 90, 100, 3)
    assert nearest_names(text, [0], [1, 2, 3, 4, 5]) == (1, 2, 3)
    assert nearest_names(text, [0], [5, 4, 3], each=1) == (3,)
    assert nearest_names(text, [0, 4], [1, 2, 3, 5], each=2) == (1, 2, 3, 5)
    assert nearest_names(text, [0], [4, 1]) == (1, 4), "there are no more"


def test_what_the_data_set_gives_goes_first_and_bystanders_are_none() -> None:
    m = material()
    text = subject().names(m.names, m.templates)
    assert m.neighbours and m.with_nearest_names(text) is m
    alone = replace(m, neighbours=())
    near = alone.with_nearest_names(text)
    assert near.nearest and not m.nearest
    assert len(FORGET) + 1 <= len(near.neighbours) <= 3 * len(FORGET)
    assert set(near.neighbours) <= set(m.retain)
    others = replace(alone, bystanders=near.neighbours).with_nearest_names(text)
    assert others.neighbours and not set(others.neighbours) & set(near.neighbours)
    nobody = replace(alone, bystanders=m.retain)
    assert nobody.with_nearest_names(text) is nobody


@pytest.mark.parametrize("nearest", [True, False])
def test_the_evidence_says_where_neighbours_come_from(nearest: bool) -> None:
    m = material()
    if nearest:
        m = replace(m, neighbours=()).with_nearest_names(subject().names(m.names, m.templates))
    pieces = {p.name: p for p in kept_evidence(subject(), subject(), m)}
    assert ("(nearest names)" in pieces["clip_neighbours_accuracy"].title) is nearest


def test_a_stream_of_data_without_neighbours_looks_at_nearest_names() -> None:
    small = replace(lab(train_per_class=6, test_per_class=3), neighbour_sets=())
    *_, request = stream(small, "L0-6 F1").train_stream
    m = request_material(request, request_views(request, [0, 2, 3], list(range(7))), 0)
    found = Certifier("quick").examine(subject(), subject(), m, 0)
    title = next(p.title for p in found.evidence if p.name == "clip_neighbours_accuracy")
    assert "(nearest names)" in title
    assert not any("neighbours" in left for left in found.judgement.not_tested)
