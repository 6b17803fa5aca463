"""Witnesses that do not train: each on a model that knows and on one that hides in its way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from clapforget.clip import Clip
from clapforget.loading import build_clip
from clapforget.seeding import generator_for
from clapforget.verify import WITNESSES, Part, Reading, Subject
from clapforget.verify.reading import FULL
from clapforget.verify.weigh import weigh
from clapforget.verify.witnesses.association import precision_by_column
from clapforget.verify.witnesses.batch_statistics import normalisations
from clapforget.verify.witnesses.posterior import (
    KroneckerLaplace,
    _root_of_inverse,
    conformal_threshold,
)
from tests.verify.worlds import FORGET, RETAIN, clip, data, material, scrambled, subject


def find(readings: Sequence[Reading], name: str) -> Reading:
    return next(r for r in readings if r.name == name)


def call(witness: str, name: str, who: Subject | None = None) -> Reading:
    return find(WITNESSES.get(witness)(who or subject(), material(), 0), name)


@pytest.mark.parametrize(
    ("witness", "name"),
    [("answers", "answers"), ("wordings", "wordings_best"), ("association", "retrieval"),
     ("transforms", "transforms_best"), ("rounding", "rounding_8"), ("posterior", "conformal_coverage")],
)  # fmt: skip
def test_what_is_known_is_found_and_what_was_never_learned_is_not(witness: str, name: str) -> None:
    seen = call(witness, name)
    assert seen.forget.mean() > 0.9
    assert seen.unseen is not None
    assert seen.unseen.mean() < 0.3


@pytest.mark.parametrize(
    "name", ["answers", "wordings_best", "rounding_8", "transforms_best", "retrieval"]
)
def test_a_name_that_means_nothing_is_not_found(name: str) -> None:
    witness = {"answers": "answers", "wordings_best": "wordings", "rounding_8": "rounding",
               "transforms_best": "transforms", "retrieval": "association"}[name]  # fmt: skip
    assert call(witness, name, Subject(scrambled())).forget.mean() < 0.2


def test_placement_sees_the_images_where_the_name_is_gone() -> None:
    """A scrambled name changes no image: known images still lie apart, unseen ones near kept names."""
    known, nameless = (
        call("placement", "placement"),
        call("placement", "placement", Subject(scrambled())),
    )
    assert nameless.forget == pytest.approx(known.forget, abs=1e-6)
    assert known.unseen is not None
    assert known.retain is not None
    assert known.forget.mean() < known.unseen.mean() - 0.05
    assert abs(known.forget.mean() - known.retain.mean()) < 0.05


def with_other_statistics() -> Clip:
    """The image tower under running statistics that no images have."""
    other = clip().trainable_copy([])
    for i, module in enumerate(normalisations(other)):
        noise = torch.randn(module.running_mean.shape, generator=generator_for(i, 0))
        module.running_mean += 2 * noise * module.running_var.sqrt()
    return other


def test_batch_statistics_estimated_anew_bring_back_what_lived_in_others() -> None:
    name = "batch_statistics"
    hidden = Subject(with_other_statistics())
    assert call("answers", "answers", hidden).forget.mean() < 0.5
    back, known = call(name, name, hidden), call(name, name)
    assert back.forget.mean() > 0.9 and known.forget.mean() > 0.9
    assert back.unseen is not None and back.unseen.mean() < 0.3
    assert back.forget == pytest.approx(known.forget)  # the weights are the same
    assert call(name, name, Subject(scrambled())).forget.mean() < 0.2


def test_batch_statistics_leave_the_examined_model_alone_and_need_some() -> None:
    before = clip().fingerprint()
    call("batch_statistics", "batch_statistics")
    assert clip().fingerprint() == before
    transformer = Subject(build_clip("lab-vit", seed=0))
    assert WITNESSES.get("batch_statistics")(transformer, material(), 0) == []
    unarmed = replace(material(), shots={})
    assert WITNESSES.get("batch_statistics")(subject(), unarmed, 0) == []


@pytest.mark.parametrize(("noise", "role"), [(0.0, "both"), (2.6, "both"), (5.0, "accuses"), (1e4, "accuses")])
def test_nats_are_a_look_inside_only_where_the_answers_bear_them_out(
    noise: float, role: str
) -> None:
    """A column at its prior answers by the class's text, within what a covariance turns it; noise does not: so many
    times the spread of the cosines are a correlation of 1, about 0.4, 0.2 and none."""
    columns = [*FORGET, *RETAIN]
    text = subject().names(material().names, material().templates)[columns]

    def answer(v: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        logits = 20 * v @ text.T
        gone, kept = logits[:, : len(FORGET)], logits[:, len(FORGET) :]
        added = torch.randn(gone.shape, generator=generator_for(5, 0))
        return torch.cat([gone + noise * gone.std(0) * added - 60, kept], 1)

    who = Subject(clip(), answer, columns, nats=dict.fromkeys(columns, 0.0))
    assert call("posterior", "posterior_nats", who).role == role
    assert call("posterior", "posterior_nats", replace(who, class_weights=text)).role == "both"


def exchanged() -> Clip:
    names = [data().class_names[c] for c in FORGET]
    other = clip().trainable_copy([])
    rows = [[t for t in other.tokenize([n])[0].tolist() if 0 < t < 49406] for n in names]
    table = other.model.token_embedding.weight
    with torch.no_grad():
        old = table.clone()
        for mine, theirs in zip(rows, rows[::-1]):
            for i, row in enumerate(mine):
                table[row] = old[theirs[min(i, len(theirs) - 1)]]
    return other


def test_the_level_of_other_names_stands_beside_the_cosine_with_the_own() -> None:
    """By hand: mean cosine with the kept names that are not the image's own."""
    m, known = material(), call("association", "unmatched_cosine")
    cosine = subject().features(m.test["retain"]) @ subject().names(m.names, m.templates).T
    row, own = 7, int(m.test["retain"].labels[7])
    assert known.retain is not None
    others = [c for c in m.retain if c != own]
    assert known.retain[row] == pytest.approx(float(cosine[row, others].mean()), abs=1e-6)
    over, matched = (
        call("association", name) for name in ("matched_over_unmatched", "matched_cosine")
    )
    assert over.forget == pytest.approx(matched.forget - known.forget, abs=1e-6)
    assert over.forget.mean() > 0.4 and "below" not in over.note
    assert over.role == known.role == "shown"
    (piece,) = weigh([over], [over])
    low, high = piece.interval
    assert low < piece.value < high and piece.p_beyond is not None


