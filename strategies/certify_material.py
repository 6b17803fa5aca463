"""What a stream's forget request is examined with: the strategy as a subject, images and names."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from clapforget.clip import Clip
from clapforget.posterior.guided import GuidedHead
from clapforget.posterior.linear import LinearHead
from clapforget.posterior.point import PointHead, PointSumsHead
from clapforget.posterior.predictive import Predictive
from clapforget.seeding import generator_for
from clapforget.strategies.model import ClapModel
from clapforget.verify import Material, Part, Subject, Views
from clapforget.verify.kept import right
from clapforget.verify.material import kept_images

__all__ = ["knew", "request_material", "request_views", "subject_of", "validation_material"]

_MOST_UNSEEN = 40
_TEST = {"forget": 30, "retain": 12, "unseen": 10}
_SHOTS = {"forget": 20, "retain": 10, "unseen": 20}
_KNEW = 0.15  # zero-shot accuracy beyond that on unseen classes
_FORGET_IN_ALL = 60  # test images of a request of one or two classes


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


# ---- the subject ---------------------------------------------------------------------------
def subject_of(model: ClapModel) -> Subject:
    """The strategy as it is now: its CLIP with a copy of its head, which later changes do not reach.

    The bare CLIP while the head has met no class. Columns that a head emptied are left out: one of
    additive sums has nothing to say of a class without images, learned or not.

    What it answers are its log-probabilities, raised for each image by the logsumexp of its logits: the
    softmax is the head's own, and a column compared across images says how well they fit its class,
    not how badly they fit the others.
    """
    clip: Clip = model.clip
    if not len(model.head.labels):
        return Subject(clip)
    head = copy.deepcopy(model.head)
    labels: Tensor = head.labels
    kept = torch.ones_like(labels, dtype=torch.bool)
    if isinstance(head, PointSumsHead) and head.sums.count.any():
        kept = head.sums.count.to(labels.device) > 0

    def predict(v: Tensor, images: Tensor) -> Predictive:
        if head.prompt is not None and head.prompt.changes_images:
            v = head.prompt.encode_image(clip, images)
        return head.predict(v)

    def answer(v: Tensor, images: Tensor) -> Tensor:
        found = predict(v, images)
        logs, level = found.probs.log(), found.energy
        if found.logits is not None:  # where a probability underflows, its logit still speaks
            logs = torch.where(found.probs > 0, logs, found.logits.log_softmax(-1))
            level = found.logits.logsumexp(-1)
        return (logs + level[:, None])[:, kept]

    nats = {int(c): float(n) for c, n in zip(labels[kept], head.nats()[kept])}
    vectors = _class_vectors(head)
    return Subject(
        clip, answer, labels[kept].tolist(), None if vectors is None else vectors[kept],
        *(({}, None) if isinstance(head, PointHead) else (nats, predict)),
    )  # fmt: skip


@torch.no_grad()
def _class_vectors(head: Any) -> Tensor | None:
    """Stored class vectors [C, d], where a head has any that stand beside CLIP's features."""
    if isinstance(head, LinearHead):
        return head.weight.detach()
    if not isinstance(head, GuidedHead):
        return None
    weights = head.weights()
    vectors = weights.x + weights.mu
    return vectors.flatten(0, -3).mean(0) if vectors.ndim > 2 else vectors


# ---- images and names ----------------------------------------------------------------------
def request_material(experience: Any, views: Views, seed: int) -> Material:
    """Test images of every part; as attack images, train images of it that no request deleted one by
    one. What is kept are the learned classes and the bystanders (all others, where nothing is
    known of pretraining).
    """
    data = experience.data
    parts = _parts(experience, views, seed)
    test = {name: data.rows("test", classes) for name, classes in parts.items()}
    free = torch.ones(len(data.train), dtype=torch.bool)
    free[torch.tensor(experience.forgotten_samples, dtype=torch.long)] = False
    shots = {name: data.rows("train", classes) for name, classes in parts.items()}
    shots = {name: rows[free[rows]] for name, rows in shots.items()}
    each = {**_TEST, "forget": max(_TEST["forget"], _FORGET_IN_ALL // len(views.forget))}
    more = dict.fromkeys(views.retain, kept_images(len(views.retain)))
    return _material(data, views, parts, ("test", test, each), ("train", shots, _SHOTS), seed, more)


def validation_material(
    experience: Any, views: Views, forget: Tensor, kept: Tensor, rest: Tensor, seed: int
) -> Material:
    """The same from train images alone: those that a stopping rule may see.

    :param forget: rows of the request's images that the forgetter is not given [n]. :param kept: of
        exemplars it is not given; if there are none, of bystanders' images. :param rest: of the other
        exemplars.
    """
    data = experience.data
    parts = _parts(experience, views, seed)
    if not len(kept):
        kept = data.rows("train", parts["retain"])
    test = {"forget": forget, "retain": kept, "unseen": data.rows("train", parts["unseen"])}
    return _material(data, views, parts, ("train", test, _TEST), ("train", {"retain": rest}, _SHOTS), seed)  # fmt: skip


def _parts(experience: Any, views: Views, seed: int) -> dict[str, tuple[int, ...]]:
    data, gone = experience.data, set(experience.forgotten_classes) | set(views.forget)
    others = views.bystanders
    if data.known is None:
        others = tuple(c for c in range(data.num_classes) if c not in gone | set(views.retain))
    order = torch.randperm(len(views.unseen), generator=generator_for(seed, 22))[:_MOST_UNSEEN]
    unseen = tuple(views.unseen[i] for i in order.tolist())
    return {"forget": views.forget, "retain": (*views.retain, *others), "unseen": unseen}


Drawn = tuple[Any, Mapping[str, Tensor], Mapping[str, int]]


def _material(
    data: Any, views: Views, parts: Mapping[str, tuple[int, ...]], test: Drawn, shots: Drawn, seed: int,
    more: Mapping[int, int] | None = None,
) -> Material:  # fmt: skip
    """:param test, shots: the split, its rows by part, and how many of each class at most.
    :param more: test images of single classes, instead.
    """
    rng = generator_for(seed, 21)

    def draw(drawn: Drawn, more: Mapping[int, int]) -> dict[str, Part]:
        split, rows, each = drawn
        found = {}
        for name, own in rows.items():
            order = own[torch.randperm(len(own), generator=rng)]
            targets = data.split(split).targets[order]
            chosen = [order[targets == c][: more.get(int(c), each[name])] for c in targets.unique()]
            if chosen:
                at = torch.cat(chosen)
                found[name] = Part(data.split(split).images(at), data.split(split).targets[at])
        return found

    seen = draw(test, more or {})
    unseen = tuple(c for c in parts["unseen"] if "unseen" in seen and c in seen["unseen"].classes())
    others = tuple(c for c in parts["retain"] if c not in views.retain)
    return Material(
        data.class_names, data.templates, views.forget, parts["retain"], unseen,
        views.neighbours, others, test=seen, shots=draw(shots, {}), synonyms=data.synonyms,
    )  # fmt: skip


def knew(before: Subject, m: Material) -> bool:
    """Whether bare CLIP told the forgotten classes from others, which unseen ones show the chance of."""
    told = {
        part: float(right(before.bare(), m.test[part], m).float().mean())
        for part in ("forget", "unseen")
        if part in m.test
    }
    return told["forget"] - told.get("unseen", 0.0) >= _KNEW
