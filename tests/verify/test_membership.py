"""Membership attacks where the answer is known: a model that memorises, one that never saw, exact deletion."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from clapforget.errors import UserError
from clapforget.seeding import generator_for
from clapforget.verify import Material, Subject, material_from
from clapforget.verify.examine import not_tested
from clapforget.verify.membership import (
    Shadows,
    image_membership,
    log_odds,
    membership_evidence,
    rmia,
    shadow_membership,
    tpr_at,
    train_shadows,
    u_lira,
)
from tests.verify.worlds import FORGET, RETAIN, clip, data, material

MEMBER = torch.arange(80) < 40


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator_for(seed, 0))


def values(
    attack: str, before: Tensor | None, after: Tensor
) -> dict[str, tuple[float, float, float]]:
    found = membership_evidence(attack, before, after, MEMBER)
    return {p.name.removeprefix(f"{attack}_"): (p.value, *p.interval) for p in found}


def test_log_odds_are_those_of_the_probability() -> None:
    logits, own = draw(9, 5).double(), torch.arange(9) % 5
    p = logits.softmax(1)[torch.arange(9), own]
    torch.testing.assert_close(log_odds(logits, own), (p / (1 - p)).log())
    stacked = log_odds(torch.stack([logits, 2 * logits]), own)
    torch.testing.assert_close(stacked[1], log_odds(2 * logits, own))


def test_log_odds_stay_finite_where_the_probability_is_one() -> None:
    assert log_odds(torch.tensor([[500.0, 0.0]]), torch.tensor([0])).item() == 500


def test_rmia_is_its_definition() -> None:
    x, z = (
        torch.rand(6, generator=generator_for(1, 0)),
        torch.rand(9, generator=generator_for(2, 0)),
    )
    rx, rz = (
        torch.rand(3, 6, generator=generator_for(3, 0)),
        torch.rand(3, 9, generator=generator_for(4, 0)),
    )
    got = rmia(x, rx, z, rz, gamma=1.5, offline=0.3)
    for i in range(6):
        own = float(x[i]) / (0.5 * (1.3 * float(rx[:, i].mean()) + 0.7))
        wins = [
            own / (float(z[j]) / (0.5 * (1.3 * float(rz[:, j].mean()) + 0.7))) >= 1.5
            for j in range(9)
        ]
        assert float(got[i]) == pytest.approx(np.mean(wins))


def test_rmia_finds_every_member_of_a_model_that_memorises() -> None:
    usual = torch.full((1, 80), 0.2)
    p = torch.where(MEMBER, 0.999, 0.2)
    scores = rmia(p, usual, torch.full((50,), 0.2), torch.full((1, 50), 0.2))
    found = values("rmia", None, scores)
    assert found["auroc"][0] == 1
    assert found["tpr"][0] == 1


def test_rmia_guesses_where_nothing_was_learned() -> None:
    model, reference = draw(80, seed=5).sigmoid(), draw(2, 80, seed=6).sigmoid()
    scores = rmia(model, reference, draw(200, seed=7).sigmoid(), draw(2, 200, seed=8).sigmoid())
    _, low, high = values("rmia", None, scores)["auroc"]
    assert low <= 0.5 <= high


def test_u_lira_is_a_ratio_of_two_gaussians() -> None:
    learned = torch.tensor([[True], [True], [True], [False], [False], [False]])
    shadows = torch.tensor([[1.0], [2.0], [3.0], [-1.0], [-3.0], [1.0]])
    want = stats.norm.logpdf(0.7, 2, 1) - stats.norm.logpdf(0.7, -1, 2)
    assert u_lira(torch.tensor([0.7]), learned, shadows).item() == pytest.approx(want, rel=1e-5)


def memorising(unlearns: bool) -> Shadows:
    """Candidates' odds rise by 6 when learned, and fall back where the method really unlearns."""
    rng = iter(range(1000))

    def fit(rows: Tensor, mine: Tensor) -> Callable[[], Tensor]:
        odds = draw(80, seed=10 + next(rng)).index_add(0, mine, torch.full((len(mine),), 6.0))
        return lambda: odds

    def unlearn(model: Callable[[], Tensor], mine: Tensor) -> Callable[[], Tensor]:
        odds = model().index_add(0, mine, torch.full((len(mine),), -6.0 if unlearns else 0.0))
        return lambda: odds

    return train_shadows(fit, unlearn, 30, 80, 16, generator_for(0, 1))


