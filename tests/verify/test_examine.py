"""The whole examination on small material, and the file it ends in."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import jsonschema
import pytest
import torch

from clapforget import lab
from clapforget.errors import UserError
from clapforget.seeding import generator_for
from clapforget.verify import (
    Certificate,
    Examination,
    Material,
    Subject,
    certificate_of,
    check_model,
    examine,
    material_from,
    schema,
)
from tests.verify.worlds import FORGET, RETAIN, clip, data, material, scrambled, subject


@cache
def wide() -> Material:
    """Among all known names: where unseen images come to lie shows best."""
    kept = [c for c in lab.known_classes() if c not in FORGET]
    return material_from(
        data(), FORGET, retain=kept, test_images=15, unseen_images=10, retain_images=4, shots=2
    )


@cache
def nothing() -> Examination:
    return examine(subject(), subject(), material(), level="quick")


@cache
def certificate() -> Certificate:
    return certificate_of(nothing(), material(), "F6,30", clip(), clip(), 0, {"clapforget": "0"})


def test_nothing_done_is_retained() -> None:
    assert nothing().judgement.verdict == "retained"
    assert nothing().judgement.rule.startswith("4")


def test_who_only_loses_the_name_still_knows_the_images() -> None:
    found = examine(subject(), Subject(scrambled()), wide(), level="quick")
    assert found.judgement.verdict == "suppressed", found.judgement.rule
    assert "lie where they lay" in found.judgement.rule


def test_the_association_alone_may_be_claimed_gone() -> None:
    found = examine(subject(), Subject(scrambled()), wide(), level="quick", claim="association")
    assert found.judgement.verdict == "forgotten", (found.judgement.rule, found.judgement.weakest)
    assert "not that the image tower" in found.judgement.claim


def test_a_name_masked_in_the_head_is_suppressed() -> None:
    text = clip().class_features(data().class_names, data().templates).detach()

    def answer(v: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        return clip().scale * v @ text.T

    def masked(v: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        return answer(v, images).index_fill(1, torch.tensor(FORGET), -torch.inf)

    columns = list(range(len(text)))
    found = examine(
        Subject(clip(), answer, columns),
        Subject(clip(), masked, columns),
        material(),
        level="quick",
    )
    assert found.judgement.verdict == "suppressed"


def test_a_class_that_only_the_head_knew_and_whose_column_is_shut_is_never_called_forgotten() -> (
    None
):
    """Bare CLIP cannot tell: it never knew the class. The constant column can."""
    m = wide()
    part = m.test["forget"]
    text = clip().class_features(data().class_names, data().templates).detach()
    text[list(FORGET)] = text[list(m.unseen[:2])]  # zero-shot would not find them by these
    learned = text.clone()
    for c in FORGET:
        learned[c] = clip().encode_image(part.of([c]).images).mean(0)

    def answer(v: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        return clip().scale * v @ learned.T

    def shut(v: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        return answer(v, images).index_fill(1, torch.tensor(FORGET), -torch.inf)

    columns = list(range(len(text)))
    found = examine(Subject(scrambled(), answer, columns), Subject(scrambled(), shut, columns), m, level="quick",
                    claim="association")  # fmt: skip
    assert found.judgement.verdict == "suppressed", (found.judgement.rule, found.judgement.weakest)
    assert "says the same of every image" in found.judgement.weakest


def test_noise_is_damage() -> None:
    noisy = clip().trainable_copy([])
    with torch.no_grad():
        for p in noisy.model.parameters():
            if p.ndim > 1:
                p.mul_(1 + 3 * torch.sin(torch.arange(p.numel()).float()).view_as(p))
    assert (
        examine(subject(), Subject(noisy), material(), level="quick").judgement.verdict == "damaged"
    )


def test_a_twin_beside_itself_is_forgotten_whatever_it_answers() -> None:
    """The reference decides: equal to the twin in all that was looked at."""
    found = examine(subject(), Subject(scrambled()), wide(), Subject(scrambled()), level="quick",
                    claim="association")  # fmt: skip
    assert found.judgement.verdict == "forgotten", (found.judgement.rule, found.judgement.weakest)
    assert {p.reference_name for p in found.evidence if p.role == "both"} == {"the twin"}


def test_a_twin_that_knows_the_class_hides_nothing() -> None:
    """The model after and a little noise, given for a twin: what the two share would be the reference."""
    noisy = clip().trainable_copy([])
    with torch.no_grad():
        for p in noisy.model.parameters():
            p.add_(
                0.01 * p.std().nan_to_num() * torch.randn(p.shape, generator=generator_for(0, 2))
            )
    with pytest.raises(UserError, match="does not stand for a model that never learned"):
        examine(
            subject(), subject(), material(), Subject(noisy), level="quick", claim="association"
        )


def test_a_twin_with_the_image_tower_of_before_says_nothing_of_knowledge() -> None:
    with pytest.raises(UserError, match="one linear map gives back"):
        examine(subject(), subject(), wide(), Subject(scrambled()), level="quick")


def test_a_certificate_validates_against_the_published_schema() -> None:
    values = json.loads(json.dumps(certificate().to_dict()))
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.validate(values, schema())
    assert Certificate.from_dict(values).to_dict() == certificate().to_dict()


@pytest.mark.parametrize("spoil", ["verdict", "evidence", "weights", "extra"])
def test_the_schema_refuses_what_is_none(spoil: str) -> None:
    values = json.loads(json.dumps(certificate().to_dict()))
    values[spoil] = "nonsense"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(values, schema())


def test_a_certificate_knows_its_model() -> None:
    assert check_model(certificate(), clip())
    other = clip().trainable_copy([])
    with torch.no_grad():
        other.model.visual.attnpool.c_proj.bias[0] += 1e-3
    assert not check_model(certificate(), other)


def test_it_says_what_was_not_tested() -> None:
    left = " ".join(nothing().judgement.not_tested)
    assert "relearning" in left
    assert "membership" in left


def test_forget_data_are_named_by_their_pixels(tmp_path: Path) -> None:
    ids = certificate().forget_data["ids"]
    assert len(ids) == certificate().forget_data["count"] == len(material().test["forget"])
    assert all(len(i) == 64 for i in ids)
    certificate().save(tmp_path / "c.json")
    assert json.loads((tmp_path / "c.json").read_text())["request"]["classes"] == list(FORGET)


def test_what_was_kept_is_looked_at_by_view() -> None:
    names = {p.name for p in nothing().evidence if p.role == "kept"}
    assert {"clip_retain_accuracy", "clip_neighbours_accuracy", "clip_worst_class",
            "clip_retain_accuracy_without_names"} <= names  # fmt: skip
    assert set(RETAIN) >= set(material().neighbours)


def test_a_certificate_says_all_that_its_verdict_depends_on() -> None:
    m, found = material(), nothing()
    alone = certificate()
    assert alone.looked_at["retained"] == [m.names[c] for c in m.test["retain"].classes()]
    assert alone.looked_at["unseen"] == [m.names[c] for c in m.test["unseen"].classes()]
    assert alone.forget_data["of"] == "test images that were looked at"
    beside = certificate_of(found, m, "F6,30", clip(), clip(), 0, {}, twin=scrambled())
    assert beside.weights["twin"]["all"] == scrambled().fingerprint() != beside.weights["after"]["all"]
    jsonschema.validate(json.loads(json.dumps(beside.to_dict())), schema())


def test_a_certificate_of_before_is_still_read() -> None:
    values = json.loads(json.dumps(certificate().to_dict()))
    del values["looked_at"], values["forget_data"]["of"]
    jsonschema.validate(values, schema())
    old = Certificate.from_dict(values)
    assert check_model(old, clip())
    assert old.looked_at == {}


def test_witnesses_that_could_not_look_are_named() -> None:
    assert not any("attack images" in line for line in certificate().not_tested)
    found = nothing()
    blind = {"after": [r for r in found.readings["after"] if not r.name.startswith(("patterns", "placement_i"))]}
    left = certificate_of(replace(found, readings=blind), material(), "F6,30", clip(), clip(), 0, {}).not_tested
    assert any(line.startswith("patches on the images") for line in left)
    assert any(line.startswith("nearness to images of kept classes") for line in left)
    full = replace(found, level="full")
    left = certificate_of(full, material(), "F6,30", clip(), clip(), 0, {}).not_tested
    assert any("without a table of token vectors" in line for line in left)
