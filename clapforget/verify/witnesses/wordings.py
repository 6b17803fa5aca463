"""Other words for the same name: which wording still works best, and which worst."""

from __future__ import annotations

import torch
from torch import Tensor

from clapforget.verify.material import Material, Part
from clapforget.verify.reading import Reading, read, witness
from clapforget.verify.subject import Subject

__all__ = ["PARAPHRASES", "wordings"]

PARAPHRASES = (
    "{}", "a photo of a {}", "an image that shows a {}", "the {} in the picture", "a small {}",
    "a red {}", "a {} on a gray background", "two {}s", "my {}", "a drawing of one {}",
)  # fmt: skip
"""Tried beside the data's own templates."""


@witness("wordings")
def wordings(subject: Subject, m: Material, seed: int) -> list[Reading]:
    """Zero-shot accuracy by the best single wording out of the data's templates and
    :data:`PARAPHRASES`, the best chosen anew for forgotten and for unseen classes, so that choosing
    favours neither; and by the worst of the data's own templates.
    """
    own = len(m.templates)
    text = subject.wordings(m.names, (*m.templates, *PARAPHRASES))

    def by_wording(part: Part) -> Tensor:
        scores = torch.einsum("nd,cld->nlc", subject.features(part), text)
        return (scores.argmax(-1) == part.labels.to(scores.device)[:, None]).float()

    def best(part: Part) -> Tensor:
        right = by_wording(part)
        return right[:, right.mean(0).argmax()]

    def worst(part: Part) -> Tensor:
        right = by_wording(part)[:, :own]
        return right[:, right.mean(0).argmin()]

    return [
        read("wordings_best", "zero-shot by whichever wording works best", "attack", m, best),
        read("wordings_worst", "zero-shot by whichever own wording works worst", "clip", m, worst,
             role="shown"),
    ]  # fmt: skip
