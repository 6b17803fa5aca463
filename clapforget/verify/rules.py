"""From evidence to one of five words. In this order; the first that fires decides.

1. **inconclusive**: fewer than ``minimum_images`` test images of the forgotten classes.
2. **inconclusive**: the model before does not show what was to be forgotten (no piece of evidence had
   a lead over the reference).
3. **damaged**: kept classes, neighbours or bystanders lost more than 5 points on average (one-sided score test,
   Holm over the views); unless the class is still answered as before (more than three quarters of it): then
   what was harmed was something else, and rule 4 speaks.
4. **retained**: still answered: above the reference by more than 10 points (one-sided test at 5 %),
   and neither less surely nor by fewer wordings than before; or as before where unseen images, for want of
   columns, are often taken for the class too, and a piece of evidence accuses (rule 6).
5. **suppressed**: still answered, but weakened: the probability of the right answer fell to less than half
   (of what retained classes kept of theirs), or some of the data's own wordings fell to less than half, or
   rounding the weights brings back more than bare CLIP answers (95 % intervals apart).
6. **suppressed**: gone from the answers, still inside: a piece of evidence lies above the reference by
   more than its margin (one-sided test, Holm over all pieces). Or, where knowledge is claimed to be gone and
   the images of the class had a place of their own before: they still lie where they lay (one linear map gives
   back at least 99.5 % of their features, interval above 99 %). Or a head is as sure of them as before, image by image
   (99.5 % of what the forgotten columns gave to its energy is there, interval above 99 %), by whatever column.
7. **suppressed**: pushed beyond: a piece whose role is ``both`` lies below the reference by more than its margin
   (the other side; Holm). What never was learned does not look so: it gives the request away, and
   what can be seen to be hidden is not gone.
8. **damaged**: a single kept class lost more than 20 % of its images (binomial test, Holm over the classes), or
   what all lost stands in so few of them that some did.
9. **inconclusive**: nothing stands in for a model that never knew: no twin and no unseen classes, or the
   class is still answered as before (more than three quarters of it, which is more than the reference allows)
   and what stands in is answered as often.
10. **inconclusive**: bare CLIP knew the class, knowledge is claimed to be gone, and no witness could judge
   the image tower, beside a twin or not; or the head alone knew it, still has a column for it and shows
   neither a stored class vector that answers nor nats of a posterior that its answers bear out (answers alone
   cannot tell what a head holds back); or knowledge is claimed to be gone, the images had a place of their own
   and the image tower's last block makes of them what it made (99.5 %, as in rule 6): at most the layer above
   was changed, and putting it back brings the class back, unless that layer alone knew it; or a piece whose role
   is ``both`` is not shown to be at most the margin above the reference (one-sided test at 5 %; all must
   pass, so no correction); or the place of the images is not shown to be at most the margin beyond it either:
   images that were put where no unseen class lies were put there. Or what was to be kept is not shown to be: of
   each view of all kept classes a loss of 5 points or more must be rejected (one-sided score test at 5 %; all must
   pass). A loss that is merely not significant is not enough. The smaller views (neighbours, bystanders) need not
   show it: they are a few images each, and they are among the kept classes.
11. **forgotten**. A piece of evidence that only accuses and lies clearly beyond the reference on the other
   side is named as a scar.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from clapforget.verify.evidence import Evidence
from clapforget.verify.statistics import holm
from clapforget.verify.verdict import Judgement, describe

__all__ = ["KEPT_OPEN", "Claim", "Margins", "decide"]

Claim = Literal["association", "knowledge"]
"""``association``: name and image no longer belong together. ``knowledge``: nor does the image tower
still know the class as one it learned."""

KEPT_OPEN = "10: what was to be kept is not shown to be kept"
"""The last doubt: all else is shown to be gone."""
_WHOLE = ("retain_accuracy", "retain_accuracy_without_names", "retain_wordings")
"""Views of all kept classes, by the head or (with ``clip_`` before) by bare CLIP."""


@dataclass(frozen=True)
class Margins:
    """Those of the rules; each reading states its own margin as well."""

    still_answered: float = 0.75
    weakened: float = 0.5
    unmoved: float = 0.995
    minimum_images: int = 20
    alpha: float = 0.05


def decide(
    evidence: Sequence[Evidence],
    claim: Claim = "knowledge",
    kept_surety: float = 1.0,
    margins: Margins | None = None,
    not_tested: Sequence[str] = (),
) -> Judgement:
    """Apply the rules.

    :param kept_surety: probability of the right class on retained images, after over before.
    :param not_tested: what the certificate shall list as such.
    """
    rules = margins or Margins()
    found = {piece.name: piece for piece in evidence}
    judged = [
        p for p in evidence
        if p.role in ("both", "accuses") and (claim == "knowledge" or p.group != "visual")
    ]  # fmt: skip
    inside = _rejected([(p, p.p_inside) for p in judged], rules.alpha)  # that accuse
    for piece in judged:
        if piece.role == "accuses" and piece.p_inside is not None:
            piece.holds = piece not in inside
    words = _claim_words(claim, found)

    def say(verdict: str, rule: str, weakest: str) -> Judgement:
        return Judgement(verdict, rule, weakest, words, list(not_tested))

    answers = found["answers"]
    if answers.n < rules.minimum_images:
        return say("inconclusive", f"1: {answers.n} test images are too few",
                   f"{rules.minimum_images - answers.n} more are needed")  # fmt: skip
    if answers.reference is not None and not any(p.lead is not None for p in judged):
        return say("inconclusive", "2: the model before does not show what was to be forgotten",
                   describe(answers))  # fmt: skip
    was = answers.before or 0.0
    intact = was > 0 and answers.value > rules.still_answered * was
    views = [p for p in evidence if p.role == "kept" and p.drop_interval is not None]
    lost = _rejected([(p, p.p_beyond) for p in views], rules.alpha)
    for piece in views:
        piece.holds = piece not in lost and not _loss_open(piece, rules.alpha)
    if lost and not intact:
        hurt = max(lost, key=lambda p: p.drop or 0.0)
        return say("damaged", "3: more was lost than was asked", describe(hurt))
    low = answers.interval[0]
    above = answers.p_inside is not None and answers.p_inside < rules.alpha
    open_answer = answers.reference is None and low > (answers.margin or 0.0)
    if above or open_answer or (intact and inside):
        if weak := _weakened(found, kept_surety, rules):
            return say(
                "suppressed", f"5: still answered, but weakened: {weak[0]}", describe(weak[1])
            )
        return say("retained", "4: it still answers", describe(answers))
    if intact and was > (answers.reference or 0.0) + (answers.margin or 0.0):
        return say("inconclusive", "9: answered as before, and what stands for never learned is answered as often",
                   describe(answers))  # fmt: skip
    return say(*_gone_from_answers(evidence, judged, inside, answers, claim, rules))


def _rejected(tests: Sequence[tuple[Evidence, float | None]], alpha: float) -> list[Evidence]:
    """The pieces whose hypotheses Holm's procedure rejects, over all that have a p value."""
    told = [(piece, p) for piece, p in tests if p is not None]
    return [piece for (piece, _), no in zip(told, holm([p for _, p in told], alpha)) if no]


