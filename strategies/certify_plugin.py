"""Examine a :class:`ClipClassifier` around a forget request, in Avalanche's own strategies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from clapforget.strategies.certify import Certifier, Look, filled
from clapforget.strategies.certify_material import request_material, request_views
from clapforget.strategies.classifier import ClipClassifier
from clapforget.verify import Certificate, Subject, Views
from clapforget.verify.document import weight_hashes
from clapforget.verify.rules import Claim

__all__ = ["ClassifierCertifier"]


class ClassifierCertifier:
    """The witnesses and rules of ``clapforget verify``, on the classifier's answers and on bare CLIP."""

    def __init__(self, level: Literal["full", "quick"], claim: Claim = "association") -> None:
        """Arguments and errors as :class:`~clapforget.strategies.certify.Certifier`."""
        self.certifier = Certifier(level, claim)

    @torch.no_grad()
    def look(self, model: ClipClassifier) -> Look:
        """The classifier as it is now; later changes of it do not reach what is returned."""
        weights, scale = model.weights.detach().clone(), model.clip.scale.detach()

        def answer(v: Tensor, images: Tensor) -> Tensor:
            return scale * v @ weights.to(v).T

        subject = Subject(model.clip, answer, class_weights=weights)
        return Look(subject, weight_hashes(model.clip))

    def views(self, experience: Any, held: Sequence[int]) -> Views:
        """Which classes play which part. :param held: labels in the replay memories."""
        gone = set(experience.classes)
        return request_views(
            experience, [c for c in held if c not in gone], experience.learned_classes
        )

    def certify(
        self, experience: Any, views: Views, before: Look, after: Look, notes: dict[str, Any],
        event: int, seed: int,
    ) -> Certificate:  # fmt: skip
        """Examine, and fill in the certificate, on test images.

        :param notes: the forgetter's. :param event: number of the experience. :param seed: of what
            is random in the examination.
        """
        m = request_material(experience, views, seed)
        found = self.certifier.examine(before.subject, after.subject, m, seed)
        rows = torch.tensor(sorted(experience.dataset.sample_id), dtype=torch.long)
        certificate = filled(found, m, experience, before, after, rows, notes, event, seed)
        certificate.not_tested.append(f"not removed: {notes['not_removed']}")
        return certificate
