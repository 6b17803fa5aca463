"""Evidence and verdict where single samples were forgotten and their classes stay.

A model that never learned a sample still knows its class: it treats the sample as it treats test
images of the same class. So those are the reference, in the view ``unseen``, and the samples are the
view ``forget``. The rules, in order:

1. **damaged**: something that was to be kept lost more than ``damage_margin`` of accuracy, the paired
   interval of the loss wholly above it.
2. **forgotten**: the head is the one made again without the samples, up to rounding (a proof), and
   no tower of CLIP ever learned them.
   Of a request by pairs, rules 2 to 6 give way to one piece of evidence: how much of the lead that
   matching test pairs had over pairs that do not belong together is left. **retained** if more than
   ``residue`` of it, interval and all; **forgotten** if less; else, with few pairs or no lead to lose,
   **inconclusive**.
3. **inconclusive**: fewer samples, or test images, than ``minimum_images``.
4. **retained**: some score tells the samples from the test images: its AUROC's interval lies wholly
   more than ``answer_margin`` away from 1/2; or their accuracies differ by more than that.
5. **inconclusive**: an interval reaches across the margin; or nothing stood out before the request: no score lay
   more than ``answer_margin`` away from 1/2, nor did the accuracies differ by more. Then doing nothing looks the same.
6. **forgotten**.

Membership by shadow heads (:mod:`~clapforget.verify.shadow_heads`) stands beside, not judged.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clapforget.verify import statistics
from clapforget.verify.evidence import Evidence
from clapforget.verify.observe import Observation, ViewObservation
from clapforget.verify.verdict import Judgement

__all__ = ["SAMPLE_SCORES", "SampleRules", "judge_samples", "sample_evidence"]

SAMPLE_SCORES = {
    "matched_cosine": "cosine with the own class's name",
    "entropy": "predictive entropy",
    "mutual_information": "mutual information",
}
"""Scores by which samples are told from test images of their classes."""

_LEAD = 0.05  # cosine below which matching pairs did not stand out
_KEPT = {
    "retain": "retained classes", "neighbours": "neighbours", "bystanders": "bystanders",
    "known": "retained classes known from pretraining",
}  # fmt: skip


@dataclass(frozen=True)
class SampleRules:
    """The margins. Accuracies are fractions."""

    damage_margin: float = 0.05
    answer_margin: float = 0.10
    residue: float = 0.25
    minimum_images: int = 20


def sample_evidence(before: Observation, after: Observation, seed: int = 0) -> list[Evidence]:
    """All evidence that two observations of a request by samples allow.

    :param before: with the views ``forget`` (the samples), ``unseen`` (test images of their classes)
        and those that are to be kept. :param seed: of the bootstrap.
    """
    rng = np.random.default_rng([seed, 7])
    found: list[Evidence] = []
    if "forget" in after.views and "unseen" in after.views:
        found = _accuracy(before, after)
        for score, title in SAMPLE_SCORES.items():
            then, now = _pair(before, score), _pair(after, score)
            if now is not None:
                value, interval = statistics.auroc(*now, rng)
                was = None if then is None else statistics.auroc(*then, rng, 1)[0]
                found.append(Evidence(
                    f"samples_{score}_auroc", f"{title}: samples above test images of their classes "
                    "(AUROC)", "posterior" if score != "matched_cosine" else "clip", value, interval,
                    was, 0.5, None, "indistinguishable", "equal", len(now[0]),
                    lead=None if was is None else was - 0.5,
                ))  # fmt: skip
    if "pairs" in after.views and "pairs" in before.views:
        earlier, later = before.views["pairs"], after.views["pairs"]
        value, interval = statistics.mean(later.matched_cosine)
        reference, band = statistics.mean(later.unmatched_cosine)
        found.append(Evidence(
            "pairs_cosine", "cosine of matching test images with their matching captions", "clip", value,
            interval, float(earlier.matched_cosine.mean()), reference, band,
            "the same images with captions of others", "equal", later.n,
        ))  # fmt: skip
    for view in _KEPT:
        if view in after.views and view in before.views:
            found += _kept(view, before.views[view], after.views[view])
    return found


def _kept(name: str, then: ViewObservation, now: ViewObservation) -> list[Evidence]:
    """Accuracy before and after on the same images, by the strategy and by bare CLIP."""
    pairs = [("clip_", "zero-shot by bare CLIP", then.clip_right, now.clip_right)]
    if now.right is not None and then.right is not None and name in ("retain", "neighbours"):
        pairs.insert(0, ("", "answered by the strategy", then.right, now.right))
    found = []
    for prefix, how, old, new in pairs:
        value, interval = statistics.proportion(new)
        drop, drop_interval = statistics.paired_drop(old, new)
        was = float(old.mean())
        found.append(Evidence(
            f"{prefix}{name}_accuracy", f"{_KEPT[name]}, {how}", "clip" if prefix else "behaviour",
            value, interval, was, was, None, "before the request", "high", now.n, drop, drop_interval,
        ))  # fmt: skip
    return found


def _accuracy(before: Observation, after: Observation) -> list[Evidence]:
    now, test, then = after.views["forget"], after.views["unseen"], before.views["forget"]
    if now.right is None or test.right is None:
        return []
    value, interval = statistics.proportion(now.right)
    reference, reference_interval = statistics.proportion(test.right)
    was = None if then.right is None else float(then.right.mean())
    other = before.views["unseen"].right if "unseen" in before.views else None
    lead = None if was is None or other is None else was - float(other.mean())
    return [Evidence(
        "samples_accuracy", "accuracy on the samples, answered by the strategy", "behaviour", value,
        interval, was, reference, reference_interval, "test images of their classes", "equal", now.n,
        lead=lead,
    )]  # fmt: skip


def _pair(seen: Observation, score: str) -> tuple[np.ndarray, np.ndarray] | None:
    views: list[ViewObservation] = [seen.views["forget"], seen.views["unseen"]]
    if score == "matched_cosine":
        return views[0].matched_cosine, views[1].matched_cosine
    if all(score in view.scores for view in views):
        return views[0].scores[score], views[1].scores[score]
    return None


def judge_samples(
    evidence: list[Evidence], in_clip: bool, not_removed: str, rules: SampleRules | None = None
) -> Judgement:
    """Apply the rules; sets ``holds`` of every piece of evidence they look at.

    :param in_clip: whether CLIP itself was to be changed.
    :param not_removed: what the head still holds of the samples, in words; empty: nothing.
    """
    rules = rules or SampleRules()
    found = {piece.name: piece for piece in evidence}
    claim = (
        "that these samples are out of the memory, the cached features and the posteriors of their "
        "classes, and are answered like images of their classes that were never learned; not that "
        "their classes are forgotten"
    )
    if not_removed:
        claim += f". Not removed: {not_removed}"
    untested = ["rounding of the weights"]

    def say(verdict: str, rule: str, weakest: str) -> Judgement:
        return Judgement(verdict, rule, weakest, claim, untested)

    if hurt := [piece for piece in evidence if _hurt(piece, rules)]:
        worst = max(hurt, key=lambda piece: piece.drop or 0)
        return say(
            "damaged", f"1: more than {rules.damage_margin:.0%} was lost",
            f"{worst.title}: lost {worst.drop or 0:.1%}",
        )  # fmt: skip
    if (pairs := found.get("pairs_cosine")) is not None:
        verdict, rule = _judge_pairs(pairs, rules)
        return say(verdict, rule, _shown([pairs]))
    proof = found.get("posterior_refit_difference")
    if proof is not None and proof.holds and not in_clip:
        return say(
            "forgotten", "2: the head is the one made again without them",
            f"largest difference to it: {proof.value:.1e}",
        )  # fmt: skip
    pieces = [found[name] for name in _names() if name in found]
    smallest = min((piece.n for piece in pieces), default=0)
    if smallest < rules.minimum_images:
        return say("inconclusive", f"3: {smallest} samples are too few", _shown(pieces))
    margin = rules.answer_margin
    gaps = [(piece, *_gap(piece)) for piece in pieces]
    for piece, _, high in gaps:
        piece.holds = high <= margin
    if apart := [piece for piece, low, _ in gaps if low > margin]:
        return say("retained", "4: the samples still stand out", _shown(apart))
    if open_ := [piece for piece, _, high in gaps if high > margin]:
        return say("inconclusive", "5: an interval reaches across the margin", _shown(open_))
    if not any(_stood_out(piece, margin) for piece in pieces):
        return say("inconclusive", "5: the samples did not stand out before the request either", _shown(pieces))
    return say("forgotten", "6: answered like images that were never learned", _shown(pieces))


def _stood_out(piece: Evidence, margin: float) -> bool:
    """Whether there was something to lose, before the request."""
    return piece.lead is not None and abs(piece.lead) > margin


def _hurt(piece: Evidence, rules: SampleRules) -> bool:
    """Whether a thing to keep was lost; what pretraining never taught CLIP is not to be kept there."""
    if piece.drop_interval is None or piece.name == "clip_retain_accuracy":
        return False
    piece.holds = piece.drop_interval[0] <= rules.damage_margin
    return not piece.holds


def _judge_pairs(piece: Evidence, rules: SampleRules) -> tuple[str, str]:
    reference, before = piece.reference or 0.0, piece.before or 0.0
    lead = before - reference
    if piece.n < rules.minimum_images:
        return "inconclusive", f"pairs: {piece.n} matching test pairs are too few"
    if lead <= _LEAD:
        return "inconclusive", "pairs: they had no lead to lose"
    low, high = ((end - reference) / lead for end in piece.interval)
    piece.holds = high <= rules.residue
    if low > rules.residue:
        return "retained", f"pairs: more than {rules.residue:.0%} of their lead is left"
    if high > rules.residue:
        return "inconclusive", "pairs: the interval reaches across the margin"
    return "forgotten", "pairs: their lead over pairs that do not belong together is gone"


def _names() -> list[str]:
    return ["samples_accuracy", *(f"samples_{score}_auroc" for score in SAMPLE_SCORES)]


def _gap(piece: Evidence) -> tuple[float, float]:
    """Least and greatest distance to the reference that the interval allows."""
    low, high = piece.interval
    floor, roof = piece.reference_interval or (piece.reference or 0.0, piece.reference or 0.0)
    least = max(low - roof, floor - high, 0.0)
    centre = piece.reference or 0.0
    return least, max(abs(high - centre), abs(low - centre))


def _shown(pieces: list[Evidence]) -> str:
    if not pieces:
        return "nothing was observed of the samples"
    worst = max(pieces, key=lambda piece: _gap(piece)[1])
    low, high = worst.interval
    return (
        f"{worst.title}: {worst.value:.2f} [{low:.2f}, {high:.2f}], reference {worst.reference:.2f}"
    )