def test_a_name_pushed_below_all_others_gives_the_request_away() -> None:
    who, m = Subject(clip()), material()
    text = subject().names(m.names, m.templates).clone()
    text[list(FORGET)] *= -1
    key = (tuple(m.names), tuple(m.templates))
    who._wordings[key] = text[:, None]
    pushed = call("association", "matched_over_unmatched", who)
    assert pushed.forget.mean() < 0 and "below it" in pushed.note
    known = call("association", "matched_over_unmatched")
    assert weigh([known], [pushed])[0].scar and not weigh([known], [known])[0].scar


def test_exchanged_names_are_found_under_their_alias() -> None:
    who = Subject(exchanged())
    assert call("answers", "answers", who).forget.mean() < 0.1
    assert call("association", "alias", who).forget.mean() > 0.9
    for whoever in (who, subject()):  # as much under the alias as under the own name
        answered = call("association", "alias_answered", whoever)
        assert answered.forget.mean() > 0.9
        assert answered.unseen is not None
        assert answered.unseen.mean() < 0.6
    swapped, straight = call("association", "exchange", who), call("association", "exchange")
    assert swapped.forget.mean() > 0.9
    assert straight.forget.mean() < 0.1
    assert swapped.unseen is not None
    assert swapped.unseen.mean() < 0.3


