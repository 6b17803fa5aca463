from __future__ import annotations

import numpy as np
import pytest

from clapforget.verify import Evidence, Observation
from clapforget.verify.observe import ViewObservation
from clapforget.verify.samples import judge_samples, sample_evidence


def view(n: int, entropy: float, seed: int, right: float = 1.0) -> ViewObservation:
    """A look at n images whose scores are normal around a level."""
    rng = np.random.default_rng(seed)
    scores = {name: rng.normal(entropy, 1, n) for name in ("entropy", "mutual_information")}
    answers = rng.random(n) < right
    cosine = rng.normal(0, 1, n)
    return ViewObservation(n, answers, cosine, cosine, answers, scores=scores)


def seen(level: float, n: int = 800, right: float = 1.0) -> Observation:
    views = {
        "forget": view(n, level, 1),
        "unseen": view(n, 0.0, 2),
        "retain": view(n, 0.0, 3, right),
    }
    return Observation(views)


def judged(before: Observation, after: Observation, kept: str = "") -> tuple[str, str, str]:
    judgement = judge_samples(sample_evidence(before, after), False, kept)
    return judgement.verdict, judgement.weakest, judgement.claim


def test_samples_that_stood_out_and_no_longer_do_are_forgotten() -> None:
    verdict, weakest, claim = judged(seen(-2.0), seen(0.0), "the attention")
    assert verdict == "forgotten"
    assert "reference" in weakest
    assert claim.endswith("Not removed: the attention")


def test_samples_that_never_stood_out_prove_nothing() -> None:
    """Nothing is to be seen before, nor after: so it would be if nothing had been done."""
    for same in (seen(0.0), seen(0.0, n=500)):
        judgement = judge_samples(sample_evidence(same, same), False, "")
        assert judgement.verdict == "inconclusive"
        assert "did not stand out before" in judgement.rule


def test_samples_that_stood_out_by_their_accuracy_alone_are_judged() -> None:
    """Answered right more often than test images then, and as often now; a class that was harmed meanwhile
    does not make them stand out."""

    def answered(own: float, tests: float) -> Observation:
        views = {"forget": view(800, 0.0, 1, own), "unseen": view(800, 0.0, 2, tests), "retain": view(800, 0.0, 3)}
        return Observation(views)

    assert judged(answered(1.0, 0.7), answered(0.7, 0.7))[0] == "forgotten"
    assert judged(answered(1.0, 1.0), answered(0.7, 0.7))[0] == "inconclusive"


@pytest.mark.parametrize("level", [-2.0, 2.0], ids=["familiar", "streisand"])
def test_samples_that_stand_out_either_way_are_retained(level: float) -> None:
    assert judged(seen(-2.0), seen(level))[0] == "retained"


def test_few_samples_decide_nothing() -> None:
    assert judged(seen(0.0, 10), seen(0.0, 10))[0] == "inconclusive"
    assert judged(seen(0.0, 40), seen(0.0, 40))[0] == "inconclusive"


def test_lost_retained_classes_are_damage() -> None:
    assert judged(seen(-2.0), seen(0.0, right=0.7))[0] == "damaged"


def test_a_refitted_head_is_a_proof_unless_clip_was_to_forget_too() -> None:
    evidence = sample_evidence(seen(0.0, 10), seen(0.0, 10))
    evidence.append(Evidence(
        "posterior_refit_difference", "", "head", 1e-12, (1e-12, 1e-12), reference=1e-6, holds=True
    ))  # fmt: skip
    assert judge_samples(evidence, False, "").verdict == "forgotten"
    assert judge_samples(evidence, True, "").verdict == "inconclusive"


def test_nothing_looked_at_gives_no_evidence_of_samples() -> None:
    only = Observation({"retain": view(50, 0.0, 3)})
    assert all("samples" not in piece.name for piece in sample_evidence(only, only))


def with_pairs(matched: float, n: int = 60) -> Observation:
    rng = np.random.default_rng(4)
    look = view(n, 0.0, 5)
    look.matched_cosine = rng.normal(matched, 0.02, n)
    look.unmatched_cosine = rng.normal(0.1, 0.02, n)
    return Observation({"pairs": look})


@pytest.mark.parametrize(
    ("before", "after", "n", "verdict"),
    [
        (0.5, 0.11, 60, "forgotten"),
        (0.5, 0.4, 60, "retained"),
        (0.5, 0.2, 60, "inconclusive"),  # a quarter of the lead is left, more or less
        (0.5, 0.11, 10, "inconclusive"),
        (0.12, 0.1, 60, "inconclusive"),
    ],
)
def test_pairs_are_judged_by_the_lead_that_is_left(before, after, n, verdict) -> None:
    assert judged(with_pairs(before, n), with_pairs(after, n))[0] == verdict
