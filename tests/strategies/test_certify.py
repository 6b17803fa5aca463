"""What a stream's request is examined with, and requests with little or nothing to examine."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jsonschema
import pytest
import torch

from clapforget import Clip, UserError
from clapforget.scenarios import ImageData, lab, stream
from clapforget.strategies import ClapForget, TrainSettings
from clapforget.strategies.certify import Certifier
from clapforget.strategies.certify_material import request_material, request_views, subject_of
from clapforget.verify import Certificate, schema

MakeStrategy = Callable[..., ClapForget]
ONE = TrainSettings(epochs=1)


@pytest.fixture(scope="module")
def small() -> ImageData:
    """Few test images: the parts of the material stay small."""
    return lab(train_per_class=6, test_per_class=3)


def checked(certificate: Certificate) -> Certificate:
    values = json.loads(json.dumps(certificate.to_dict()))
    jsonschema.validate(values, schema())
    assert Certificate.from_dict(values).to_dict() == certificate.to_dict()
    return certificate


def lived(strategy: ClapForget, data: ImageData, sequence: str) -> list[Certificate]:
    for experience in stream(data, sequence).train_stream:
        strategy.train(experience)
    return [checked(certificate) for certificate in strategy.certificates]


# ---- the material --------------------------------------------------------------------------
def test_each_class_plays_one_part_and_attacks_get_no_test_image(data: ImageData) -> None:
    *_, request = stream(data, "L0-6 F4 F1,5").train_stream
    views = request_views(request, [0, 2, 3, 6], list(range(7)))
    m = request_material(request, views, 0)
    assert m.forget == (1, 5)
    assert set(m.retain) == {0, 2, 3, 6} | (set(data.known or ()) - {1, 4, 5})
    assert set(m.bystanders) == set(m.retain) - {0, 2, 3, 6}
    assert set(m.unseen) == set(range(data.num_classes)) - set(data.known or ()) - set(range(7))
    test = {image.numpy().tobytes() for part in m.test.values() for image in part.images}
    shots = {image.numpy().tobytes() for part in m.shots.values() for image in part.images}
    assert not test & shots
    assert {name: part.classes() for name, part in m.test.items()} == {
        "forget": [1, 5], "retain": sorted(m.retain), "unseen": sorted(m.unseen)
    }  # fmt: skip


@pytest.mark.parametrize(("learned", "each"), [("L0-11", 15), ("L0-9,20-29", 12)])
def test_of_few_learned_classes_as_many_images_are_looked_at_as_show_that_they_were_kept(
    data: ImageData, learned: str, each: int
) -> None:
    *_, request = stream(data, f"{learned} F1").train_stream
    met = [c for c in request.learned_classes if c != 1]
    m = request_material(request, request_views(request, met, [*met, 1]), 0)
    kept = m.test["retain"]
    assert {len(kept.of([c])) for c in met} == {each}
    assert {len(kept.of([c])) for c in m.bystanders} == {12}


def test_single_samples_that_were_deleted_serve_no_attack(data: ImageData) -> None:
    gone = data.rows("train", [0])[:15].tolist()
    text = ",".join(map(str, gone))
    *_, request = stream(data, f"L0-3 F@{text} F1").train_stream
    m = request_material(request, request_views(request, [0, 2, 3], list(range(4))), 0)
    assert len(m.shots["retain"].of([0])) == 5


def test_where_pretraining_is_unknown_all_others_are_kept_and_none_unseen(data: ImageData) -> None:
    *_, request = stream(replace(data, known=None), "L0-3 F1").train_stream
    m = request_material(request, request_views(request, [0, 2, 3], list(range(4))), 0)
    assert set(m.retain) == set(range(100)) - {1}
    assert m.unseen == () and "unseen" not in m.test


# ---- the subject ---------------------------------------------------------------------------
@pytest.mark.parametrize("posterior", ["variational", "exact", "zero-shot", "nearest-mean"])
def test_a_subject_answers_as_the_strategy_and_later_changes_do_not_reach_it(
    posterior: str, data: ImageData, make_strategy: MakeStrategy
) -> None:
    strategy = make_strategy(posterior=posterior, training=ONE, forgetter="null-space")
    learn, forget = stream(data, "L0-4 F1").train_stream
    strategy.train(learn)
    subject = subject_of(strategy.model)
    images = data.test.images(data.rows("test", [0, 1, 2]))
    v = strategy.model.clip.encode_image(images)
    assert subject.answer is not None
    said = subject.answer(v, images)
    torch.testing.assert_close(said.softmax(1), strategy.model.head.predict(v).probs)
    assert subject.columns == strategy.model.head.labels.tolist()
    strategy.train(forget)
    assert torch.equal(subject.answer(v, images), said)
    after = subject_of(strategy.model)
    assert (1 in after.columns) == (posterior != "nearest-mean")  # of sums nothing is left


# ---- requests with little to go by ---------------------------------------------------------
ODD = {
    "few test images": ("L0-3 F1", {}, "inconclusive", "1:"),
    "forget only": ("F1", {}, "inconclusive", "1:"),
    "twice": ("L0-3 F1 F1", {}, "inconclusive", "1:"),
    "pretraining unknown, never learned": ("L0-3 F9", {"known": None}, "inconclusive", "1:"),
}


@pytest.mark.parametrize("case", ODD)
def test_every_request_ends_in_a_valid_certificate(
    case: str, small: ImageData, make_strategy: MakeStrategy
) -> None:
    sequence, changes, verdict, rule = ODD[case]
    strategy = make_strategy(forgetter="null-space", certify="quick", training=ONE)
    certificates = lived(strategy, replace(small, **changes), sequence)
    assert len(certificates) == sequence.count("F")
    assert certificates[-1].verdict == verdict
    assert certificates[-1].rule.startswith(rule)


def test_where_nothing_is_kept_that_is_said(small: ImageData, make_strategy: MakeStrategy) -> None:
    strategy = make_strategy(forgetter="nothing", certify="full")
    (certificate,) = lived(strategy, replace(small, known=frozenset({1})), "F1")
    assert (certificate.verdict, certificate.evidence) == ("inconclusive", [])
    assert certificate.rule.startswith("0:")


def test_attacks_that_train_are_left_out_where_clip_knew_nothing(
    small: ImageData, make_strategy: MakeStrategy
) -> None:
    """Class 2 is new: only the head knows it."""
    strategy = make_strategy(forgetter="nothing", certify="full", training=ONE)
    (certificate,) = lived(strategy, small, "L0-3 F2")
    assert certificate.level == "quick"
    assert "did not know these classes" in certificate.not_tested[0]
    assert not any(piece.curve for piece in certificate.evidence)
    assert not any("level full does" in line for line in certificate.not_tested)


def test_a_certificate_keeps_all_that_the_examination_left_out_and_its_seed(
    small: ImageData, make_strategy: MakeStrategy
) -> None:
    """The exact head stores no class vectors that stand beside CLIP's features."""
    strategy = make_strategy(forgetter="nothing", certify="quick", posterior="exact", seed=5)
    (certificate,) = lived(strategy, small, "L0-3 F1")
    assert "what the head stores: it shows no class vectors" in certificate.not_tested
    assert certificate.seed == strategy.seed * 1_000_003 + certificate.event != strategy.seed


@pytest.mark.parametrize("options", [{"certify": "slow"}, {"claim": "everything"}])
def test_odd_words_are_refused(clip: Clip, options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="unknown"):
        ClapForget(clip, **options)


def test_true_is_the_full_level(make_strategy: MakeStrategy) -> None:
    certifier = make_strategy(certify=True, claim="knowledge").certifier
    assert isinstance(certifier, Certifier)
    assert (certifier.level, certifier.claim) == ("full", "knowledge")
