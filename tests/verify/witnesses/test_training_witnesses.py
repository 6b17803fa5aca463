"""Witnesses that train a copy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from clapforget.clip import Clip
from clapforget.verify import WITNESSES, Material, Part, Subject
from clapforget.verify.reading import FULL
from clapforget.verify.witnesses import relearning
from clapforget.verify.witnesses.training import fit, some_names
from tests.verify.worlds import FORGET, clip, data, material, scrambled, subject


def test_a_training_changes_a_copy_only_and_is_repeatable() -> None:
    m = material()
    before = clip().fingerprint()
    seen: list[str] = []

    def look(copy: Clip, step: int) -> None:
        seen.append(copy.fingerprint())

    labels = some_names(m, m.shots["forget"].classes(), 0)
    for seed in (0, 0, 1):
        fit(clip(), m.shots["forget"], m, labels, (0, 2), look, seed)
    assert clip().fingerprint() == before
    assert seen[0] == seen[2] == seen[4] == before
    assert seen[1] == seen[3] != seen[5]


def test_training_lowers_its_own_loss() -> None:
    m = material()
    part = m.shots["unseen"]
    labels = some_names(m, part.classes(), 0)
    target = torch.tensor([labels.index(int(c)) for c in part.labels])
    losses: list[float] = []

    def look(copy: Clip, step: int) -> None:
        text = copy.class_features([data().class_names[c] for c in labels], data().templates)
        logits = copy.scale * copy.encode_image(part.images) @ text.T
        losses.append(float(torch.nn.functional.cross_entropy(logits, target)))

    fit(clip(), part, m, labels, (0, 12), look, 0)
    assert losses[1] < losses[0] / 2


def test_names_to_choose_among_hold_those_asked_for_first() -> None:
    labels = some_names(material(), FORGET, 0)
    assert labels[:2] == list(FORGET)
    assert len(set(labels)) == len(labels) <= 24
    assert set(labels[2:]) <= set(material().retain)


def test_relearning_starts_where_the_model_is(monkeypatch) -> None:
    monkeypatch.setattr(relearning, "SHOTS", (5,))
    monkeypatch.setattr(relearning, "STEPS", (0, 2))
    known, gone = (
        WITNESSES.get("relearning")(who, material(), 0)[0]
        for who in (subject(), Subject(scrambled()))
    )
    assert known.curve["forget"][0] > 0.9
    assert gone.curve["forget"][0] < 0.2
    assert known.curve["unseen"][0] < 0.2
    assert known.forget.mean() == np.mean(known.curve["forget"])
    assert known.curve_at == (0, 2)


def test_resurfacing_never_trains_a_forgotten_name(monkeypatch) -> None:
    from clapforget.verify.witnesses import resurfacing

    monkeypatch.setattr(resurfacing, "STEPS", (0, 1))
    monkeypatch.setattr(resurfacing, "RATES", (3e-4,))
    trained: list[int] = []
    real = resurfacing.fit

    def spy(copy: Clip, part: Part, m: object, labels: list[int], *rest: object) -> None:
        trained.extend([*labels, *part.labels.tolist()])
        real(copy, part, m, labels, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(resurfacing, "fit", spy)
    reading = WITNESSES.get("resurfacing")(subject(), material(), 0)[0]
    assert trained
    assert set(trained) <= set(material().retain)
    assert reading.forget.mean() > 0.9


def test_a_learned_prompt_finds_what_is_known_and_leaves_no_hook() -> None:
    embedding = clip().model.token_embedding
    reading = WITNESSES.get("learned_prompt")(subject(), material(), 0)[0]
    assert not embedding._forward_hooks
    assert reading.unseen is not None
    assert reading.forget.mean() > reading.unseen.mean() + 0.3
    assert torch.equal(embedding.weight, embedding.weight.detach())


def test_the_costly_ones_are_left_to_the_full_level() -> None:
    WITNESSES.names()
    assert {"relearning", "resurfacing", "learned_prompt", "learned_pattern"} == FULL


def test_relearning_gives_every_class_as_many_images_and_says_how_many(monkeypatch) -> None:
    """Unseen classes of other sizes would be learned faster or slower for that alone."""
    m, given = material(), []
    unseen = m.shots["unseen"]
    first = unseen.classes()[0]
    few = torch.cat([(unseen.labels != first).nonzero().flatten(), (unseen.labels == first).nonzero().flatten()[:3]])
    uneven = replace(m, shots={**m.shots, "unseen": Part(unseen.images[few], unseen.labels[few])})

    def counted(clip: Clip, part: Part, m: Material, labels: list[int], *rest: Any) -> None:
        given.append(part.labels.unique(return_counts=True)[1].tolist())
        fit(clip, part, m, labels, (0,), rest[1], rest[2])

    monkeypatch.setattr(relearning, "fit", counted)
    monkeypatch.setattr(relearning, "STEPS", (0,))
    classes = len(FORGET) + len(unseen.classes())
    found = WITNESSES.get("relearning")(subject(), uneven, 0)
    assert given == [[1] * classes, [3] * classes]
    assert [r.name for r in found] == ["relearning_1", "relearning_5"]
    assert "from 3 images a class" in found[1].title
