"""The whole examination: every witness on the model before, the model after and the twin."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from clapforget.verify.evidence import Evidence
from clapforget.verify.kept import kept_evidence, kept_probability
from clapforget.verify.material import Material
from clapforget.verify.membership import image_membership
from clapforget.verify.reading import FULL, WITNESSES, Level, Reading
from clapforget.verify.reference import lower, taught_since, without
from clapforget.verify.rules import Claim, decide
from clapforget.verify.silent import heard
from clapforget.verify.subject import Subject
from clapforget.verify.twins import refuse_knowing, twin_evidence
from clapforget.verify.unmoved import as_sure_as_before, unmoved_evidence
from clapforget.verify.verdict import Judgement
from clapforget.verify.weigh import weigh

__all__ = ["Examination", "examine", "readings"]


@dataclass
class Examination:
    """What was found and what it comes to."""

    judgement: Judgement
    evidence: list[Evidence]
    seconds: float
    level: Level
    claim: Claim
    readings: dict[str, list[Reading]] = field(default_factory=dict, repr=False)
    """Of ``before``, ``after`` and ``twin``: a number an image."""
    taught: set[int] = field(default_factory=set)
    """Unseen classes that stand for nothing, see :mod:`clapforget.verify.reference`."""
    kept_surety: float = 1.0
    """Probability of the right class on retained images, after over before."""

    def judge(self, claim: Claim) -> Judgement:
        """The same evidence under another claim."""
        return decide(self.evidence, claim, self.kept_surety, not_tested=self.judgement.not_tested)


def readings(
    subject: Subject, m: Material, level: Level, seed: int, known: Sequence[Reading] = ()
) -> list[Reading]:
    """What all witnesses of a level read off one subject.

    :param known: readings of a subject with the same CLIP: what trains a copy of it is taken from
        there, for it would come to the same.
    """
    quick = [n for n in WITNESSES.names() if n not in FULL]
    found = [reading for name in quick for reading in WITNESSES.get(name)(subject, m, seed)]
    if level == "quick":
        return found
    names = {reading.name for reading in found}
    if known:
        return [*found, *(reading for reading in known if reading.name not in names)]
    trained = [n for n in WITNESSES.names() if n in FULL]
    return found + [
        reading for name in trained for reading in WITNESSES.get(name)(subject, m, seed)
    ]


def examine(
    before: Subject,
    after: Subject,
    m: Material,
    twin: Subject | None = None,
    *,
    level: Level = "full",
    claim: Claim = "knowledge",
    seed: int = 0,
    before_readings: Sequence[Reading] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Examination:
    """Did it forget? See :mod:`clapforget.verify.rules` for how it is decided.

    :param twin: a model that never saw the forgotten data; without it unseen classes are the
        reference. It is examined first, as the model after is without one.
    :param before_readings: of an earlier examination with the same before, material,
        level and seed, to save their time. :param say: hears of each part as it begins.
    :raises UserError: if the twin is shown to know what was to be forgotten.
    """
    began = time.monotonic()
    say("before")
    old = list(before_readings) if before_readings is not None else readings(before, m, level, seed)
    reference: list[Reading] = []
    if twin is not None:
        say("twin")
        reference = readings(twin, m, level, seed)
        refuse_knowing(before, twin, m, old, reference, claim)
    say("after")
    new = readings(after, m, level, seed, old if after.clip is before.clip else ())
    taught = taught_since(old, new)
    then, now, apart = (without(side, taught) for side in (old, new, reference))
    evidence = weigh(then, lower(then, now), apart)
    evidence += kept_evidence(before, after, m)
    evidence += unmoved_evidence(before, after, m) + as_sure_as_before(before, after, m)
    if twin is not None:
        evidence += twin_evidence(before, after, twin, m, seed)
        if m.members is not None:
            evidence += image_membership(before, after, twin, m, seed)
    surety = kept_probability(after, m) / max(kept_probability(before, m), 1e-9)
    left_out = not_tested(m, level, twin is not None, after)
    if taught:
        left_out.insert(0, f"{len(taught)} of {len(m.unseen)} unseen classes, left out: the model after answers "
                        "them more often than the model before, so they stand for nothing")  # fmt: skip
    judgement = heard(decide(evidence, claim, surety, not_tested=left_out), after, m)
    return Examination(judgement, evidence, time.monotonic() - began, level, claim,
                       {"before": old, "after": new, "twin": reference}, taught, surety)  # fmt: skip


def not_tested(
    m: Material, level: Level, twin: bool = False, after: Subject | None = None
) -> list[str]:
    """What an examination leaves out, and why."""
    left = []
    if level == "quick":
        left.append(
            "relearning, fine-tuning on retained data, learned prompts, learned marks on images (level full does)"
        )
    if after is not None and after.answer is not None and after.class_weights is None:
        left.append("what the head stores: it shows no class vectors")
    if m.members is None:
        left.append("membership of single images: needs to be known on which images the model before "
                    "was trained")  # fmt: skip
    elif not twin:
        left.append("membership of single images: needs a twin as reference model")
    if not any(m.synonyms.get(c) for c in m.forget):
        left.append("other words for the same thing: none were given")
    if not m.neighbours:
        left.append("neighbours: the data set names none")
    if not m.unseen:
        left.append("whatever needs unseen classes: none were given")
    if not any(part in m.shots for part in ("forget", "retain")):
        left.append("attacks that need images of their own: none besides the test images")
    return [
        *left,
        "wordings, transforms and marks on images other than those that the evidence tries",
        "what names do not say: attributes, counts, captions",
        "inner layers of the image tower, where they moved: it is judged by what it gives out",
    ]
