"""Examine a :class:`ClipClassifier` around a forget request, in Avalanche's own strategies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from clapforget import uncertainty
from clapforget.posterior import Predictive
from clapforget.strategies.certify import Certifier, Look, filled, hashes
from clapforget.strategies.certify_material import request_material, request_views
from clapforget.strategies.certify_samples import SampleLook, observe_samples, sample_certificate
from clapforget.strategies.classifier import ClipClassifier
from clapforget.verify import Certificate, Subject, Views
from clapforget.verify.rules import Claim

__all__ = ["ClassifierCertifier"]


class _Answers:
    """A classifier's softmax as a head that knows no uncertainty but that."""

    def __init__(self, weights: Tensor, scale: Tensor) -> None:
        self.weights, self.scale = weights, scale
        self.labels = torch.arange(len(weights), device=weights.device)

    def predict(self, v: Tensor) -> Predictive:
        logits = self.scale * v @ self.weights.to(v).T
        return Predictive.of_point(logits.softmax(-1), uncertainty.energy(logits))


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
        return Look(subject, hashes(model.clip, {"weights": weights}))

    @torch.no_grad()
    def look_at_samples(self, experience: Any, model: ClipClassifier, views: Views) -> SampleLook:
        """What the classifier says of a request's samples, and of test images beside them."""
        weights = model.weights.detach()

        def features(split: Any, rows: Tensor) -> Tensor:
            return model.clip.encode_image(split.images(rows))

        head = _Answers(weights, model.clip.scale.detach())
        seen = observe_samples(experience, model.clip, head, views, features)
        return SampleLook(seen, hashes(model.clip, {"weights": weights}))

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

    def certify_samples(
        self, experience: Any, model: ClipClassifier, before: SampleLook, after: SampleLook,
        notes: dict[str, Any], event: int, seed: int,
    ) -> Certificate:  # fmt: skip
        """The certificate of a request that names samples or pairs. Arguments as :meth:`certify`."""
        rows = torch.tensor(sorted(experience.dataset.sample_id), dtype=torch.long)
        why = "a classifier that is trained: shadow models would take longer than the stream"
        return sample_certificate(
            experience, model.clip, before, after, rows, notes, event, seed, no_shadows=why
        )
