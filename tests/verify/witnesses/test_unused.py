"""Directions of feature space that kept images leave unused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from clapforget.seeding import generator_for
from clapforget.verify import WITNESSES, Part, Subject
from clapforget.verify.evidence import Evidence
from clapforget.verify.weigh import weigh
from clapforget.verify.witnesses.unused import _turns, whitening
from tests.verify.worlds import FORGET, clip, material, subject

NAME = "unused_directions"


def test_whitened_features_have_the_same_variance_everywhere() -> None:
    turned = torch.linalg.qr(torch.randn(6, 6, generator=generator_for(1, 0)))[0]
    scales = torch.tensor([3.0, 2.0, 1.0, 1.0, 0.5, 0.5])
    v = torch.randn(4000, 6, generator=generator_for(0, 0)) * scales @ turned + 3
    mean, white = whitening(v)
    z = (v - mean) @ white
    torch.testing.assert_close(z.mean(0), torch.zeros(6).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(z.T @ z / len(z), torch.eye(6).double(), atol=0.02, rtol=0)


def test_a_direction_without_variance_counts_a_thousandth_of_the_mean_one() -> None:
    v = torch.tensor([[3.0, 0.0], [-3.0, 0.0]])
    mean, white = whitening(v)
    lengths = ((torch.tensor([[3.0, 0.0], [0.0, 3.0]]).double() - mean) @ white).norm(dim=1)
    assert lengths.tolist() == pytest.approx([3 / (9 + 4.5e-3) ** 0.5, 3 / 4.5e-3**0.5])
    assert whitening(torch.zeros(3, 2))[1].isfinite().all(), "images that are all the same"


def test_earlier_entries_of_the_same_label_are_counted() -> None:
    assert _turns(torch.tensor([3, 3, 5, 3, 5])).tolist() == [0, 1, 0, 2, 1]


def marked(length: float) -> Evidence:
    """Each forgotten class's images get so much of a direction that kept images hardly use."""
    m = material()
    free = torch.linalg.svd(subject().features(m.shots["retain"]))[2][-len(FORGET) :]

    class Marked(Subject):
        def features(self, part: Part) -> torch.Tensor:
            v = subject().features(part).clone()
            for c, direction in zip(FORGET, free, strict=True):
                v[part.labels == c] += length * direction
            return F.normalize(v, dim=-1)

    look = WITNESSES.get(NAME)
    (piece,) = weigh(look(subject(), m, 0), look(Marked(clip()), m, 0))
    return piece


def test_a_small_mark_is_found_and_nothing_else_is() -> None:
    found, honest = marked(0.05), marked(0.0)
    assert found.role == honest.role == "both"
    assert found.value > 0.4 and (found.p_inside or 1) < 1e-3 and not found.holds
    assert honest.value == 0 and honest.holds


def test_known_or_not_a_class_is_found_alike() -> None:
    (seen,) = WITNESSES.get(NAME)(subject(), material(), 0)
    (known,) = WITNESSES.get("answers")(subject(), material(), 0)[:1]
    assert seen.unseen is not None and known.unseen is not None
    assert known.forget.mean() - known.unseen.mean() > 0.9
    assert abs(seen.forget.mean() - seen.unseen.mean()) < 0.15


def test_without_kept_images_there_is_nothing_to_whiten_by() -> None:
    m = material()
    shots = {k: part for k, part in m.shots.items() if k != "retain"}
    assert WITNESSES.get(NAME)(subject(), replace(m, shots=shots), 0) == []
    assert WITNESSES.get(NAME)(subject(), replace(m, shots={}), 0) == []
