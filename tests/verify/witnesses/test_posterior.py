"""What posteriors say of forgotten images: a head's own, and nats in closed form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from clapforget.posterior import Predictive
from clapforget.seeding import generator_for
from clapforget.verify import WITNESSES, Reading, Subject
from clapforget.verify.weigh import weigh
from tests.verify.worlds import FORGET, RETAIN, call, clip, material, subject

COLUMNS = [*FORGET, *RETAIN[:12]]
HERE = slice(0, len(FORGET))


def head(change: Callable[[torch.Tensor], torch.Tensor] = lambda logits: logits) -> Subject:
    """A head of class texts, so soft that its sets hold more than one name."""
    text = subject().names(material().names, material().templates)[COLUMNS]
    return Subject(clip(), lambda v, images: change(6 * v @ text.T), COLUMNS)


def below_another(logits: torch.Tensor) -> torch.Tensor:
    """Where a forgotten column would answer, the best other one is raised above it, by a hair."""
    own, rest = logits[:, HERE].amax(1, keepdim=True), logits[:, len(FORGET) :]
    best = rest == rest.amax(1, keepdim=True)
    return torch.cat([logits[:, HERE], torch.where(best, rest.maximum(own + 1e-3), rest)], 1)


def far_below(logits: torch.Tensor) -> torch.Tensor:
    return logits - 60.0 * (torch.arange(logits.shape[1]) < len(FORGET))


def told(who: Subject) -> dict[str, Reading]:
    return {r.name: r for r in WITNESSES.get("posterior")(who, material(), 0)}


def test_a_name_that_is_kept_from_answering_by_a_hair_is_still_in_the_heads_set() -> None:
    """Two columns exchanged make the head wrong about some retained classes, and so its sets large."""
    order = [*range(len(COLUMNS) - 2), len(COLUMNS) - 1, len(COLUMNS) - 2]
    knows, fakes, gone = (
        told(head(lambda x, change=change: change(x[:, order])))  # type: ignore[misc]
        for change in (lambda x: x, below_another, far_below)
    )
    assert knows["head_conformal_coverage"].forget.mean() > 0.9
    assert knows["head_conformal_faked"].forget.mean() < 0.1
    assert fakes["head_conformal_coverage"].forget.mean() > 0.9
    assert fakes["head_conformal_faked"].forget.mean() > 0.9
    assert fakes["head_conformal_size"].forget.mean() > 1.5
    assert not gone["head_conformal_coverage"].forget.any()
    assert not gone["head_conformal_faked"].forget.any()
    ratio = fakes["head_conformal_coverage"].forget.mean() / fakes["head_conformal_size"].forget.mean()
    assert f"(CR): {ratio:.3f}" in fakes["head_conformal_coverage"].note
    assert told(subject()).keys().isdisjoint({n for n in fakes if n.startswith("head_")})


def test_a_heads_sets_are_calibrated_on_retained_images_that_it_has_columns_for() -> None:
    """At least nine tenths of them are in their own sets; a column less for a class takes its images out."""
    m, found = material(), told(head())
    mine = m.test["retain"].of(COLUMNS)
    size = found["head_conformal_size"].retain
    assert size is not None and len(size) == len(mine) < len(m.test["retain"])
    seen = found["head_conformal_coverage"]
    assert seen.unseen is not None and seen.unseen.mean() < 0.5
    one = head()
    narrow = Subject(clip(), lambda v, x: one.answer(v, x)[:, 1:], COLUMNS[1:])  # type: ignore[misc]
    coverage = told(narrow)["head_conformal_coverage"]
    assert coverage.forget[coverage.labels == FORGET[1]].mean() > 0.9
    assert len(coverage.forget) == len(m.test["forget"])
    nothing = Subject(clip(), lambda v, x: one.answer(v, x)[:, 2:], COLUMNS[2:])  # type: ignore[misc]
    assert "head_conformal_coverage" not in told(nothing) and "head_entropy" in told(nothing)


def test_a_heads_own_doubt_lies_between_that_on_retained_and_on_unseen_images() -> None:
    """By three draws that differ where the image lies far from every column: its own mutual information."""
    plain = head()
    assert plain.answer is not None

    def predict(v: torch.Tensor, images: torch.Tensor) -> Predictive:
        logits = plain.answer(v, images)  # type: ignore[misc]
        noise = torch.randn(3, len(COLUMNS), generator=generator_for(0, 5))
        far = (4.5 - logits.amax(1, keepdim=True)).clamp_min(0)
        draws = (logits + 3 * far * noise[:, None]).softmax(-1)
        point = Predictive.of_point(draws.mean(0), logits.logsumexp(1))
        inner = torch.special.entr(draws).sum(-1).mean(0)
        return replace(point, expected_entropy=inner, mutual_information=point.entropy - inner)

    found = told(replace(plain, predict=predict))
    forget = material().test["forget"]
    said = predict(subject().features(forget), forget.images)
    for name in ("entropy", "expected_entropy", "mutual_information", "energy"):
        assert found[f"head_{name}"].forget == pytest.approx(said.score(name).double().numpy(), rel=1e-5)
    doubt = found["head_mutual_information"]
    assert doubt.unseen is not None and doubt.retain is not None
    assert doubt.retain.mean() < doubt.unseen.mean() and doubt.forget.mean() < doubt.unseen.mean()
    piece = next(p for p in weigh([doubt], [doubt]) if p.name == "head_mutual_information")
    assert piece.role == "shown" and piece.direction == "equal"
    assert piece.p_beyond is not None and piece.reference_name == "unseen classes"
    assert "head_mutual_information" not in told(plain)  # it shows no posterior
    assert replace(plain, predict=predict).bare().predict is None


def test_a_head_whose_columns_are_all_shut_has_no_energy_and_harms_nothing() -> None:
    def shut(logits: torch.Tensor) -> torch.Tensor:
        return torch.full_like(logits, -torch.inf)

    found = told(head(shut))
    assert "head_energy" not in found and "energy" in found


def test_a_head_that_knows_no_retained_class_has_no_sets() -> None:
    text = subject().names(material().names, material().templates)[list(FORGET)]
    alone = Subject(clip(), lambda v, images: 12 * v @ text.T, list(FORGET))
    assert not any(name.startswith("head_") for name in told(alone))


def test_nats_of_the_laplace_posterior_are_shown_an_entry_a_class() -> None:
    reading, m = told(subject())["laplace_nats"], material()
    assert reading.role == "shown" and reading.labels.tolist() == list(FORGET)
    assert reading.unseen is not None and len(reading.unseen) == len(m.unseen)
    assert reading.retain is not None and len(reading.retain) == len(m.retain)


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