def _gone_from_answers(
    evidence: Sequence[Evidence],
    judged: Sequence[Evidence],
    inside: Sequence[Evidence],
    answers: Evidence,
    claim: Claim,
    rules: Margins,
) -> tuple[str, str, str]:
    """Rules 6 to 11: verdict, rule, weakest."""
    found = {piece.name: piece for piece in evidence}
    if inside:
        tests = [p for p in judged if p.p_inside is not None]
        worst = min(inside, key=lambda p: (p.p_inside or 0.0, -(p.residue or 0.0)))
        return ("suppressed", f"6: gone from the answers, still inside ({len(inside)} of "
                   f"{len(tests)} witnesses)", describe(worst))  # fmt: skip
    if as_before := _still(found, judged, claim, rules):
        return ("suppressed", f"6: gone from the answers, {as_before[0]}", describe(as_before[1]))
    must = [p for p in judged if p.role == "both"]
    if pushed := _rejected([(p, p.p_beyond) for p in must if not p.absolute], rules.alpha):
        worst = min(pushed, key=lambda p: p.residue or 0.0)
        return ("suppressed", "7: pushed beyond what was never learned", describe(worst))
    if worst_class := _hurt(evidence):
        return ("damaged", "8: a kept class was lost", describe(worst_class))
    if answers.reference is None:
        return ("inconclusive", "9: no twin and no unseen classes to compare with",
                   "give --unseen or --twin")  # fmt: skip
    knew = found.get("zero_shot", answers).role != "shown"
    if claim == "knowledge" and knew and not _had_a_place(judged):
        return ("inconclusive", "10: no witness could judge the image tower",
                "give more unseen classes or images, or claim the association only")  # fmt: skip
    if _head_not_shown(found, answers):
        return ("inconclusive", "10: the head alone knew the class, and what it shows does not explain its answers",
                "give the head's stored class vectors or the nats of its posterior")  # fmt: skip
    if claim == "knowledge" and (still := _unmoved(found, judged, rules, "inner_features_kept")):
        return (
            "inconclusive",
            "10: below the last layer of the image tower nothing moved",
            describe(still),
        )
    unclear = [p for p in must if _open(p, rules.alpha)]
    if unclear:
        worst = max(unclear, key=lambda p: _open(p, rules.alpha))
        need = "no number of images settles it: more unseen classes are needed"
        if worst.images_needed is not None:
            need = f"about {worst.images_needed} images of the forgotten classes would settle it"
        return ("inconclusive", f"10: not shown to be gone ({len(unclear)} of {len(must)})",
                   f"{describe(worst)}; {need}")  # fmt: skip
    if unsure := [p for p in evidence if _loss_open(p, rules.alpha)]:
        worst = max(unsure, key=lambda p: p.p_below if p.p_below is not None else 1.0)
        need = "no number of images settles it: it lost what may be lost"
        if worst.images_needed is not None:
            need = f"about {worst.images_needed} images of the kept classes would settle it"
        return ("inconclusive", KEPT_OPEN, f"{describe(worst)}; {need}")
    nearest = max(judged, key=_closeness)
    scars = [p.title for p in judged if p.scar]
    scar = f"; a scar gives it away: {', '.join(scars)}" if scars else ""
    return ("forgotten", f"11: nothing above the reference{scar}", describe(nearest))


