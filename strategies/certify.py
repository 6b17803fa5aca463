"""Examine a strategy around a forget request by class and write down what is found."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from clapforget.clip import Clip
from clapforget.errors import UserError
from clapforget.strategies.certify_material import (
    knew,
    request_material,
    request_views,
    subject_of,
)
from clapforget.strategies.refit import refit_evidence, refit_words
from clapforget.verify import Certificate, Judgement, Material, Subject, Views, decide, examine
from clapforget.verify.document import certificate_of, plain_words, weight_hashes
from clapforget.verify.examine import Examination, not_tested
from clapforget.verify.kept import kept_evidence
from clapforget.verify.reading import Level
from clapforget.verify.rules import Claim
from clapforget.verify.silent import heard

__all__ = ["Certifier", "Look", "certifier_of", "filled", "hashes", "noted", "package_versions"]

_UNKNOWN = (
    "relearning, fine-tuning on retained data, learned prompts: they attack CLIP, which did not know "
    "these classes before the request"
)


def package_versions() -> dict[str, str]:
    """Versions of what results depend on."""
    names = ("clapforget", "torch", "open_clip_torch", "pyro-ppl", "avalanche-lib", "numpy", "scipy")
    return {name: importlib.metadata.version(name) for name in names}


@dataclass
class Look:
    """A model at one moment: what can be examined of it later."""

    subject: Subject
    weights: dict[str, str]
    """SHA-256 by part."""


@dataclass
class _Observed(Look):
    views: Views


class Certifier:
    """Examines a :class:`~clapforget.strategies.ClapForget` before and after a request, on test images.

    The witnesses and rules are those of ``clapforget verify``. Of classes that the head has met the
    head's answers are judged, bare CLIP beside them; of others bare CLIP's.
    """

    def __init__(self, level: Level = "full", claim: Claim = "association") -> None:
        """:param level: ``full`` adds attacks that train. :param claim: ``association``, or that the
        image tower holds the class no longer either (``knowledge``), for forgetters that change it.
        :raises UserError: for other words.
        """
        if level not in ("quick", "full"):
            raise UserError(f"unknown level {level!r}", "choose full, quick or false")
        if claim not in ("association", "knowledge"):
            raise UserError(f"unknown claim {claim!r}", "choose association or knowledge")
        self.level, self.claim = level, claim

    def observe(self, strategy: Any, experience: Any, memory_classes: Sequence[int]) -> Any:
        """What has to be held of the strategy as it is now. Called before and after the request."""
        views = request_views(experience, memory_classes, strategy.model.head.labels.tolist())
        model = strategy.model
        return _Observed(subject_of(model), hashes(model.clip, model.head.state_dict()), views)

    def certify(
        self, strategy: Any, experience: Any, before: Any, after: Any, sample_ids: Tensor,
        forgetting: dict[str, Any],
    ) -> Certificate:  # fmt: skip
        """Examine, and fill in the certificate.

        :param sample_ids: of the request's images [n]. :param forgetting: the forgetter's notes.
        """
        m = request_material(experience, before.views, strategy.request_seed)
        found = self.examine(before.subject, after.subject, m, strategy.request_seed)
        found.evidence += refit_evidence(strategy, experience, forgetting)
        certificate = filled(
            found, m, experience, before, after, sample_ids, forgetting,
            strategy.clock.train_exp_counter, strategy.request_seed,
        )  # fmt: skip
        if kept := strategy.model.head.keeps_of_samples:
            certificate.not_tested.append(f"what the head holds of these images for others: {kept}")
        return certificate

    def examine(self, before: Subject, after: Subject, m: Material, seed: int) -> Examination:
        """Evidence and verdict of two states, at the level that makes sense for them."""
        if "retain" not in m.test:
            judgement = Judgement(
                "inconclusive", "0: nothing is kept", "no other class has a test image", "nothing",
                not_tested(m, "quick"),
            )  # fmt: skip
            return Examination(judgement, [], 0.0, "quick", self.claim)
        m = m.with_nearest_names(before.names(m.names, m.templates))
        level: Level = self.level
        if blind := level == "full" and not knew(before, m):
            level = "quick"
        asked = set(before.columns) & set(m.forget) if before.answer is not None else set()
        pair = (before, after) if asked else (before.bare(), after.bare())
        found = examine(*pair, m, level=level, claim=self.claim, seed=seed)
        if not asked and before.answer is not None and after.answer is not None:
            kept = kept_evidence(before, after, m)  # the head was not asked, but it is to be kept
            found.evidence += [e for e in kept if not e.name.startswith("clip_")]
        left = found.judgement.not_tested
        if blind:  # the full level would not do it either
            whole = not_tested(m, "full", after=pair[1])
            left = [_UNKNOWN, *(x for x in left if x in whole or x not in not_tested(m, "quick"))]
        judgement = decide(found.evidence, self.claim, found.kept_surety, not_tested=left)
        found.judgement = heard(judgement, after, m)
        return found


def certifier_of(certify: bool | Literal["full", "quick"], claim: Claim) -> Certifier | None:
    """``True`` is the full level. :raises UserError: as :class:`Certifier`."""
    if certify is False:
        return None
    return Certifier("full" if certify is True else certify, claim)


def hashes(clip: Clip, head: Mapping[str, Tensor]) -> dict[str, str]:
    """SHA-256 of CLIP's weights by part, and of a head's state."""
    digest = hashlib.sha256()
    for name, value in sorted(head.items()):
        digest.update(name.encode() + value.cpu().numpy().tobytes())
    return {**weight_hashes(clip), "head": digest.hexdigest()}


def filled(
    found: Examination, m: Material, experience: Any, before: Look, after: Look, rows: Tensor,
    forgetting: dict[str, Any], event: int, seed: int,
) -> Certificate:  # fmt: skip
    """The certificate of a stream's request by class.

    :param rows: of the request's train images [n]. :param forgetting: the forgetter's notes.
    :param event: number of the experience.
    """
    certificate = certificate_of(
        found, m, experience.request.title, before.subject.clip, after.subject.clip, seed,
        package_versions(), images=experience.data.train.images(rows),
    )  # fmt: skip
    certificate.event = event
    certificate.weights = {"before": before.weights, "after": after.weights}
    certificate.forgetter = noted(forgetting)
    certificate.text = _plain(certificate, found, forgetting)
    return certificate


def noted(forgetting: dict[str, Any]) -> dict[str, Any]:
    """What a certificate holds of the forgetter's notes."""
    return {k: v for k, v in forgetting.items() if k not in ("losses", "seconds")}


def _plain(certificate: Certificate, found: Examination, forgetting: dict[str, Any]) -> str:
    """The certificate in words for someone who does not read tables."""
    words = plain_words(
        certificate.request["names"], found.judgement, found.claim, certificate.evidence
    )
    if done := forgetting.get("nothing_to_do"):
        words = f"Nothing was to be done: {done}. What follows was looked at once more. {words}"
    if certificate.weights["before"]["image"] == certificate.weights["after"]["image"]:
        words += (
            " The image tower was not changed: it tells the images apart as it did before, and the "
            "visual evidence shows that."
        )
    return words + refit_words(certificate.evidence)
