"""Comparisons with a twin against independent formulas, and what the certificate shows of them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon

from clapforget.errors import UserError
from clapforget.seeding import generator_for
from clapforget.verify import Evidence, Material, Reading, Subject
from clapforget.verify.examine import readings
from clapforget.verify.twins import cka, jensen_shannon, refuse_knowing, tow, twin_evidence
from tests.verify.worlds import RETAIN, clip, material, scrambled, subject


def features(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=generator_for(seed, 0))


def test_divergence_is_scipys() -> None:
    p, q = (features(50, 7, s).mul(3).softmax(1) for s in (1, 2))
    p[0] = torch.eye(7)[0]  # a zero probability is no special case
    want = jensenshannon(p.numpy(), q.numpy(), base=2, axis=1) ** 2
    np.testing.assert_allclose(jensen_shannon(p, q), want, rtol=1e-4, atol=1e-6)


def test_divergence_is_a_bit_where_nothing_is_shared_and_zero_from_itself() -> None:
    a, b = torch.eye(3)[:1], torch.eye(3)[1:2]
    assert jensen_shannon(a, b).item() == pytest.approx(1)
    assert jensen_shannon(a, a).item() == 0


def naive_cka(x: torch.Tensor, y: torch.Tensor) -> float:
    """The other form, by centred features: ‖yᵀx‖² / (‖xᵀx‖ ‖yᵀy‖)."""
    x, y = x - x.mean(0), y - y.mean(0)
    return float((y.T @ x).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm()))


def test_alignment_of_many_images_is_that_of_the_usual_formula() -> None:
    x = features(3000, 6, 1)
    y = x @ features(6, 4, 2) + features(3000, 4, 3)
    assert cka(x, y) == pytest.approx(naive_cka(x, y), abs=5e-3)


def test_alignment_of_few_images_in_many_dimensions_is_not_near_one() -> None:
    found = [cka(features(20, 100, s), features(20, 100, s + 100)) for s in range(20)]
    assert abs(np.mean(found)) < 0.05
    assert naive_cka(features(20, 100, 0), features(20, 100, 100)) > 0.7  # why it is not used


def test_alignment_does_not_see_rotation_scale_or_offset() -> None:
    x, y = features(30, 8, 1), features(30, 8, 2) + features(30, 8, 1)
    q = torch.linalg.qr(features(8, 8, 3))[0]
    assert cka(x, x) == pytest.approx(1)
    assert cka(3 * x @ q + 5, y) == pytest.approx(cka(x, y), abs=1e-6)


def test_tug_of_war_is_a_product_of_distances() -> None:
    assert tow({"a": 0.9, "b": 0.2}, {"a": 0.9, "b": 0.2}) == 1
    assert tow({"a": 1.0, "b": 0.5}, {"a": 0.8, "b": 0.9}) == pytest.approx(0.8 * 0.6)
    assert tow({"a": 1.0}, {"a": 0.0}) == 0
    assert tow({"a": 0.5, "only ours": 0.0}, {"a": 0.5, "only the twin's": 1.0}) == 1


@cache
def shown() -> dict[str, Evidence]:
    """The model with scrambled names beside itself as the twin, and the model that knows as before."""
    twin = Subject(scrambled())
    return {p.name: p for p in twin_evidence(subject(), Subject(scrambled()), twin, material())}


def test_a_model_beside_itself_is_at_every_reference() -> None:
    assert len(shown()) == 5
    for piece in shown().values():
        assert piece.role == "shown"
        assert piece.value == pytest.approx(piece.reference, abs=1e-5)


def test_the_model_before_is_the_scale() -> None:
    """Only what the names mean differs: answers are far from the twin's, features are the twin's."""
    assert (shown()["twin_tow"].before or 0) < 0.2
    assert (shown()["twin_jsd_forget"].before or 0) > 0.8
    assert (shown()["twin_jsd_retain"].before or 1) < 0.1
    assert shown()["twin_cka_forget"].before == pytest.approx(1)


def test_intervals_hold_their_values() -> None:
    pieces = twin_evidence(subject(), subject(), Subject(scrambled()), material())
    for piece in pieces:
        assert piece.interval[0] - 1e-9 <= piece.value <= piece.interval[1] + 1e-9, piece.name


def test_a_class_without_a_column_has_no_probability() -> None:
    text = clip().class_features(material().names, material().templates).detach()
    met = [c for c in range(len(text)) if c not in RETAIN[:12]]  # half of the retained ones are not
    few = Subject(clip(), lambda v, images: clip().scale * v @ text[met].T, met)
    pieces = {p.name: p for p in twin_evidence(few, few, subject(), material())}
    assert 0.3 < pieces["twin_jsd_retain"].value < 0.7


@cache
def read(who: str, unseen: bool = True) -> list[Reading]:
    m = material() if unseen else without_unseen()
    return readings(Subject(scrambled()) if who == "lost" else subject(), m, "quick", 0)


@cache
def without_unseen() -> Material:
    kept = {k: p for k, p in material().test.items() if k != "unseen"}
    return replace(material(), unseen=(), test=kept)


@pytest.mark.parametrize("unseen", [True, False])
def test_a_twin_that_knows_is_refused_and_one_that_does_not_is_not(unseen: bool) -> None:
    m, before = material() if unseen else without_unseen(), read("knows", unseen)
    with pytest.raises(UserError, match="never learned the class"):
        refuse_knowing(subject(), subject(), m, before, before, "association")
    refuse_knowing(subject(), Subject(scrambled()), m, before, read("lost", unseen), "association")


def test_a_twin_that_is_answered_no_more_and_found_by_a_wording_is_refused() -> None:
    """As whoever hid the class from the data's own wordings would give one."""
    for unseen in (True, False):
        before = read("knows", unseen)
        wording = next(r for r in before if r.name == "wordings_best")
        hidden = [wording if r.name == "wordings_best" else r for r in read("lost", unseen)]
        with pytest.raises(UserError, match="wording"):
            refuse_knowing(subject(), Subject(scrambled()), material() if unseen else without_unseen(), before, hidden,
                           "association")  # fmt: skip


def test_features_that_do_not_differ_are_aligned_with_nothing() -> None:
    x, flat = features(30, 8, 1), features(1, 8, 2).expand(30, 8)
    noise = flat + 1e-8 * features(30, 8, 3)
    for other in (flat, noise, torch.zeros(30, 8)):
        assert cka(x, other) == cka(other, x) == cka(other, other) == 0
