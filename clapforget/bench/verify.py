"""``clapforget bench verify``: the verifier on cases whose truth is known.

========================  ==========================================================================
cases                     kinds × seeds (:mod:`clapforget.bench.verify_cases`)
confusion                 number of cases by truth and verdict
false_forgotten           share of the cases not truly forgotten whose verdict is ``forgotten``, by either seed of the
                          verifier
right_verdict             share with a right verdict, ``inconclusive`` counted as wrong wherever something can be
                          known; ``damaged`` is right also where the edit is measured to have cost the kept classes
                          more than the margin, on images that neither its maker nor the verifier saw
right_or_doubted          the same with ``inconclusive`` right where the kind says that a doubt is in order
harmed                    the cases that this was measured of, ``damaged`` by kind left aside
right_verdict_held_out    ``right_verdict`` on the seeds that no margin was chosen on
verdict_flips             share whose verdict another seed of the verifier changes (other images, other
                          unseen classes, other attacks)
auroc                     of each piece of evidence alone, forgotten against suppressed, by its residue
posterior_auroc           of the largest residue of the posterior evidence ...
behaviour_auroc           ... and of what can be seen from answers alone
combination_auroc         of the verdict itself (forgotten or not)
certificate_seconds       the slowest full examination from nothing, before and after (a case a seed); only where the
                          bench runs at the full level
quick_seconds             the median quick examination (of the first kind; null where that could not be made)
========================  ==========================================================================
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from clapforget.bench import (  # noqa: F401 (they file the kinds)
    verify_adversary,
    verify_attacks,
    verify_cases,
    verify_evasions,
    verify_gathered,
    verify_harmless,
    verify_heads,
    verify_patches,
)
from clapforget.bench.verify_kinds import KINDS, Case, Kind, cases, is_right
from clapforget.bench.verify_world import REQUESTS, World
from clapforget.errors import UserError
from clapforget.verify.evidence import Evidence
from clapforget.verify.examine import Examination, examine
from clapforget.verify.kept import LOSS, right
from clapforget.verify.material import Material
from clapforget.verify.reading import Level, Reading
from clapforget.verify.subject import Subject

__all__ = ["TUNED_ON", "measure"]

TUNED_ON = (0, 1, 2, 3, 4)
"""Seeds that were looked at while margins, witnesses and cases were worked out, some more, some less; the
others, with a twin, requests and images of their own, came when all was settled and are reported apart."""
_BEHAVIOUR = ("answers", "answers_top5", "answers_probability")
_FAR = 10.0
_CHEAP = {
    "adapter never trained", "nothing done", "fine-tuned on retained", "name removed from the head",
    "stored text embedding replaced", "names exchanged in the tower", "knowledge moved to an unseen name",
    "large random edit", "near neighbours taken along",
}  # fmt: skip


@dataclass
class _Seen:
    """What was worked out for one seed."""

    material: dict[Any, Material] = field(default_factory=dict)
    readings: dict[Any, list[Reading]] = field(default_factory=dict)


@dataclass
class _Outcome:
    kind: str
    truth: str
    seed: int
    verdict: str
    again: str | None
    rule: str
    weakest: str
    residues: dict[str, float]
    groups: dict[str, str]
    seconds: float
    or_else: tuple[str, ...] = ()
    harmed: float = 0.0
    """What the edit cost the kept classes, by images that neither its maker nor the verifier saw."""

    @property
    def right(self) -> bool:
        """See :func:`~clapforget.bench.verify_kinds.is_right`."""
        return is_right(self.verdict, self.truth, self._also)

    @property
    def accepted(self) -> bool:
        """Right, or a doubt where one is in order."""
        return self.verdict in (self.truth, *self._also)

    @property
    def _also(self) -> tuple[str, ...]:
        harm = self.truth != "forgotten" and self.harmed > LOSS
        return (*self.or_else, "damaged") if harm else self.or_else


def measure(
    quick: bool = False,
    say: Callable[[str], None] = lambda line: None,
    seeds: Sequence[int] | None = None,
    level: Level = "full",
    words: Sequence[str] = (),
) -> dict[str, Any]:
    """All cases, as plain values by name.

    :param quick: some cheap kinds, one seed, quick level. :param say: hears of each case.
    :param seeds: default: all that have a request of their own. :param level: of the verifier.
    :param words: only kinds with one of these in their name; none: all.
    :raises UserError: where no kind has such a word.
    """
    level = "quick" if quick else level
    chosen = list(seeds) if seeds is not None else list(range(1 if quick else len(REQUESTS)))
    kinds = _named(words, _few() if quick else KINDS)
    outcomes, fast, slow, missing = [], [], [], list[str]()
    for seed in chosen:
        world, seen = World.of(seed), _Seen()
        for kind, case in cases(world, kinds, missing, say):
            outcome = _examine(world, kind, case, level, seen)
            outcomes.append(outcome)
            say(f"{seed} {kind.name}: {kind.truth}, verdict {outcome.verdict} ({outcome.rule}; "
                f"{outcome.weakest}); again {outcome.again}; harmed {outcome.harmed:.2f}; "
                f"{outcome.seconds:.1f} s")  # fmt: skip
            if kind is kinds[0]:
                fast.append(_seconds(world, case, "quick"))
                slow += [_seconds(world, case, level)] if level == "full" else []
    return {**_summary(outcomes, fast, slow, level), "not_made": missing}


def _named(words: Sequence[str], kinds: Sequence[Kind]) -> Sequence[Kind]:
    for word in words:
        if not any(word in kind.name for kind in kinds):
            near = get_close_matches(word, [kind.name for kind in kinds], n=3, cutoff=0.0)
            raise UserError(
                f"no kind of case has {word!r} in its name", f"nearest of {len(kinds)}: {', '.join(near)}"
            )
    return [kind for kind in kinds if any(word in kind.name for word in words or [""])]


def _few() -> list[Kind]:
    return [kind for kind in KINDS if kind.name in _CHEAP]


def _examine(world: World, kind: Kind, case: Case, level: Level, seen: _Seen) -> _Outcome:
    began = time.monotonic()
    hard = kind.truth in ("forgotten", "suppressed")  # of these the evidence is compared, so all is read
    found = _verdict(world, case, level, world.seed, seen, shortcut=not hard)
    seconds = time.monotonic() - began
    again = _verdict(world, case, level, world.seed + 1000, seen, shortcut=True)
    return _Outcome(
        kind.name, kind.truth, world.seed, found.judgement.verdict, again.judgement.verdict,
        found.judgement.rule, found.judgement.weakest,
        {p.name: _residue(p) for p in found.evidence if p.reference is not None},
        {p.name: p.group for p in found.evidence}, seconds, kind.or_else,
        _harm(world, case, world.material(case.forget, world.seed, case.also_kept)),
    )  # fmt: skip


def _harm(world: World, case: Case, material: Material) -> float:
    """Accuracy that the edit cost the kept classes, of 0 to 1, by images that neither its maker nor the verifier
    saw: of all or of the neighbours, of the head or of bare CLIP, whichever is most.
    """
    lost = [0.0]
    columns = case.before.column_labels(len(material.names)).tolist()
    for old, new in ((case.before, case.after), (case.before.bare(), case.after.bare())):
        classes = [c for c in material.retain if old.answer is None or c in columns]
        part = world.images(classes, 10, first=80)
        drop = right(old, part, material).double() - right(new, part, material).double()
        near = torch.isin(part.labels, torch.tensor(material.neighbours, dtype=torch.long))
        lost += [float(d.mean()) for d in (drop, drop[near]) if len(d)]
    return max(lost)


def _verdict(
    world: World, case: Case, level: Level, seed: int, seen: _Seen, shortcut: bool = False
) -> Examination:
    """Examine; what was read off the same model before is not read again.

    :param shortcut: leave out the full level where it cannot change the verdict: after one of the
        rules that precede its witnesses, or where Holm rejects whatever else is tested.
    """
    key = (case.before, case.forget, case.also_kept, seed)
    if key[1:] not in seen.material:
        seen.material[key[1:]] = world.material(case.forget, seed, case.also_kept)
    m = seen.material[key[1:]]
    levels: tuple[Level, ...] = ("quick", level) if shortcut and level == "full" else (level,)
    for now in levels:
        old = seen.readings.get((*key, now))
        found = examine(case.before, case.after, m, level=now, seed=seed, before_readings=old)
        seen.readings[(*key, now)] = found.readings["before"]
        rule = int(found.judgement.rule.split(":")[0])
        sure = (
            min((p.p_inside for p in found.evidence if p.p_inside is not None), default=1.0) < 1e-4
        )
        if rule <= 5 or (rule == 6 and sure):
            break
    return found


def _residue(piece: Evidence) -> float:
    if piece.residue is None:
        return piece.value - (piece.reference or 0.0) if piece.absolute else 0.0
    return float(np.clip(piece.residue, -_FAR, _FAR))


def _seconds(world: World, case: Case, level: Level) -> float:
    """Of one examination from nothing, before and after."""
    m = world.material(case.forget, world.seed)
    began = time.monotonic()
    examine(Subject(case.before.clip), Subject(case.after.clip), m, level=level, seed=world.seed)
    return time.monotonic() - began


def _summary(
    outcomes: Sequence[_Outcome], fast: Sequence[float], slow: Sequence[float], level: Level
) -> dict[str, Any]:
    right = [o.right for o in outcomes]
    fakes = [o for o in outcomes if o.truth != "forgotten"]
    held = [ok for ok, o in zip(right, outcomes) if o.seed not in TUNED_ON]
    confusion: dict[str, dict[str, int]] = {}
    for (truth, verdict), count in sorted(Counter((o.truth, o.verdict) for o in outcomes).items()):
        confusion.setdefault(truth, {})[verdict] = count
    hard = [o for o in outcomes if o.truth in ("forgotten", "suppressed")]
    names = sorted({name for o in hard for name in o.residues})
    return {
        "level": level,
        "cases": len(outcomes),
        "kinds": len({o.kind for o in outcomes}),
        "seeds": sorted({o.seed for o in outcomes}),
        "tuned_on_seeds": list(TUNED_ON),
        "confusion": confusion,
        "false_forgotten": float(np.mean(["forgotten" in (o.verdict, o.again) for o in fakes])),
        "right_verdict": float(np.mean(right)),
        "right_or_doubted": float(np.mean([o.accepted for o in outcomes])),
        "right_verdict_held_out": float(np.mean(held)) if held else None,
        "verdict_flips": float(np.mean([o.verdict != o.again for o in outcomes])),
        "harmed": [f"{o.seed} {o.kind}: {o.harmed:.2f}" for o in outcomes
                   if o.truth != "damaged" and o.harmed > LOSS],
        "wrong": [f"{o.seed} {o.kind}: {o.verdict} ({o.rule}; {o.weakest})"
                  for ok, o in zip(right, outcomes) if not ok],
        "flipped": [f"{o.seed} {o.kind}: {o.verdict}, {o.again}" for o in outcomes if o.verdict != o.again],
        "posterior_auroc": _auroc(hard, lambda o: _largest(o, lambda name: o.groups[name] == "posterior")),
        "behaviour_auroc": _auroc(hard, lambda o: _largest(o, _BEHAVIOUR.__contains__)),
        "combination_auroc": _auroc(hard, lambda o: float(o.verdict != "forgotten")),
        "auroc": {name: _auroc(hard, partial(_residue_of, name)) for name in names},
        "certificate_seconds": max(slow, default=None),
        "quick_seconds": float(np.median(fast)) if len(fast) else None,
        "outcomes": [asdict(o) for o in outcomes],
    }  # fmt: skip


def _residue_of(name: str, outcome: _Outcome) -> float:
    return outcome.residues.get(name, 0.0)


def _largest(outcome: _Outcome, wanted: Callable[[str], bool]) -> float:
    return max((r for name, r in outcome.residues.items() if wanted(name)), default=0.0)


def _auroc(outcomes: Sequence[_Outcome], score: Callable[[_Outcome], float]) -> float | None:
    truth = [o.truth == "suppressed" for o in outcomes]
    if len(set(truth)) < 2:
        return None
    return round(float(roc_auc_score(truth, [score(o) for o in outcomes])), 4)
