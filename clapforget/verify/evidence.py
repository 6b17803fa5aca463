"""From two observations, before and after a request, to pieces of evidence.

A piece of evidence is one number with its 95 % interval, its value before, a reference and the
direction that speaks for forgetting (or, for what is to be kept, for keeping).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from clapforget.verify import statistics
from clapforget.verify.observe import Observation, ViewObservation

__all__ = ["Evidence", "collect_evidence"]

Direction = Literal["low", "high", "equal"]
_TITLES = {
    "retain": "retained classes", "neighbours": "neighbours", "bystanders": "bystanders",
    "known": "retained classes known from pretraining",
}  # fmt: skip


@dataclass
class Evidence:
    """One number and what it is held against."""

    name: str
    title: str
    group: Literal["behaviour", "clip", "posterior", "head", "twin", "visual", "attack"]
    value: float
    interval: statistics.Interval
    before: float | None = None
    reference: float | None = None
    reference_interval: statistics.Interval | None = None
    reference_name: str = ""
    direction: Direction = "low"
    """Which values are good: at most the reference, at least it, or near it."""
    n: int = 0
    drop: float | None = None
    """Before − after, where the same images were looked at twice ..."""
    drop_interval: statistics.Interval | None = None
    """... and its paired interval."""
    holds: bool | None = None
    """Whether it speaks for a good outcome; set by the rules. None: shown, not judged."""
    note: str = ""
    lead: float | None = None
    """Before − reference: what there was to lose."""
    residue: float | None = None
    """(value − reference) / lead: 1 as before, 0 as the reference, below 0 beyond it."""
    margin: float | None = None
    """Residue that the rules allow, or (``absolute``) distance from the reference."""
    absolute: bool = False
    role: str = "shown"
    """See :data:`clapforget.verify.reading.Role`."""
    p_inside: float | None = None
    """Against ``at most the margin above the reference``: small means it is still inside."""
    p_beyond: float | None = None
    """Against ``at least minus the margin``: small means pushed beyond the reference."""
    p_above: float | None = None
    """Against ``above the margin``: one half of the equivalence test (TOST) ..."""
    p_below: float | None = None
    """... against ``below minus the margin``: the other."""
    scar: bool = False
    """Clearly beyond the reference on the other side: this gives the request away."""
    images_needed: int | None = None
    """How many images in all would settle it, where it is open."""
    curve: dict[str, list[float]] = field(default_factory=dict)
    """Accuracies by step of a training attack, by ``forget`` and ``unseen`` (after),
    ``before`` and ``twin`` ..."""
    curve_at: tuple[int, ...] = ()
    """... after so many steps."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, rounded to six digits."""
        return {key: _rounded(value) for key, value in asdict(self).items()}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, (tuple, list)) else value


def collect_evidence(before: Observation, after: Observation, seed: int = 0) -> list[Evidence]:
    """All evidence that the observed views allow.

    :param seed: of the bootstrap.
    """
    found: list[Evidence] = []
    if "forget" in after.views:
        found += _forget(before, after)
    for view in _TITLES:
        if view in after.views and view in before.views:
            found += _kept(view, before.views[view], after.views[view])
    found += _nats(before, after)
    found += _uncertainty(before, after, np.random.default_rng([seed, 7]))
    return found