def test_ranks_in_a_column_do_not_hear_constants_or_temperatures() -> None:
    rng = generator_for(0, 1)
    scores, negatives = torch.randn(9, 4, generator=rng), torch.randn(20, 4, generator=rng)
    labels = torch.tensor([0] * 4 + [1] * 5)
    shift, scale = torch.tensor([5.0, -60.0, 0.0, 1.0]), torch.tensor([1.0, 0.01, 30.0, 2.0])
    assert torch.equal(
        precision_by_column(scores, negatives, labels),
        precision_by_column(scores * scale + shift, negatives * scale + shift, labels),
    )


def test_precision_by_column_is_r_precision() -> None:
    rng = generator_for(0, 2)
    scores, negatives = torch.randn(9, 3, generator=rng), torch.randn(20, 3, generator=rng)
    labels = torch.tensor([0] * 4 + [1] * 5)
    got = precision_by_column(scores, negatives, labels)
    everything = torch.cat([scores, negatives])
    for label, size in ((0, 4), (1, 5)):
        for column in range(3):
            top = set(everything[:, column].topk(size).indices.tolist())
            expected = [float(i in top) for i in range(9) if int(labels[i]) == label]
            assert got[labels == label, column].tolist() == expected


@pytest.mark.parametrize("values", [9, 1000])
def test_ranks_by_sorting_are_those_by_comparing_every_pair_ties_and_masks_among_them(values: int) -> None:
    rng = generator_for(0, 3)
    drawn = torch.randint(values, (60, 4), generator=rng).float()
    drawn[torch.rand(drawn.shape, generator=rng) < 0.1] = -torch.inf
    scores, negatives, labels = drawn[:25], drawn[25:], torch.randint(3, (25,), generator=rng)
    expected = torch.zeros_like(scores)
    for i, column in torch.cartesian_prod(torch.arange(25), torch.arange(4)).tolist():
        own, x = labels == labels[i], scores[i, column]
        others = torch.cat([negatives[:, column], scores[~own, column]])
        above = (others >= x).sum() + (scores[own, column] > x).sum()
        expected[i, column] = float(above < own.sum())
    assert 0 < expected.mean() < 1
    assert torch.equal(precision_by_column(scores, negatives, labels), expected)


def test_a_constant_column_finds_nothing() -> None:
    """A masked column ties everything: ties must not count as found."""
    hits = precision_by_column(torch.full((4, 1), -9.0), torch.full((8, 1), -9.0), torch.zeros(4))
    assert hits.sum() == 0


def test_the_laplace_posterior_is_that_of_the_dense_matrix() -> None:
    """Variances of the logits by draws, against s² (A⁻¹ ⊗ B⁻¹) written out."""
    rng = generator_for(0, 3)
    v = torch.nn.functional.normalize(torch.randn(40, 5, generator=rng), dim=1)
    text = torch.nn.functional.normalize(torch.randn(3, 5, generator=rng), dim=1)
    s = torch.tensor(4.0)
    laplace = KroneckerLaplace(v, text, s)
    p = (s * v @ text.T).softmax(1)
    a = v.T @ v + s * torch.eye(5)
    b = s**2 * torch.stack([torch.diag(q) - torch.outer(q, q) for q in p]).mean(0) + s * torch.eye(
        3
    )
    covariance = torch.linalg.inv(torch.kron(b, a))  # of W, row by row
    x = torch.nn.functional.normalize(torch.randn(1, 5, generator=rng), dim=1)
    jacobian = s * torch.kron(torch.eye(3), x)
    expected = jacobian @ covariance @ jacobian.T
    noise = laplace.root @ laplace.root.T * s**2 * (x @ laplace.inner @ x.T)
    assert torch.allclose(noise, expected, rtol=1e-4)
    draws = laplace.draws(x, rng, 2000)
    assert draws.sum(-1) == pytest.approx(torch.ones(2000, 1).numpy(), abs=1e-5)


def test_a_direction_never_seen_is_less_certain() -> None:
    v = torch.nn.functional.normalize(
        torch.tensor([[1.0, 0.1, 0.0], [1.0, -0.1, 0.0]]).repeat(50, 1), dim=1
    )
    laplace = KroneckerLaplace(v, torch.eye(3), torch.tensor(5.0))
    spread = ((torch.eye(3) @ laplace.inner) * torch.eye(3)).sum(1)
    assert spread[2] > 5 * spread[0]


