"""Observe a strategy around a request that names samples or pairs, and write down what is found."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from clapforget.posterior.exact import ExactHead
from clapforget.strategies.certify import Certifier, noted, package_versions
from clapforget.strategies.certify_material import request_views
from clapforget.strategies.refit import refit_evidence, refit_words
from clapforget.strategies.sample_shadows import shadow_evidence
from clapforget.verify import Certificate, Evidence, Observation, Views, observe
from clapforget.verify.certificate import score_quantiles
from clapforget.verify.observe import ViewObservation
from clapforget.verify.samples import judge_samples, sample_evidence
from clapforget.verify.verdict import Judgement

__all__ = ["SampleCertifier"]


_STRANGERS = 500  # captions of other test images, beside which matching pairs are seen
_KEPT = ("retain", "neighbours", "bystanders")


@dataclass
class _Seen:
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
        """The view ``forget`` holds the samples, ``unseen`` test images of their classes; the others
        as for a request by class."""
        data, model = experience.data, strategy.model
        rows = torch.tensor(list(experience.dataset.sample_id), dtype=torch.long)
        touched = tuple(sorted(set(data.train.targets[rows].tolist())))
        head = model.head if len(model.head.labels) else None

        def test(classes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
            found = data.rows("test", classes)
            return strategy.cache(data.test, found), data.test.targets[found]

        views = request_views(experience, memory_classes, model.head.labels.tolist())
        aimed_at = touched if experience.request.pairs else ()  # of samples, the classes must stay
        kept = Views(
            (), *(tuple(c for c in getattr(views, part) if c not in aimed_at) for part in _KEPT)
        )
        others = replace(
            kept, unseen=touched, known=tuple(c for c in views.known if c in kept.retain)
        )
        arguments = (data.class_names, data.templates)
        seen = observe(
            model.clip, head, test, others, *arguments,
            lambda classes: strategy.seen(data.test, data.rows("test", classes)),
        )  # fmt: skip
        if len(rows):
            images = data.train.images(rows)
            v, labels = model.clip.encode_image(images), data.train.targets[rows]
            read = (lambda classes: model.encode_image(images)) if model.changes_images else None
            own = observe(
                model.clip, head, lambda classes: (v, labels), Views(touched), *arguments, read
            )
            seen.views = {**own.views, **seen.views}
        if experience.request.pairs and (pairs := _look_at_pairs(strategy, experience)):
            seen.views["pairs"] = pairs
        shadows = self.level == "full" and isinstance(head, ExactHead)
        return _Seen(seen, self._hashes(strategy), copy.deepcopy(head) if shadows else None)

    def certify(
        self, strategy: Any, experience: Any, before: Any, after: Any, sample_ids: Tensor,
        forgetting: dict[str, Any],
    ) -> Certificate:  # fmt: skip
        """Weigh two observations and fill in the certificate."""
        data = experience.data
        labels = sorted(set(data.train.targets[sample_ids].tolist()))
        names = [data.class_names[c] for c in labels]
        evidence = sample_evidence(before.observation, after.observation, strategy.seed)
        evidence += refit_evidence(strategy, experience, forgetting)
        kept = forgetting.get("not_removed", "")
        judgement = judge_samples(evidence, bool(forgetting.get("in_clip")), kept)
        shadows, why = self._shadows(strategy, experience, before, sample_ids, forgetting)
        evidence += shadows
        if why:
            judgement.not_tested.append(f"membership of single samples by shadow models ({why})")
        if done := forgetting.get("nothing_to_do"):
            judgement = Judgement(
                "inconclusive", f"0: nothing to do: {done}", "no sample was left to look at",
                judgement.claim, judgement.not_tested,
            )  # fmt: skip
        ids = ",".join(map(str, sorted(sample_ids.tolist())))
        clip = strategy.model.clip
        words = _words(names, len(sample_ids), judgement) + refit_words(evidence)
        if done:
            words = f"Nothing was to be done: {done}. What follows was looked at once more. {words}"
        return Certificate(
            request={"text": experience.request.title, "classes": [], "names": names},
            event=strategy.clock.train_exp_counter,
            verdict=judgement.verdict, rule=judgement.rule, weakest=judgement.weakest,
            claim=judgement.claim, not_tested=judgement.not_tested, evidence=evidence,
            forgetter=noted(forgetting), model={"name": clip.name, "pretrained": clip.pretrained},
            weights={"before": before.weights, "after": after.weights},
            forget_data={"count": len(sample_ids), "sha256": hashlib.sha256(ids.encode()).hexdigest()},
            seed=strategy.seed, versions=package_versions(),
            reference="test images of the samples' classes",
            scores=score_quantiles(before.observation, after.observation), text=words,
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


@torch.no_grad()
def _look_at_pairs(strategy: Any, experience: Any) -> ViewObservation | None:
    """Test images with a matching caption, each with its first one; None with fewer than two,
    or if every test image matches."""
    data, clip, matches = experience.data, strategy.model.clip, experience.request.matches
    rows = data.rows_with_caption("test", matches)
    if len(rows) < 2:
        return None
    texts = [next(filter(matches, own)) for own in data.captions_of("test", rows)]
    v, t = strategy.cache(data.test, rows), clip.encode_text(texts)
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
