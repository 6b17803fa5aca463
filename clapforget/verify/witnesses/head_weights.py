"""A head's stored class vectors: do they still find the images, whatever the head answers?"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from clapforget.verify.material import Material, Part
from clapforget.verify.reading import Reading, read, witness
from clapforget.verify.subject import Subject
from clapforget.verify.witnesses.answers import own_or_any
from clapforget.verify.witnesses.association import precision_by_column

__all__ = ["head_weights"]


@witness("head_weights")
def head_weights(subject: Subject, m: Material, seed: int) -> list[Reading]:
    """Images found by the own class's stored vector, whatever is done to the logits after it; none where
    the head stores no vector for the class.
    """
    if subject.class_weights is None:
        return []
    weights = F.normalize(subject.class_weights, dim=-1)
    columns = subject.column_labels(len(m.names))
    negatives = subject.features(m.test["retain"]) @ weights.T

    def look(part: Part) -> Tensor:
        scores = subject.features(part) @ weights.T
        hits = precision_by_column(scores, negatives, part.labels.to(scores.device))
        return own_or_any(hits, columns, part, m)

    return [read("head_weights", "images found by the head's stored class vector", "head", m, look,
                 margin=0.5)]  # fmt: skip
