"""From readings to evidence: each value against its reference, by two one-sided tests.

The forgotten classes are the given ones: their uncertainty is that of their images. The reference
stands for *never learned*: its uncertainty is that of a mean over classes. To clear (``p_above``) these
two enter; to accuse (``p_inside``) also what one unseen class differs from another, for an unlucky
class must not be taken for a memory.

One class of many may be left, and the mean hide it. So two hypotheses share the accusation: the mean
over all images gets four fifths of the level, the class that lies farthest out the rest, Bonferroni
over the classes (weighted Bonferroni, Holm 1979).

What was there to lose, the scale, is taken as given. Of a share it is before − reference. A score (a
cosine, an entropy) has a scale that any training changes: there it is retained − reference in the model
after itself, times how far of that way the forgotten classes stood before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from clapforget.verify import statistics
from clapforget.verify.evidence import Evidence
from clapforget.verify.reading import Reading

__all__ = ["tost", "weigh"]

_ALPHA = 0.05
_FOR_THE_MEAN = 0.8
_MANY = 100_000


@dataclass(frozen=True)
class _Reference:
    """A mean with its standard error, and how much single classes differ."""

    mean: float
    error: float
    spread: float
    interval: statistics.Interval
    name: str
    classes: int
    """By which the spread was seen."""


def tost(difference: float, margin: float, error: float) -> tuple[float, float]:
    """Two one-sided z tests (Schuirmann 1987): p against *at least the margin* and against *at most
    minus the margin*. Both small: equivalent.
    """
    error = max(error, 1e-12)
    return (
        float(special.ndtr((difference - margin) / error)),
        float(special.ndtr(-(difference + margin) / error)),
    )


def weigh(
    before: Sequence[Reading], after: Sequence[Reading], twin: Sequence[Reading] = ()
) -> list[Evidence]:
    """A piece of evidence for every reading of the model after."""
    then = {r.name: r for r in before}
    twins = {r.name: r for r in twin}
    return [_weigh(then.get(r.name), r, twins.get(r.name), len(after)) for r in after]


def _weigh(then: Reading | None, now: Reading, twin: Reading | None, tests: int) -> Evidence:
    """:param tests: how many readings are weighed: what an accusation is corrected for at most."""
    if now.change:
        then, now, twin = _changes(then, now, twin)
    then, now, twin, note = _told_before(then, now, twin)
    value, interval, error = _mean(now)
    reference = _twin(now, twin) if twin is not None else _unseen(now)
    was = None if then is None else float(np.mean(then.forget))
    role = now.role
    if role == "twin":
        role = "both" if twin is not None else "shown"
    piece = Evidence(
        now.name, now.title, now.group, value, interval, was, direction="equal", n=len(now.forget),
        note="; ".join(filter(None, [now.note, note])), margin=now.margin, absolute=now.absolute, role="shown",
    )  # fmt: skip
    piece.curve, piece.curve_at = _curves(then, now, twin), now.curve_at
    if reference is None:
        return piece
    piece.reference, piece.reference_interval = reference.mean, reference.interval
    piece.reference_name = reference.name
    allowed, sign = now.margin, 1.0
    classes = len(set(now.labels.tolist()))
    if not now.absolute:
        sign = 1.0 if now.known_is == "high" else -1.0
        scale = _scale(piece, then, now, reference, sign)
        if scale is None:
            piece.note = "; ".join(
                filter(None, [piece.note, "tells known and unknown apart too little: no witness"])
            )
            return piece
        allowed = now.margin * scale
        piece.residue = sign * (value - reference.mean) / scale
    piece.role = role
    difference = sign * (value - reference.mean)
    clear = math.hypot(error, reference.error)
    accuse = math.hypot(clear, reference.spread / math.sqrt(classes))
    piece.p_above, piece.p_below = tost(difference, allowed, clear)
    piece.p_inside = float(special.ndtr((allowed - difference) / max(accuse, 1e-12)))
    if classes > 1:
        label, own, p = _farthest(now, reference, sign, allowed)
        if p / (1 - _FOR_THE_MEAN) < piece.p_inside / _FOR_THE_MEAN:
            piece.note = "; ".join(filter(None, [piece.note, f"class {label} alone: {own:.3f}"]))
        piece.p_inside = min(1.0, piece.p_inside / _FOR_THE_MEAN, p / (1 - _FOR_THE_MEAN))
    piece.p_beyond = float(special.ndtr((difference + allowed) / max(accuse, 1e-12)))
    piece.scar = piece.p_beyond < _ALPHA
    piece.holds = piece.p_above <= _ALPHA if role != "shown" else None
    if role == "both":
        between = math.hypot(reference.error, reference.spread / math.sqrt(classes))
        gaps = [allowed - difference] if not piece.holds else []
        if now.group == "visual" and not now.absolute and piece.p_below > _ALPHA:
            gaps.append(allowed + difference)
        needed = [
            _needed(len(now.forget), error, *((reference.error, _ALPHA, gap) if gap > 0
                                             else (between, _FOR_THE_MEAN * _ALPHA / tests, -gap)))
            for gap in gaps
        ]  # fmt: skip
        piece.images_needed = None if None in needed else max(filter(None, needed), default=None)
    return piece


def _changes(
    then: Reading | None, now: Reading, twin: Reading | None
) -> tuple[None, Reading, Reading | None]:
    """The readings after and of the twin as what they rose by since before, image by image. Shown alone where
    there is no reading before."""
    if then is None:
        return None, replace(now, role="shown"), twin

    def since(after: Reading) -> Reading:
        unseen = None if after.unseen is None or then.unseen is None else after.unseen - then.unseen
        return replace(after, forget=after.forget - then.forget, unseen=unseen, retain=None)

    return None, since(now), None if twin is None else since(twin)


def _told_before(
    then: Reading | None, now: Reading, twin: Reading | None
) -> tuple[Reading | None, Reading, Reading | None, str]:
    """The readings of those forgotten classes alone that a share told from the reference before, where that
    is some of them: the others had nothing to lose there, and what becomes of their images is chance. With
    them a note.
    """
    reference = _twin(now, twin) if twin is not None else _unseen(now)
    if then is None or reference is None or not now.share or now.absolute:
        return then, now, twin, ""
    if float(np.mean(then.forget)) - reference.mean < now.minimum_lead:
        return then, now, twin, ""  # no witness, and some of them by chance must not make it one
    classes = np.unique(now.labels)
    told = classes[_by_class(then.forget, then.labels) - reference.mean >= now.minimum_lead]
    if not 0 < len(told) < len(classes):
        return then, now, twin, ""

    def of(reading: Reading) -> Reading:
        rows = np.isin(reading.labels, told)
        return replace(reading, forget=reading.forget[rows], labels=reading.labels[rows])

    note = f"of the {len(told)} of {len(classes)} classes that stood out before"
    return of(then), of(now), None if twin is None else of(twin), note


def _scale(
    piece: Evidence, then: Reading | None, now: Reading, reference: _Reference, sign: float
) -> float | None:
    """How far known lies from the reference; None where that is too little to witness anything.

    A score has its own scale in every model: retained against reference, after. If before, the
    forgotten classes stood apart by a part of that distance only, there is only that part to lose: a
    score that did not see the class before cannot say that it is gone. One that did and whose scale is too small
    after keeps the scale of before, if all must pass it: an edit that draws kept images to where unseen ones lie must
    not silence a witness. A share is measured by what the
    model before had over the reference, which is kept as the piece's lead.
    """
    classes = len(set(now.labels.tolist()))

    def enough(apart: float, base: _Reference) -> float | None:
        chance = math.hypot(base.error, base.spread / math.sqrt(classes))
        return apart if apart >= max(now.minimum_lead, 2 * chance) else None

    if now.retain is not None:
        apart = sign * (float(np.mean(now.retain)) - reference.mean)
        found = enough(apart * _part_before(then), reference)
        old = None if then is None else _unseen(then)
        if found is None and now.role == "both" and then is not None and old is not None:
            found = enough(sign * (float(np.mean(then.forget)) - old.mean), old)
        return found
    old = (
        reference if reference.name == "the twin" else (None if then is None else _unseen(then))
    )
    if then is None or old is None:
        return None
    piece.lead = float(np.mean(then.forget)) - old.mean
    return enough(sign * piece.lead, old)


def _part_before(then: Reading | None) -> float:
    """How far before, of the way from unseen to retained, the forgotten classes stood: at most 1; 1 where
    that cannot be told."""
    if then is None or then.retain is None or (unseen := _unseen(then)) is None:
        return 1.0
    whole = float(np.mean(then.retain)) - unseen.mean
    own = float(np.mean(then.forget)) - unseen.mean
    return min(1.0, max(0.0, own / whole)) if whole else 1.0


def _mean(reading: Reading) -> tuple[float, statistics.Interval, float]:
    values = reading.forget
    n, value = len(values), float(np.mean(values))
    if reading.share:
        smooth = (values.sum() + 1) / (n + 2)  # no zero error at 0 of n (Agresti and Coull 1998)
        error = math.sqrt(smooth * (1 - smooth) / n)
        if set(np.unique(values)) <= {0.0, 1.0}:
            return value, statistics.proportion(values)[1], error
        return value, statistics.mean(values, share=True)[1], max(error, statistics.standard_error(values))
    if n == 1:
        return value, (value, value), 0.0
    return value, statistics.mean(values)[1], statistics.standard_error(values)


def _farthest(
    now: Reading, reference: _Reference, sign: float, allowed: float
) -> tuple[int, float, float]:
    """The forgotten class that lies farthest above the reference: label, mean, p (Bonferroni over the
    classes), by Student's t, for what classes differ by is known from a few of them only.
    """
    found = []
    for label in np.unique(now.labels):
        rows = now.labels == label
        own, _, error = _mean(replace(now, forget=now.forget[rows], labels=now.labels[rows]))
        total = max(math.hypot(error, reference.error, reference.spread), 1e-12)
        t = (sign * (own - reference.mean) - allowed) / total
        found.append((float(special.stdtr(max(reference.classes - 1, 1), -t)), int(label), own))
    p, label, own = min(found)
    return label, own, min(1.0, p * len(found))


def _by_class(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.array([values[labels == c].mean() for c in np.unique(labels)])


def _unseen(reading: Reading) -> _Reference | None:
    if reading.unseen is None or reading.unseen_labels is None or not len(reading.unseen):
        return None
    means = _by_class(reading.unseen, reading.unseen_labels)
    centre, interval = statistics.mean(means, reading.share)
    spread = float(means.std(ddof=1)) if len(means) > 1 else float(np.std(reading.unseen))
    return _Reference(
        centre, spread / math.sqrt(len(means)), spread, interval, "unseen classes", len(means)
    )


def _twin(now: Reading, twin: Reading) -> _Reference:
    """The twin's value. Its noise is how much never-learned classes differ from model to model."""
    value, interval, error = _mean(twin)
    spread, classes = 0.0, _MANY
    if now.unseen is not None and twin.unseen is not None and twin.unseen_labels is not None:
        assert now.unseen_labels is not None
        apart = _by_class(now.unseen, now.unseen_labels) - _by_class(
            twin.unseen, twin.unseen_labels
        )
        spread, classes = float(np.sqrt(np.mean(apart**2))), len(apart)
    return _Reference(value, error, spread, interval, "the twin", classes)


def _curves(then: Reading | None, now: Reading, twin: Reading | None) -> dict[str, list[float]]:
    curves = dict(now.curve)
    for name, reading in (("before", then), ("twin", twin)):
        if reading is not None and "forget" in reading.curve:
            curves[name] = reading.curve["forget"]
    return curves


def _needed(n: int, error: float, rest: float, alpha: float, gap: float) -> int | None:
    """Images at which the value's own error would clear the gap; None where no number would."""
    z = float(-special.ndtri(alpha))
    room = (gap / z) ** 2 - rest**2
    if room <= 0:
        return None
    return min(_MANY, max(n + 1, math.ceil(n * error**2 / room)))