def _forget(before: Observation, after: Observation) -> list[Evidence]:
    then, now = before.views["forget"], after.views["forget"]
    unseen = after.views.get("unseen")
    found = []
    if now.right is not None:
        value, interval = statistics.proportion(now.right)
        was = None if then.right is None else float(then.right.mean())
        by_chance: tuple[float, statistics.Interval | None, str] = (0.0, None, "never asked for")
        if unseen is not None and unseen.taken is not None:
            by_chance = (*statistics.mean(unseen.taken), "unseen images taken for one of them")
        found.append(Evidence(
            "forget_accuracy", "forgotten classes, answered by the strategy", "behaviour", value, interval,
            was, *by_chance, "low", now.n,
        ))  # fmt: skip
    reference, reference_interval = (None, None)
    if unseen is not None:
        reference, reference_interval = statistics.proportion(unseen.clip_right)
    value, interval = statistics.proportion(now.clip_right)
    found.append(Evidence(
        "clip_forget_accuracy", "forgotten classes, zero-shot by bare CLIP", "clip", value, interval,
        float(then.clip_right.mean()), reference, reference_interval, "unseen classes", "low", now.n,
    ))  # fmt: skip
    best = int(now.clip_right_by_prompt.mean(0).argmax())
    value, interval = statistics.proportion(now.clip_right_by_prompt[:, best])
    best_before = float(then.clip_right_by_prompt.mean(0).max())
    if unseen is not None:
        right = unseen.clip_right_by_prompt
        reference, reference_interval = statistics.proportion(right[:, int(right.mean(0).argmax())])
    found.append(Evidence(
        "clip_forget_accuracy_best_prompt", "the same, by whichever wording still works best", "clip",
        value, interval, best_before, reference, reference_interval, "unseen classes", "low", now.n,
    ))  # fmt: skip
    value, interval = statistics.mean(now.matched_cosine)
    reference, reference_interval = statistics.mean(now.unmatched_cosine)
    name = "unmatched pairs"
    if unseen is not None:
        reference, reference_interval = statistics.mean(unseen.matched_cosine)
        name = "matched pairs of unseen classes"
    found.append(Evidence(
        "matched_cosine", "cosine of forgotten images with their own name", "clip", value, interval,
        float(then.matched_cosine.mean()), reference, reference_interval, name, "equal", now.n,
        note=f"with other names: {float(now.unmatched_cosine.mean()):.3f}",
    ))  # fmt: skip
    return found


def _kept(name: str, then: ViewObservation, now: ViewObservation) -> list[Evidence]:
    found = []
    pairs: list[tuple[str, str, Any, Any]] = [
        ("clip_", "zero-shot by bare CLIP", then.clip_right, now.clip_right)
    ]
    if now.right is not None and then.right is not None and name in ("retain", "neighbours"):
        pairs.insert(0, ("", "answered by the strategy", then.right, now.right))
    for prefix, how, old, new in pairs:
        value, interval = statistics.proportion(new)
        drop, drop_interval = statistics.paired_drop(old, new)
        was = float(old.mean())
        found.append(Evidence(
            f"{prefix}{name}_accuracy", f"{_TITLES[name]}, {how}", "clip" if prefix else "behaviour",
            value, interval, was, was, None, "before the request", "high", now.n, drop, drop_interval,
        ))  # fmt: skip
    return found


def _nats(before: Observation, after: Observation) -> list[Evidence]:
    """Mean over the forgotten classes of KL(q ‖ prior), beside the retained classes' median."""
    own = [nats for label, nats in after.nats.items() if label in after.forget]
    rest = np.array([nats for label, nats in after.nats.items() if label in after.retain])
    if not own:
        return []
    old = [nats for label, nats in before.nats.items() if label in after.forget]
    value, interval = statistics.mean(np.array(own))
    note = f"median of the retained classes: {np.median(rest):.1f} nats" if len(rest) else ""
    return [Evidence(
        "posterior_nats", "nats of the forgotten classes' posterior over the prior", "posterior", value,
        interval, float(np.mean(old)) if old else None, float(np.median(rest)) if len(rest) else None, None,
        "retained classes", "low", len(own), note=note,
    )]  # fmt: skip


def _uncertainty(
    before: Observation, after: Observation, rng: np.random.Generator
) -> list[Evidence]:
    found = []
    now = after.views.get("forget")
    then = before.views.get("forget")
    if now is None or then is None or not now.scores:
        return []
    for score, title in (
        ("entropy", "predictive entropy"),
        ("mutual_information", "mutual information"),
    ):
        for other, direction, ideal in (("unseen", "equal", 0.5), ("retain", "high", None)):
            view = after.views.get(other)
            if view is None or not view.scores or score not in then.scores:
                continue
            value, interval = statistics.auroc(now.scores[score], view.scores[score], rng)
            old = statistics.auroc(then.scores[score], before.views[other].scores[score], rng, 1)[0]
            found.append(Evidence(
                f"{score}_auroc_{other}", f"{title}: forgotten above {_name(other)} (AUROC)", "posterior",
                value, interval, old, ideal, None, "indistinguishable" if ideal else "",
                direction, now.n,  # type: ignore[arg-type]
            ))  # fmt: skip
    return found


def _name(view: str) -> str:
    return {"unseen": "unseen classes", "retain": "retained classes"}[view]
