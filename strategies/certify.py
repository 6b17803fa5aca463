"""Observe a strategy around a forget request and write down what is found."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from clapforget.strategies.refit import refit_evidence, refit_words
from clapforget.verify import (
    Certificate,
    Evidence,
    Judgement,
    Observation,
    Views,
    collect_evidence,
    judge,
    observe,
)
from clapforget.verify.certificate import score_quantiles

__all__ = ["Certifier", "package_versions", "request_views"]


def package_versions() -> dict[str, str]:
    """Versions of what results depend on."""
    names = ("clapforget", "torch", "open_clip_torch", "pyro-ppl", "avalanche-lib", "numpy")
    return {name: importlib.metadata.version(name) for name in names}


def request_views(experience: Any, memory_classes: Sequence[int], met: Sequence[int]) -> Views:
    """Which classes play which part in a forget experience.

    :param memory_classes: of which the memory holds exemplars, the forgotten ones left out.
    :param met: every class that the strategy has learned so far.
    """
    data = experience.data
    forget = tuple(experience.classes)
    gone = set(experience.forgotten_classes) | set(forget)
    retain = tuple(c for c in experience.learned_classes if c not in gone)
    known = data.known or frozenset()
    shown = {*forget, *memory_classes, *retain}
    everyone = range(data.num_classes)
    unseen = (
        []
        if data.known is None
        else [c for c in everyone if c not in known and c not in {*met, *gone}]
    )
    return Views(
        forget=forget,
        retain=retain,
        neighbours=tuple(c for c in data.neighbours(forget) if c in retain),
        bystanders=tuple(c for c in everyone if c in known and c not in shown and c not in gone),
        unseen=tuple(unseen),
        known=tuple(c for c in retain if c in known),
    )


class Certifier:
    """Looks at a :class:`~clapforget.strategies.ClapForget` before and after, on test images."""

    def __init__(self) -> None:
        self._seen_hashes: list[dict[str, str]] = []

    def observe(self, strategy: Any, experience: Any, memory_classes: Sequence[int]) -> Observation:
        """What the strategy's CLIP and head say of each view's test images now."""
        data, model = experience.data, strategy.model
        views = request_views(experience, memory_classes, model.head.labels.tolist())

        def features(classes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
            rows = data.rows("test", classes)
            return strategy.cache(data.test, rows), data.test.targets[rows]

        def read(classes: tuple[int, ...]) -> Tensor:
            return strategy.seen(data.test, data.rows("test", classes))

        head = model.head if len(model.head.labels) else None
        seen = observe(model.clip, head, features, views, data.class_names, data.templates, read)
        self._seen_hashes.append(self._hashes(strategy))
        return seen

    @staticmethod
    def _hashes(strategy: Any) -> dict[str, str]:
        model = strategy.model
        digest = hashlib.sha256()
        for name, value in sorted(model.head.state_dict().items()):
            digest.update(name.encode() + value.cpu().numpy().tobytes())
        return {
            "image": model.clip.fingerprint("image"),
            "text": model.clip.fingerprint("text"),
            "head": digest.hexdigest(),
        }

    def certify(
        self,
        strategy: Any,
        experience: Any,
        before: Observation,
        after: Observation,
        sample_ids: Tensor,
        forgetting: dict[str, Any],
    ) -> Certificate:
        """Weigh two observations and fill in the certificate."""
        evidence = collect_evidence(before, after, strategy.seed)
        evidence += refit_evidence(strategy, experience, forgetting)
        judgement = judge(evidence)
        names = [experience.data.class_names[c] for c in experience.classes]
        words = _plain_words(names, judgement.verdict, judgement.weakest, len(sample_ids))
        return self.fill_in(
            strategy, experience, before, after, sample_ids, forgetting, evidence, judgement, names,
            "unseen classes" if "unseen" in after.views else "none", words,
        )  # fmt: skip

    def fill_in(
        self, strategy: Any, experience: Any, before: Observation, after: Observation,
        sample_ids: Tensor, forgetting: dict[str, Any], evidence: list[Evidence],
        judgement: Judgement, names: Sequence[str], reference: str, words: str,
    ) -> Certificate:  # fmt: skip
        """The certificate of a judgement.

        :param names: of the classes that the request is about. :param words: for its ``text``.
        """
        ids = ",".join(map(str, sorted(sample_ids.tolist())))
        was, now = self._seen_hashes[-2:]
        self._seen_hashes = []
        done = forgetting.get("nothing_to_do")
        return Certificate(
            request={
                "text": experience.request.title, "classes": list(experience.classes),
                "names": list(names),
            },
            event=strategy.clock.train_exp_counter,
            verdict=judgement.verdict, rule=judgement.rule, weakest=judgement.weakest,
            claim=judgement.claim, not_tested=judgement.not_tested, evidence=evidence,
            forgetter={k: v for k, v in forgetting.items() if k not in ("losses", "seconds")},
            model={"name": strategy.model.clip.name, "pretrained": strategy.model.clip.pretrained},
            weights={"before": was, "after": now},
            forget_data={"count": len(sample_ids), "sha256": hashlib.sha256(ids.encode()).hexdigest()},
            seed=strategy.seed, versions=package_versions(), reference=reference,
            scores=score_quantiles(before, after),
            text=(f"Nothing was to be done: {done}. What follows was looked at once more. " if done else "")
            + words + refit_words(evidence),
        )  # fmt: skip


def _plain_words(names: Sequence[str], verdict: str, weakest: str, images: int) -> str:
    """The certificate in words for someone who does not read tables."""
    what = ", ".join(names)
    found = {
        "forgotten": "is no longer found in the system's answers, in the similarity of texts and images, "
        "or in its stored beliefs about classes",
        "suppressed": "is no longer answered, but traces of it are still inside the system",
        "retained": "is still answered by the system",
        "damaged": "cannot be called cleanly forgotten: the system lost more than was asked",
        "inconclusive": "could not be judged from the data at hand",
    }[verdict]
    return (
        f"Asked to forget {what} ({images} training images). After the request, the concept {found}. "
        f"The most critical finding: {weakest}."
    )
