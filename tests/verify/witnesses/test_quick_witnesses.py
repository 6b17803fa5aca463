"""Witnesses that do not train, together: on a model that knows, and on one whose names mean nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from clapforget.verify import WITNESSES, Part, Subject
from clapforget.verify.reading import FULL
from tests.verify.worlds import call, material, scrambled, subject


@pytest.mark.parametrize(
    ("witness", "name"),
    [("answers", "answers"), ("wordings", "wordings_best"), ("association", "retrieval"),
     ("transforms", "transforms_best"), ("rounding", "rounding_8"), ("posterior", "conformal_coverage")],
)  # fmt: skip
def test_what_is_known_is_found_and_what_was_never_learned_is_not(witness: str, name: str) -> None:
    seen = call(witness, name)
    assert seen.forget.mean() > 0.9
    assert seen.unseen is not None
    assert seen.unseen.mean() < 0.3


@pytest.mark.parametrize(
    "name", ["answers", "wordings_best", "rounding_8", "transforms_best", "retrieval"]
)
def test_a_name_that_means_nothing_is_not_found(name: str) -> None:
    witness = {"answers": "answers", "wordings_best": "wordings", "rounding_8": "rounding",
               "transforms_best": "transforms", "retrieval": "association"}[name]  # fmt: skip
    assert call(witness, name, Subject(scrambled())).forget.mean() < 0.2


@pytest.mark.parametrize("kind", ["forget", "unseen", "retain"])
def test_a_part_without_attack_images_is_no_part(kind: str) -> None:
    none = Part(torch.zeros(0, 3, 32, 32, dtype=torch.uint8), torch.zeros(0, dtype=torch.long))
    m = replace(material(), shots={**material().shots, kind: none})
    assert kind not in m.shots and len(m.shots) == 2
    for name in WITNESSES.names():
        if name not in FULL:
            WITNESSES.get(name)(subject(), m, 0)
    m = replace(material(), test={**material().test, "unseen": none, "forget": none})
    assert set(m.test) == {"forget", "retain"}, "to be told that there is too little to see"
