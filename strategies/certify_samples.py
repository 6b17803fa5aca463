"""Observe a strategy around a request that names samples or pairs, and write down what is found."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from clapforget.clip import Clip
from clapforget.posterior.exact import ExactHead
from clapforget.strategies.certify import Certifier, hashes, noted, package_versions
from clapforget.strategies.certify_material import request_views
from clapforget.strategies.refit import refit_evidence, refit_words
from clapforget.strategies.sample_shadows import shadow_evidence
from clapforget.verify import Certificate, Evidence, Observation, Views, observe
from clapforget.verify.certificate import score_quantiles
from clapforget.verify.observe import Answering, ViewObservation
from clapforget.verify.samples import judge_samples, sample_evidence
from clapforget.verify.verdict import Judgement

__all__ = ["SampleCertifier", "SampleLook", "observe_samples", "sample_certificate"]


_STRANGERS = 500  # captions of other test images, beside which matching pairs are seen
_KEPT = ("retain", "neighbours", "bystanders")


Features = Callable[[Any, Tensor], Tensor]


@dataclass
class SampleLook:
    """What was observed, and SHA-256 of the weights then."""

    observation: Observation
    weights: dict[str, str]
    head: Any = None
    """A copy of it, for shadows; gone with this."""


class SampleCertifier(Certifier):
    """Looks at the samples themselves, and at test images of their classes beside them.

    Features of the samples are computed for the look and not kept.
    """

    def observe(self, strategy: Any, experience: Any, memory_classes: Sequence[int]) -> Any:
        """What is seen, with a copy of the head where shadows of it will be made."""
        model, train = strategy.model, experience.data.train
        head = model.head if len(model.head.labels) else None

        def features(split: Any, rows: Tensor) -> Tensor:
            if split is train:  # not through the cache, which must not hold them again
                return model.clip.encode_image(split.images(rows))
            return strategy.cache(split, rows)

        def read(split: Any, rows: Tensor) -> Tensor:
            if split is train:
                return model.encode_image(split.images(rows))
            return strategy.seen(split, rows)

        views = request_views(experience, memory_classes, model.head.labels.tolist())
        seen = observe_samples(
            experience, model.clip, head, views, features, read if model.changes_images else None
        )
        shadows = self.level == "full" and isinstance(head, ExactHead)
        weights = hashes(model.clip, model.head.state_dict())
        return SampleLook(seen, weights, copy.deepcopy(head) if shadows else None)

    def certify(
        self, strategy: Any, experience: Any, before: Any, after: Any, sample_ids: Tensor,
        forgetting: dict[str, Any],
    ) -> Certificate:  # fmt: skip
        """Weigh two observations and fill in the certificate."""
        evidence = refit_evidence(strategy, experience, forgetting)
        shadows, why = self._shadows(strategy, experience, before, sample_ids, forgetting)
        return sample_certificate(
            experience, strategy.model.clip, before, after, sample_ids, forgetting,
            strategy.clock.train_exp_counter, strategy.request_seed, evidence, shadows, why,
        )  # fmt: skip

    def _shadows(
        self, strategy: Any, experience: Any, before: Any, rows: Tensor, forgetting: dict[str, Any]
    ) -> tuple[list[Evidence], str]:
        if self.level != "full":
            return [], "the quick level leaves it out"
        if forgetting.get("nothing_to_do") or experience.request.pairs:
            return [], "not for pairs, nor where nothing was to be done"
        towers = forgetting.get("towers", [])
        return shadow_evidence(strategy, experience, before.head, towers, rows)


def observe_samples(
    experience: Any, clip: Clip, head: Answering | None, views: Views, features: Features,
    read: Features | None = None,
) -> Observation:  # fmt: skip
    """The view ``forget`` holds the samples, ``unseen`` test images of their classes; the others are as
    for a request by class.

    :param features: gives image features [n, d] of rows of a split. :param read: the same as the
        head reads them, where they are others.
    """
    data = experience.data
    rows = torch.tensor(list(experience.dataset.sample_id), dtype=torch.long)
    touched = tuple(sorted(set(data.train.targets[rows].tolist())))
    aimed_at = touched if experience.request.pairs else ()  # of samples, the classes must stay
    kept = Views(
        (), *(tuple(c for c in getattr(views, part) if c not in aimed_at) for part in _KEPT)
    )
    known = tuple(c for c in views.known if c in kept.retain)

    def look(split: Any, own: Callable[[tuple[int, ...]], Tensor], of: Views) -> Observation:
        return observe(
            clip, head, lambda classes: (features(split, own(classes)), split.targets[own(classes)]),
            of, data.class_names, data.templates, read and (lambda classes: read(split, own(classes))),
        )  # fmt: skip

    seen = look(
        data.test, lambda c: data.rows("test", c), replace(kept, unseen=touched, known=known)
    )
    if len(rows):
        own = look(data.train, lambda c: rows, Views(touched))
        seen.views = {**own.views, **seen.views}
    if experience.request.pairs and (pairs := _look_at_pairs(experience, clip, features)):
        seen.views["pairs"] = pairs
    return seen


def sample_certificate(
    experience: Any, clip: Clip, before: SampleLook, after: SampleLook, rows: Tensor,
    forgetting: dict[str, Any], event: int, seed: int, evidence: Sequence[Evidence] = (),
    shown: Sequence[Evidence] = (), no_shadows: str = "",
) -> Certificate:  # fmt: skip
    """The certificate of a request that names samples or pairs.

    :param clip: as it is after the request. :param rows: of the request's train images [n].
    :param forgetting: the forgetter's notes. :param event: number of the experience.
    :param evidence: to be judged beside what the looks say. :param shown: not to be judged.
    :param no_shadows: why there are no shadow models.
    """
    data = experience.data
    names = [data.class_names[c] for c in sorted(set(data.train.targets[rows].tolist()))]
    found = [*sample_evidence(before.observation, after.observation, seed), *evidence]
    kept = forgetting.get("not_removed", "")
    judgement = judge_samples(found, bool(forgetting.get("in_clip")), kept)
    if no_shadows:
        judgement.not_tested.append(f"membership of single samples by shadow models ({no_shadows})")
    if done := forgetting.get("nothing_to_do"):
        judgement = Judgement(
            "inconclusive", f"0: nothing to do: {done}", "no sample was left to look at",
            judgement.claim, judgement.not_tested,
        )  # fmt: skip
    ids = ",".join(map(str, sorted(rows.tolist())))
    words = _words(names, len(rows), judgement) + refit_words(found)
    if done:
        words = f"Nothing was to be done: {done}. What follows was looked at once more. {words}"
    return Certificate(
        request={"text": experience.request.title, "classes": [], "names": names}, event=event,
        verdict=judgement.verdict, rule=judgement.rule, weakest=judgement.weakest,
        claim=judgement.claim, not_tested=judgement.not_tested, evidence=[*found, *shown],
        forgetter=noted(forgetting), model={"name": clip.name, "pretrained": clip.pretrained},
        weights={"before": before.weights, "after": after.weights},
        forget_data={"count": len(rows), "sha256": hashlib.sha256(ids.encode()).hexdigest(),
                     "of": "numbers of the request's train images"},
        seed=seed, versions=package_versions(), reference="test images of the samples' classes",
        scores=score_quantiles(before.observation, after.observation), text=words,
    )  # fmt: skip


@torch.no_grad()
def _look_at_pairs(experience: Any, clip: Clip, features: Features) -> ViewObservation | None:
    """Test images with a matching caption, each with its first one; None with fewer than two,
    or if every test image matches."""
    data, matches = experience.data, experience.request.matches
    rows = data.rows_with_caption("test", matches)
    if len(rows) < 2:
        return None
    texts = [next(filter(matches, own)) for own in data.captions_of("test", rows)]
    v, t = features(data.test, rows), clip.encode_text(texts)
    similarity = v @ t.T
    everything = data.captions_of("test", torch.arange(len(data.test)))
    strangers = [own[0] for own in everything if not any(map(matches, own))][:_STRANGERS]
    if not strangers:
        return None
    unmatched = (v @ clip.encode_text(strangers).T).mean(1)
    right = (similarity.argmax(1) == torch.arange(len(rows), device=v.device)).cpu().numpy()
    matched = similarity.diagonal().cpu().numpy()
    return ViewObservation(len(rows), right, matched, unmatched.cpu().numpy())


def _words(names: Sequence[str], samples: int, judgement: Judgement) -> str:
    """The certificate in words for someone who does not read tables."""
    found = {
        "forgotten": "they are treated as images that were never learned",
        "retained": "they still stand out from images that were never learned",
        "damaged": "the system lost more than was asked",
        "inconclusive": "the data at hand does not tell whether they still stand out",
    }[judgement.verdict]
    which = f" of {', '.join(names)}" if names else ""
    return (
        f"Asked to forget {samples} training images{which}; their classes stay. After the request, "
        f"{found}. The most critical finding: {judgement.weakest}. The claim is {judgement.claim}."
    )
