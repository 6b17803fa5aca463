"""Another word for the same thing: whether the class is still answered where it goes by that."""

from __future__ import annotations

import torch
from torch import Tensor

from clapforget.verify.material import Material, Part
from clapforget.verify.reading import Reading, read, witness
from clapforget.verify.subject import Subject

__all__ = ["synonyms"]


@witness("synonyms")
def synonyms(subject: Subject, m: Material, seed: int) -> list[Reading]:
    """Zero-shot accuracy among all names where a class's own name is replaced by one of its other words, by
    whichever of them works best for that class; a class that has none goes by its name.

    Nothing, where none of the forgotten classes has another word. A model that never knew the words told nothing
    apart before either, and then they witness nothing (``minimum_lead``).
    """
    if not any(m.synonyms.get(c) for c in m.forget):
        return []
    names = subject.names(m.names, m.templates)

    def best(part: Part) -> Tensor:
        features = subject.features(part)
        labels = part.labels.to(features.device)
        cosine = features @ names.T
        others = cosine.scatter(1, labels[:, None], -torch.inf).max(1).values
        right = torch.zeros_like(others)
        for c in part.classes():
            rows = labels == c
            words = subject.names(tuple(m.synonyms.get(c) or (m.names[c],)), m.templates)
            by_word = (features[rows] @ words.T > others[rows, None]).to(right)
            right[rows] = by_word[:, by_word.mean(0).argmax()]
        return right

    title = "zero-shot by whichever other word for the class works best"
    return [read("synonyms", title, "attack", m, best)]