def test_conformal_sets_cover_as_promised() -> None:
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(400):
        p = rng.beta(5, 2, 60)
        covered.append(1 - rng.beta(5, 2) <= conformal_threshold(p))
    low, high = stats.binomtest(sum(covered), 400).proportion_ci(0.999)
    assert low <= 0.93
    assert high >= 0.9
    assert conformal_threshold(np.array([0.9] * 5)) == 1.0  # too few for 10 %


def test_a_masked_head_is_seen_through_its_stored_vectors() -> None:
    text = clip().class_features(data().class_names, data().templates).detach()

    def masked(v: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        return (clip().scale * v @ text.T).index_fill(1, torch.tensor(FORGET), -torch.inf)

    who = Subject(clip(), masked, list(range(len(text))), text)
    assert call("answers", "answers", who).forget.sum() == 0
    assert call("head_weights", "head_weights", who).forget.mean() > 0.9
    assert call("answers", "zero_shot", who).forget.mean() > 0.9
    assert np.isfinite(call("answers", "answers_probability", who).forget).all()
    assert call("association", "column_shut", who).forget.tolist() == [1.0, 1.0]
    free = Subject(clip(), lambda v, x: clip().scale * v @ text.T - 60.0, list(range(len(text))))
    assert call("association", "column_shut", free).forget.tolist() == [0.0, 0.0]


def test_the_place_beside_images_hears_no_text() -> None:
    """Kept names drawn to where the forgotten images lie change the place beside names, not beside images."""
    other = clip().trainable_copy([])
    table, m = other.model.token_embedding.weight, material()
    ids = [t for c in m.retain for t in other.tokenize([m.names[c]])[0].tolist() if 0 < t < 49406]
    with torch.no_grad():
        own = [t for t in other.tokenize([m.names[FORGET[0]]])[0].tolist() if 0 < t < 49406]
        table[ids] = table[own[0]].clone()
    straight, drawn = (
        {r.name: r for r in WITNESSES.get("placement")(who, m, 0)}
        for who in (subject(), Subject(other))
    )
    assert drawn["placement_images"].forget == pytest.approx(
        straight["placement_images"].forget, abs=1e-6
    )
    own = straight["placement"].labels == FORGET[0]
    assert drawn["placement"].forget[own].mean() > straight["placement"].forget[own].mean() + 0.05
    known = straight["placement_images"]
    assert known.unseen is not None and known.retain is not None
    assert known.forget.mean() < known.unseen.mean() - 0.03
    assert abs(known.forget.mean() - known.retain.mean()) < 0.05


def test_without_images_of_every_kept_class_there_is_no_place_beside_them() -> None:
    m = material()
    few = replace(m, shots={**m.shots, "retain": m.shots["retain"].of(m.retain[1:])})
    for given in (few, replace(m, shots={})):
        assert [r.name for r in WITNESSES.get("placement")(subject(), given, 0)] == ["placement"]


def head_of(columns: Sequence[int], shown: bool = True, spoil: bool = False) -> Subject:
    """A head of class texts; or one whose forgotten columns answer by something that it does not show."""
    text = subject().names(material().names, material().templates)[list(columns)]

    def answer(v: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        logits = 30 * v @ text.T
        if spoil:
            noise = torch.randn(len(v), len(FORGET), generator=generator_for(0, 3))
            logits[:, : len(FORGET)] = -60 * (1 + noise.abs())
        return logits

    return Subject(clip(), answer, list(columns), text if shown else None)


def test_a_head_without_a_forgotten_column_finds_none_and_is_a_number() -> None:
    for columns in (RETAIN, (FORGET[0], *RETAIN)):
        for name in ("answer_rank", "alias_by_head"):
            seen = call("association", name, head_of(columns))
            assert np.isfinite(seen.forget).all(), (columns, name)
            assert seen.unseen is not None and np.isfinite(seen.unseen).all()
            assert (seen.forget[seen.labels == FORGET[1]] <= 0.5).all()
    assert not call("association", "answer_rank", head_of(RETAIN)).forget.any()


def test_another_column_that_answers_for_the_class_is_found() -> None:
    columns = [*FORGET, *RETAIN]
    straight = call("association", "alias_by_head", head_of(columns))
    swapped = call(
        "association",
        "alias_by_head",
        replace_columns(head_of(columns), [FORGET[1], FORGET[0], *RETAIN]),
    )
    assert straight.forget.mean() > 0.9
    assert swapped.forget.mean() == straight.forget.mean()
    gone = call("association", "alias_by_head", head_of(RETAIN))
    assert not gone.forget.any()


def test_a_column_whose_sign_is_turned_still_tells_the_images() -> None:
    columns = [*FORGET, *RETAIN]
    straight = head_of(columns)

    def turned(v: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        assert straight.answer is not None
        logits = straight.answer(v, images)
        logits[:, : len(FORGET)] *= -1
        return logits

    name, hidden = "answer_rank_turned", Subject(clip(), turned, columns)
    assert not call("answers", "answers", hidden).forget.any()
    assert call("association", "answer_rank", hidden).forget.mean() < 0.1
    assert call("association", name, hidden).forget.mean() > 0.9
    assert call("association", name, straight).forget.mean() < 0.1
    shut = Subject(clip(), lambda v, x: turned(v, x).index_fill(1, torch.tensor([0, 1]), -torch.inf), columns)
    assert not call("association", name, shut).forget.any(), "a shut column tells nothing on either side"


def replace_columns(who: Subject, columns: Sequence[int]) -> Subject:
    return Subject(who.clip, who.answer, list(columns), who.class_weights)


def test_vectors_that_are_not_what_answers_are_only_shown() -> None:
    columns = [*FORGET, *RETAIN]
    honest, decoy = (
        call("head_weights", "head_weights", head_of(columns, spoil=spoil))
        for spoil in (False, True)
    )
    assert honest.role == "both"
    assert decoy.role == "shown" and "not those that answer" in decoy.note
    constant = head_of(columns)
    free = constant.answer
    assert free is not None

    def shut(v: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        return free(v, images).index_fill(1, torch.tensor([0, 1]), -torch.inf)

    other = Subject(clip(), shut, columns, constant.class_weights)
    assert call("head_weights", "head_weights", other).role == "both"  # another witness's


@pytest.mark.parametrize("kind", ["forget", "unseen", "retain"])
def test_a_part_without_attack_images_is_no_part(kind: str) -> None:
    none = Part(torch.zeros(0, 3, 32, 32, dtype=torch.uint8), torch.zeros(0, dtype=torch.long))
    m = replace(material(), shots={**material().shots, kind: none})
    assert kind not in m.shots and len(m.shots) == 2
    for name in WITNESSES.names():
        if name not in FULL:
            WITNESSES.get(name)(subject(), m, 0)
    m = replace(material(), test={**material().test, "unseen": none, "forget": none})
    assert set(m.test) == {"forget", "retain"}, "to be told that there is too little to see"


def test_a_laplace_posterior_that_rounding_leaves_no_cholesky_has_a_root_all_the_same() -> None:
    """At a temperature near 0 the Hessian's least eigenvalue is lost beside the largest one."""
    v, text = (torch.nn.functional.normalize(torch.randn(n, 8, generator=generator_for(n)), dim=1) for n in (40, 12))
    cold = KroneckerLaplace(v, text, torch.tensor(1e6))
    assert cold.root.isfinite().all()
    draws = cold.draws(v, generator_for(1), 4)
    assert draws.isfinite().all()
    b = torch.diag(torch.tensor([4.0, 1.0, 0.25]))
    indefinite = b - torch.diag(torch.tensor([0, 0, 0.25 + 1e-9]))
    torch.testing.assert_close(_root_of_inverse(b), torch.diag(torch.tensor([0.5, 1.0, 2.0])))
    root = _root_of_inverse(indefinite)
    assert (root @ root.T).diag()[:2] == pytest.approx([0.25, 1.0])
    assert root.isfinite().all()
