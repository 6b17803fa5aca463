"""Where forgotten images lie beside kept names and kept images."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from clapforget.verify import WITNESSES, Subject
from tests.verify.worlds import FORGET, call, clip, material, scrambled, subject


def test_placement_sees_the_images_where_the_name_is_gone() -> None:
    """A scrambled name changes no image: known images still lie apart, unseen ones near kept names."""
    known, nameless = (
        call("placement", "placement"),
        call("placement", "placement", Subject(scrambled())),
    )
    assert nameless.forget == pytest.approx(known.forget, abs=1e-6)
    assert known.unseen is not None
    assert known.retain is not None
    assert known.forget.mean() < known.unseen.mean() - 0.05
    assert abs(known.forget.mean() - known.retain.mean()) < 0.05


def test_the_place_beside_images_hears_no_text() -> None:
    """Kept names drawn to where the forgotten images lie change the place beside names, not beside images."""
    other = clip().trainable_copy([])
    table, m = other.model.token_embedding.weight, material()
    ids = [t for c in m.retain for t in other.tokenize([m.names[c]])[0].tolist() if 0 < t < 49406]
    with torch.no_grad():
        own = [t for t in other.tokenize([m.names[FORGET[0]]])[0].tolist() if 0 < t < 49406]
        table[ids] = table[own[0]].clone()
    straight, drawn = (
        {r.name: r for r in WITNESSES.get("placement")(who, m, 0)}
        for who in (subject(), Subject(other))
    )
    assert drawn["placement_images"].forget == pytest.approx(
        straight["placement_images"].forget, abs=1e-6
    )
    own = straight["placement"].labels == FORGET[0]
    assert drawn["placement"].forget[own].mean() > straight["placement"].forget[own].mean() + 0.05
    known = straight["placement_images"]
    assert known.unseen is not None and known.retain is not None
    assert known.forget.mean() < known.unseen.mean() - 0.03
    assert abs(known.forget.mean() - known.retain.mean()) < 0.05


def test_without_images_of_every_kept_class_there_is_no_place_beside_them() -> None:
    m = material()
    few = replace(m, shots={**m.shots, "retain": m.shots["retain"].of(m.retain[1:])})
    for given in (few, replace(m, shots={})):
        assert [r.name for r in WITNESSES.get("placement")(subject(), given, 0)] == ["placement"]
