"""From an examination to a certificate, and back: is this the certified model?"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import resources
from typing import Any

import numpy as np
from torch import Tensor

from clapforget.clip import Clip
from clapforget.errors import UserError
from clapforget.verify.certificate import Certificate
from clapforget.verify.evidence import Evidence
from clapforget.verify.examine import Examination
from clapforget.verify.material import Material
from clapforget.verify.reading import Level, Reading
from clapforget.verify.reference import without
from clapforget.verify.rules import Claim
from clapforget.verify.verdict import Judgement

__all__ = ["certificate_of", "certified_weights", "check_model", "plain_words", "schema", "weight_hashes"]


def weight_hashes(clip: Clip) -> dict[str, str]:
    """SHA-256 of the image tower, the text tower and all weights."""
    return {
        "image": clip.fingerprint("image"),
        "text": clip.fingerprint("text"),
        "all": clip.fingerprint(),
    }


def check_model(certificate: Certificate, clip: Clip) -> bool:
    """Whether a model's weights are those that the certificate was written for: image tower, text tower and all of
    CLIP. A head is not looked at, even where the certificate names one.

    :raises UserError: if the certificate does not hold the SHA-256 of all three.
    """
    now = weight_hashes(clip)
    then = certified_weights(certificate)
    return all(now[part] == then[part] for part in now)


def certified_weights(certificate: Certificate) -> dict[str, str]:
    """SHA-256 of the model after by part: ``image``, ``text``, ``all``, of a stream's certificate ``head`` as well.

    :raises UserError: if one of the first three is missing, or is none.
    """
    then = certificate.weights.get("after") if isinstance(certificate.weights, dict) else None
    if not isinstance(then, dict):
        then = {}
    for part in ("image", "text", "all"):
        if not isinstance(then.get(part), str) or not re.fullmatch("[0-9a-f]{64}", then[part]):
            raise UserError(
                f"this certificate holds no SHA-256 of weights.after.{part}",
                "give a file that this package wrote",
            )
    return then


_NOT_CLAIMED = "shown, not judged: the claim is the association alone"


def certificate_of(
    found: Examination, m: Material, text: str, before: Clip, after: Clip, seed: int,
    versions: Mapping[str, str], images: Tensor | None = None, twin: Clip | None = None,
) -> Certificate:  # fmt: skip
    """Write down an examination.

    :param text: the request. :param versions: of the packages that results depend on.
    :param images: the request's train images [n, 3, h, w]; default: the test images looked at. Each is
        named by the SHA-256 of its pixels. :param twin: that was the reference, if there was one.
    """
    of = "test images that were looked at" if images is None else "the request's train images"
    weights = {"before": before, "after": after, **({} if twin is None else {"twin": twin})}
    images = m.test["forget"].images if images is None else images
    each = sorted(
        hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in images.cpu().contiguous()
    )
    names = [m.names[c] for c in m.forget]
    shares = {r.name for r in found.readings.get("after", ()) if r.share}
    evidence = [replace(piece) for piece in found.evidence]
    for piece in evidence:
        if piece.name in shares or piece.role == "kept":
            piece.unit = "fraction"
        if found.claim == "association" and piece.group == "visual" and piece.role != "shown":
            piece.role, piece.holds = "shown", None
            piece.note = "; ".join(filter(None, [piece.note, _NOT_CLAIMED]))
    judgement = found.judgement
    reference = next(
        (p.reference_name for p in found.evidence if p.role in ("both", "accuses")), "none"
    )
    return Certificate(
        request={"text": text, "classes": list(m.forget), "names": names}, event=0,
        verdict=judgement.verdict, rule=judgement.rule, weakest=judgement.weakest,
        claim=judgement.claim, not_tested=[*judgement.not_tested, *_could_not_look(found)], evidence=evidence,
        forgetter={}, model={"name": before.name, "pretrained": before.pretrained},
        weights={when: weight_hashes(clip) for when, clip in weights.items()},
        forget_data={"count": len(each), "sha256": hashlib.sha256("".join(each).encode()).hexdigest(),
                     "ids": each, "of": of},
        seed=seed, versions=dict(versions), reference=reference or "none",
        scores=_quantiles({k: without(v, found.taught) for k, v in found.readings.items()}),
        level=found.level, seconds=round(found.seconds, 2),
        text=plain_words(names, judgement, found.claim, evidence),
        looked_at={"retained": _names(m, "retain"), "unseen": _names(m, "unseen")},
    )  # fmt: skip


def _names(m: Material, part: str) -> list[str]:
    return [m.names[c] for c in m.test[part].classes()] if part in m.test else []


_NEEDS: dict[Level, dict[str, str]] = {
    "quick": {
        "patterns": "patches on the images: no attack images of every class",
        "other_images": "images that are no test images: none were given",
        "placement_images": "nearness to images of kept classes: not every one has attack images",
        "conformal_coverage": "the posterior over the class weights: no attack images of retained classes",
        "nearest_mean_1": "probes: no attack images",
    },
    "full": {
        "relearning_1": "relearning: no attack images of the forgotten classes",
        "resurfacing": "fine-tuning on retained data: no attack images of retained classes",
        "learned_pattern": "a learned mark: no attack images of forgotten and of retained classes",
        "learned_prompt": "a learned prompt: no attack images, or a text tower without a table of token vectors",
    },
}
"""What a reading would need, by level, where its witness could not look."""


def _could_not_look(found: Examination) -> list[str]:
    seen = {r.name for r in found.readings.get("after", ())}
    levels: tuple[Level, ...] = ("quick", "full") if found.level == "full" else ("quick",)
    asked = [need for level in levels for need in _NEEDS[level].items()] if seen else []
    return [why for name, why in asked if name not in seen]


_FOUND = {
    "suppressed": "is no longer answered as before, but it is still inside the model and can be brought out",
    "retained": "is still answered by the model",
    "damaged": "cannot be called cleanly forgotten: the model lost more than was asked",
    "inconclusive": "could not be judged from the data at hand",
}


_GONE: dict[Claim, str] = {
    "knowledge": "shows no more than one that the model never learned, by anything that was tried",
    "association": "is tied to its name no more than one that the model never learned, by anything that was tried; "
    "what the image tower makes of its images was looked at and not judged",
}


def plain_words(
    names: Sequence[str], judgement: Judgement, claim: Claim, evidence: Sequence[Evidence]
) -> str:
    """The certificate for someone who does not read tables.

    :param claim: what was to be gone. :param evidence: as the certificate holds it: a scar in it, judged, is named.
    """
    forgotten = judgement.verdict == "forgotten"
    found = _GONE[claim] if forgotten else _FOUND[judgement.verdict]
    words = f"Asked to forget {', '.join(names)}. After the request, the concept {found}. "
    if forgotten:
        scars = [p.title for p in evidence if p.scar and p.role in ("both", "accuses")]
        if scars:
            words += f"That it was made to forget can be told all the same, by a scar: {', '.join(scars)}. "
        words += f"What is claimed: {judgement.claim}. "
    return words + f"The most critical finding: {judgement.weakest}."


def schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a certificate file."""
    file = resources.files("clapforget.verify").joinpath("certificate.schema.json")
    return json.loads(file.read_text())


def _quantiles(readings: Mapping[str, Sequence[Reading]]) -> dict[str, Any]:
    """Quantiles (5, 25, 50, 75, 95 %) of every score, forgotten beside unseen, before and after."""
    result: dict[str, Any] = {}
    for when in ("before", "after", "twin"):
        for reading in readings.get(when, ()):
            if reading.share or len(reading.forget) < 2:
                continue
            views = {"forget": reading.forget, "unseen": reading.unseen, "retain": reading.retain}
            place = result.setdefault(reading.name, {}).setdefault(when, {})
            for view, values in views.items():
                if values is not None:
                    points = np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95])
                    place[view] = [round(float(q), 5) for q in points]
    return result