def _still(
    found: dict[str, Evidence], judged: Sequence[Evidence], claim: Claim, rules: Margins
) -> tuple[str, Evidence] | None:
    """What is as it was, and how it is known."""
    place = _unmoved(found, judged, rules, "image_features_kept")
    if claim == "knowledge" and place is not None:
        return "its images lie where they lay", place
    sure = found.get("head_energy_kept")
    if sure is not None and _whole(sure, rules):
        return "the head is as sure of its images as before", sure
    return None


def _unmoved(
    found: dict[str, Evidence], judged: Sequence[Evidence], rules: Margins, name: str
) -> Evidence | None:
    """The images that had a place of their own, where they have it still. :param name: of the evidence."""
    kept = found.get(name)
    return kept if kept is not None and _had_a_place(judged) and _whole(kept, rules) else None


def _whole(kept: Evidence, rules: Margins) -> bool:
    """Whether all of something is there still."""
    return kept.value >= rules.unmoved and kept.interval[0] > 1 - 2 * (1 - rules.unmoved)


def _had_a_place(judged: Sequence[Evidence]) -> bool:
    """Whether the model before showed the class among others by where its images lie, so that it can be told
    whether they do still. (How they changed can always be told.)"""
    return any(p.group == "visual" and p.residue is not None for p in judged)


def _open(piece: Evidence, alpha: float) -> float:
    """The larger p value by which a piece is not shown to be near the reference; 0 where it is. The far side is
    asked of pieces about the images' place alone."""
    sides = [0.0 if piece.holds else piece.p_above or 1.0]
    far = piece.group == "visual" and not piece.absolute
    if far and piece.p_below is not None and piece.p_below > alpha:
        sides.append(piece.p_below)
    return max(sides)


def _loss_open(piece: Evidence, alpha: float) -> bool:
    """Whether a view of all kept classes is not shown to have lost less than its margin."""
    whole = piece.role == "kept" and piece.name.removeprefix("clip_") in _WHOLE
    return whole and (piece.p_below is None or piece.p_below > alpha)


def _hurt(evidence: Sequence[Evidence]) -> Evidence | None:
    """The worst of those that are judged by class."""
    lost = [
        p for p in evidence if p.role == "kept" and p.drop_interval is None and p.holds is False
    ]
    return max(lost, key=lambda p: p.drop or 0.0, default=None)


def _weakened(
    found: dict[str, Evidence], kept_surety: float, rules: Margins
) -> tuple[str, Evidence] | None:
    sure = found.get("answers_probability")
    if sure is not None and sure.before:
        left = sure.value / sure.before / min(max(kept_surety, 1e-9), 1.0)
        if left < rules.weakened:
            return "far less surely than before", sure
    worst = found.get("wordings_worst")
    if worst is not None and worst.before and worst.value < rules.weakened * worst.before:
        return "some wordings fail", worst
    bare = found.get("zero_shot", found["answers"])
    for rounded in (p for name, p in found.items() if name.startswith("rounding_")):
        if rounded.interval[0] > bare.interval[1]:
            return "rounding the weights brings back more", rounded
    return None


def _head_not_shown(found: dict[str, Evidence], answers: Evidence) -> bool:
    """Whether a head knew what bare CLIP never did, still has its column, and nothing stored was looked at."""
    bare = found.get("zero_shot")
    if bare is None or bare.role != "shown" or "column_shut" not in found:
        return False
    knew = (answers.before or 0.0) > (answers.reference or 0.0) + (answers.margin or 0.0)
    inside = (found.get("head_weights"), found.get("posterior_nats"))
    return knew and not any(p is not None and p.role == "both" for p in inside)


def _closeness(piece: Evidence) -> float:
    """How much of its margin a piece uses up, its error included."""
    return piece.p_above or 0.0


def _claim_words(claim: Claim, found: dict[str, Evidence]) -> str:
    place = found.get("placement")
    words = "that the association between the name and its images is gone"
    if claim == "association":
        return f"{words}; not that the image tower no longer knows the images"
    if place is not None and place.residue is not None:
        return f"{words}, and that what the image tower gives out no longer shows the class as one it learned"
    return f"{words}; of the image tower nothing could be said, its features tell too little"
