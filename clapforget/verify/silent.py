"""Images of which a model gives out nothing: a tower that overflows, or a last layer of zeros."""

from __future__ import annotations

from dataclasses import replace

from clapforget.verify.material import Material, Part
from clapforget.verify.subject import Subject
from clapforget.verify.verdict import Judgement

__all__ = ["heard", "silent"]


def silent(subject: Subject, part: Part) -> int:
    """How many images have no features: zeros, as :meth:`~clapforget.verify.subject.Subject.features` gives where
    the tower's own are not finite."""
    return int((subject.features(part) == 0).all(1).sum())


def heard(judgement: Judgement, after: Subject, m: Material) -> Judgement:
    """The same judgement; **inconclusive** in place of **forgotten** where the model after gives out nothing of a test
    image to be forgotten: what cannot be looked at was not seen to be gone.
    """
    part = m.test["forget"]
    lost = silent(after, part)
    if judgement.verdict != "forgotten" or not lost:
        return judgement
    return replace(
        judgement, verdict="inconclusive", rule="0: the model after gives no features of images to be forgotten",
        weakest=f"{lost} of {len(part)} test images have none that are finite and not zero",
    )  # fmt: skip
