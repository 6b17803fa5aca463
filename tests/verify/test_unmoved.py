"""Whether images still lie where they lay, whatever was done to the names."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from clapforget.bench.verify_harmless import permuted, turned
from clapforget.clip import Clip
from clapforget.seeding import generator_for
from clapforget.verify import Evidence, Subject
from clapforget.verify.unmoved import _RIDGE, as_sure_as_before, linear_map, unmoved_evidence
from tests.verify.worlds import FORGET, RETAIN, clip, material, scrambled, subject


def kept(after: Clip) -> Evidence:
    return both(after)[0]


def both(after: Clip) -> list[Evidence]:
    """Of what the image tower gives out, and of what its last block does."""
    found = unmoved_evidence(subject(), Subject(after), material())
    assert [piece.name for piece in found] == ["image_features_kept", "inner_features_kept"]
    return found


def test_the_map_is_ridge_regression_of_what_changed() -> None:
    rng = generator_for(0)
    x = torch.randn(40, 6, generator=rng).double()
    y = torch.randn(40, 6, generator=rng).double()
    alpha = _RIDGE * float(x.square().sum()) / 6
    theirs = Ridge(alpha=alpha, fit_intercept=False, solver="cholesky").fit(
        x.numpy(), (y - x).numpy()
    )
    np.testing.assert_allclose(linear_map(x, y).numpy(), np.eye(6) + theirs.coef_.T, atol=1e-8)
    few = linear_map(
        x[:3], x[:3]
    )  # fewer images than dimensions: where none says otherwise, as it was
    torch.testing.assert_close(few, torch.eye(6).double())


def test_a_linear_change_is_undone() -> None:
    rng = generator_for(1)
    x = torch.randn(200, 8, generator=rng).double()
    turn = torch.eye(8).double() + 0.2 * torch.randn(8, 8, generator=rng).double()
    torch.testing.assert_close(linear_map(x @ turn, x), turn.inverse(), atol=1e-3, rtol=0)


def test_an_image_tower_that_is_the_same_gives_all_of_it_back_whatever_the_text_says() -> None:
    for other in (clip(), scrambled(), permuted(clip(), 3), turned(clip(), 3)):
        piece = kept(other)
        assert piece.value > 0.999, piece
        assert piece.interval[0] > 0.998


def test_an_image_tower_that_moved_does_not() -> None:
    other, rng = clip().trainable_copy([]), generator_for(2)
    with torch.no_grad():
        for weight in other.model.visual.layer3.parameters():
            weight += weight.abs().mean() * torch.randn(weight.shape, generator=rng)
    piece = kept(other)
    assert 0.2 < piece.value < 0.98
    low, high = piece.interval
    assert low < piece.value < high <= 1


def test_a_last_layer_that_alone_moved_is_seen_to_have_moved_alone() -> None:
    rng = generator_for(4)
    for name, low, high in (("attnpool", 0.9999, 1.0), ("layer4", -math.inf, 0.98)):
        other = clip().trainable_copy([])
        with torch.no_grad():
            for weight in other.model.visual.get_submodule(name).parameters():
                weight += 6 * weight.abs().mean() * torch.randn(weight.shape, generator=rng)
        out, inner = both(other)
        assert out.value < 0.99, name
        assert low <= inner.value <= high, name


def test_the_interval_is_that_of_the_bootstrap() -> None:
    other, rng = clip().trainable_copy([]), generator_for(3)
    with torch.no_grad():
        for weight in other.model.visual.layer3.parameters():
            weight += 0.2 * weight.abs().mean() * torch.randn(weight.shape, generator=rng)
    m, draws = material(), np.random.default_rng(0)
    part, old, new = m.test["forget"], Subject(clip()), Subject(other)  # images of kept classes are encoded once
    values = []
    for _ in range(200):
        rows = torch.from_numpy(draws.integers(0, len(part), len(part)))
        again = replace(part, images=part.images[rows], labels=part.labels[rows])
        drawn = replace(m, test={**m.test, "forget": again})
        values.append(unmoved_evidence(old, new, drawn)[0].value)
    piece = kept(other)
    assert piece.interval[1] - piece.value < 1.5 * 1.96 * np.std(values)
    assert piece.value - piece.interval[0] > 1.96 * np.std(values) / 1.5


def test_without_images_of_kept_classes_nothing_is_said() -> None:
    assert unmoved_evidence(subject(), subject(), replace(material(), shots={})) == []


def test_features_that_do_not_differ_leave_the_map_as_it_was_and_give_nothing_back() -> None:
    x, y = torch.zeros(9, 4), torch.randn(9, 4, generator=generator_for(2))
    torch.testing.assert_close(linear_map(x, y), torch.eye(4).double())
    flat = subject().passing()
    for part in (material().test["forget"], material().shots["retain"]):
        flat.features(part)[:] = 0
    assert [p.name for p in unmoved_evidence(flat, subject(), material())] == ["inner_features_kept"]
    gone = unmoved_evidence(subject(), flat, material())[0]
    assert gone.value < 0.1


def head(
    change: Callable[[torch.Tensor], torch.Tensor] = lambda x: x,
    columns: Sequence[int] = (*FORGET, *RETAIN),
) -> Subject:
    """A head of class texts. :param change: of its logits, those of forgotten columns first."""
    text = subject().names(material().names, material().templates)[[*FORGET, *RETAIN]]
    return Subject(clip(), lambda v, images: change(30 * v @ text.T), columns)


def sure(after: Subject, before: Subject | None = None) -> float:
    (found,) = as_sure_as_before(before or head(), after, material())
    assert found.name == "head_energy_kept" and found.n == len(material().test["forget"])
    assert found.interval[0] <= found.value <= found.interval[1]
    return found.value


def test_columns_filed_or_folded_elsewhere_leave_a_head_as_sure() -> None:
    n = len(FORGET)

    def folded(x: torch.Tensor) -> torch.Tensor:
        kept = x[:, n:].clone()
        kept[:, :n] = torch.maximum(kept[:, :n], x[:, :n])
        return kept

    assert sure(head()) == 1.0
    assert sure(head(columns=(*RETAIN[:n], *RETAIN))) == 1.0
    assert sure(head(folded, RETAIN)) > 0.99
    assert sure(head(lambda x: x[:, n:], RETAIN)) == pytest.approx(0.0)
    assert sure(head(lambda x: x - 1.0)) < 0.99, "what moved is told by other witnesses"


def test_by_hand() -> None:
    """E = log Σ exp over all columns, E₀ over the kept, E' after: 1 − (E − E')² / (E − E₀)², of images alike."""
    kept = [0.0] * len(RETAIN)
    before, after = (
        Subject(clip(), lambda v, x, own=own: torch.tensor([*own, *kept]).expand(len(v), -1), (*FORGET, *RETAIN))
        for own in ((4.0, 1.0), (2.0, 1.0))
    )
    rest = math.log(len(RETAIN))
    e, now = (np.logaddexp.reduce([*own, rest]) for own in ((4.0, 1.0), (2.0, 1.0)))
    assert sure(after, before) == pytest.approx(1 - (e - now) ** 2 / (e - rest) ** 2)


def test_of_no_head_and_of_columns_that_it_never_had_nothing_is_said() -> None:
    assert as_sure_as_before(subject(), head(), material()) == []
    assert as_sure_as_before(head(), subject(), material()) == []
    n = len(FORGET)
    never = head(lambda x: x[:, n:], RETAIN)
    assert as_sure_as_before(never, never, material()) == []
    shut = head(lambda x: x.index_fill(1, torch.arange(n), -torch.inf))
    assert as_sure_as_before(shut, head(), material()) == [], "columns that gave nothing"
