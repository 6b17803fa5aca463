"""A head's stored class vectors: do they still find the images, whatever the head answers?"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from clapforget.verify.material import Material, Part
from clapforget.verify.reading import Reading, read, witness
from clapforget.verify.statistics import correlation
from clapforget.verify.subject import Subject
from clapforget.verify.witnesses.answers import own_or_any
from clapforget.verify.witnesses.association import precision_by_column

__all__ = ["beside", "head_weights"]

_EXPLAINED, _UNEXPLAINED = 0.8, 0.5  # correlations
_NOTHING = 1e-3  # of a unit vector: rounding


@witness("head_weights")
def head_weights(subject: Subject, m: Material, seed: int) -> list[Reading]:
    """Images found by the own class's stored vector, whatever is done to the logits after it; none where
    the head stores no vector for the class. Only shown where these vectors are not what answers: where they
    explain the logits of kept columns, and not those of forgotten ones.

    The same by what is left of a vector once its class's text is taken out: a head that never learned the class has
    nothing there that finds its images, and one that learned it a little has.
    """
    if subject.class_weights is None:
        return []
    weights = F.normalize(subject.class_weights, dim=-1)
    columns = subject.column_labels(len(m.names))

    def finds(vectors: Tensor, part: Part) -> Tensor:
        scores, negatives = (subject.features(p) @ vectors.T for p in (part, m.test["retain"]))
        hits = precision_by_column(scores, negatives, part.labels.to(scores.device))
        return own_or_any(hits, columns, part, m)

    reading = read("head_weights", "images found by the head's stored class vector", "head", m,
                   partial(finds, weights), margin=0.5)  # fmt: skip
    rest = beside(weights, subject.names(m.names, m.templates)[columns])
    without = read("head_weights_beside_text", "images found by what the head's stored vector has beside the text",
                   "head", m, partial(finds, rest), role="accuses", margin=0.5, absolute=True)  # fmt: skip
    if _elsewhere(subject, m, weights, columns):
        reading.role = "shown"
        reading.note = "the vectors shown are not those that answer"
    return [reading, without]


def beside(weights: Tensor, text: Tensor) -> Tensor:
    """Unit vectors [C, d] without their part along unit text features [C, d]; zeros, which find nothing, where that is
    all of them."""
    rest = weights - (weights * text).sum(1, keepdim=True) * text
    return torch.where(rest.norm(dim=1, keepdim=True) > _NOTHING, rest, 0)


def _elsewhere(subject: Subject, m: Material, weights: Tensor, columns: Tensor) -> bool:
    """Whether some forgotten column answers by something else than its vector: correlation over images, beside
    that of kept columns. A column that says the same of every image is another witness's.
    """
    parts = [m.test[k] for k in ("forget", "retain")]
    v = torch.cat([subject.features(part) for part in parts])
    logits = torch.cat([subject.logits(part, m.names, m.templates) for part in parts]).double()
    free = logits.isfinite().all(0) & (logits.std(0) > 0)
    agree = correlation(logits[:, free], (v @ weights.T)[:, free])
    kept, gone = (torch.isin(columns.to(free.device)[free], torch.tensor(c, device=free.device))
                  for c in (m.retain, m.forget))  # fmt: skip
    if not kept.any() or not gone.any() or agree[kept].median() < _EXPLAINED:
        return False
    return bool((agree[gone] < _UNEXPLAINED).any())