@pytest.mark.parametrize("unlearns", [False, True])
def test_shadows_tell_a_method_that_does_not_unlearn(unlearns: bool) -> None:
    base = draw(80, seed=4)
    before = torch.where(MEMBER, base + 6, base)
    after = base if unlearns else before
    found = {p.name: p for p in shadow_membership(memorising(unlearns), before, after, MEMBER)}
    auroc = found["u_lira_auroc"]
    assert (auroc.before or 0) > 0.99  # LiRA of the model before
    if unlearns:
        assert auroc.interval[0] <= 0.5 <= auroc.interval[1]
    else:
        assert auroc.value > 0.99
        assert found["u_lira_tpr"].interval[0] > 0.5


def test_each_candidate_is_learned_by_half_of_the_shadows() -> None:
    assert (memorising(True).learned.sum(0) == 8).all()


def test_few_shadows_are_refused() -> None:
    with pytest.raises(UserError, match="3 shadow models"):
        train_shadows(lambda a, b: lambda: a, lambda a, b: a, 5, 5, 3, generator_for(0, 1))


def test_what_is_pushed_away_is_found_by_the_two_sided_score_alone() -> None:
    scores = draw(80, seed=9)
    scores[MEMBER] = torch.where(torch.arange(40) % 2 == 0, 5.0, -5.0) + 0.1 * scores[MEMBER]
    found = values("u_lira", None, scores)
    assert 0.4 < found["auroc"][0] < 0.6
    assert found["auroc_two_sided"][0] > 0.95


def test_the_true_positive_rate_has_at_most_the_false_ones_stated() -> None:
    others = np.arange(1000) / 1000
    members = np.array([0.985, 0.9885, 0.9905, 2.0])
    value, (low, high) = tpr_at(members, others, 0.01)
    assert value == pytest.approx(0.5)
    assert low < 0.5 < high
    assert tpr_at(np.array([0.9, 1.1]), np.array([0.1, 1.0]))[0] == 0.5  # few others: none above


def with_members() -> Material:
    return material_from(data(), FORGET, retain=RETAIN[:8], unseen_classes=2, test_images=15, unseen_images=2,
                         retain_images=4, shots=2, members=6)  # fmt: skip


def test_members_are_training_images_of_the_request() -> None:
    m = with_members()
    assert m.members is not None
    assert m.members.classes() == sorted(FORGET)
    assert len(m.members) == 12
    tested = {image.numpy().tobytes() for part in m.test.values() for image in part.images}
    assert not tested & {image.numpy().tobytes() for image in m.members.images}


def test_images_are_looked_for_one_by_one_where_a_head_holds_them() -> None:
    """A head that answers surely only what it has seen, to the pixel; the twin has seen nothing."""
    m = with_members()
    assert m.members is not None
    own = dict(zip((i.numpy().tobytes() for i in m.members.images), m.members.labels.tolist()))

    def answer(v: Tensor, images: Tensor) -> Tensor:
        logits = torch.zeros(len(images), len(m.names))
        for row, image in enumerate(images):
            if (label := own.get(image.numpy().tobytes())) is not None:
                logits[row, label] = 20.0
        return logits

    columns = range(len(m.names))
    holds = Subject(clip(), answer, columns)
    blank = Subject(clip(), lambda v, images: torch.zeros(len(images), len(m.names)), columns)
    found = {p.name: p for p in image_membership(holds, blank, blank, m)}
    assert found["rmia_auroc"].before == 1
    assert found["rmia_auroc"].value == 0.5
    assert found["rmia_tpr"].before == 1
    with pytest.raises(UserError, match="known to have been trained on"):
        image_membership(holds, blank, blank, material())


def test_a_certificate_says_why_membership_is_left_out() -> None:
    assert any("which images" in line for line in not_tested(material(), "full", True))
    assert any("needs a twin" in line for line in not_tested(with_members(), "full", False))
    assert not any("membership" in line for line in not_tested(with_members(), "full", True))
