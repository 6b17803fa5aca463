"""What the verdict must be when the truth is known: controls, and the method itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from clapforget.verify import Certificate

Certify = Callable[[str, str], list[Certificate]]
# Of the first ten labels 0, 1, 3, 4, 6, 7 are known from pretraining; 2, 5, 8 are new; 9 is unseen.
BOTH_KINDS = "L0-6 F1 F5"
KINDS = pytest.mark.parametrize("place", [0, 1], ids=["known", "new"])


def value(certificate: Certificate, name: str) -> float:
    piece = certificate.evidence_by_name(name)
    assert piece is not None
    return piece.value


@pytest.fixture(scope="module")
def nothing(certify: Certify) -> list[Certificate]:
    return certify("nothing", BOTH_KINDS)


@pytest.fixture(scope="module")
def hidden(certify: Certify) -> list[Certificate]:
    return certify("hide", BOTH_KINDS)


@pytest.fixture(scope="module")
def erased(certify: Certify) -> list[Certificate]:
    return certify("cliperase", BOTH_KINDS)


@KINDS
def test_who_does_nothing_retains(nothing: list[Certificate], place: int) -> None:
    assert nothing[place].verdict == "retained"
    assert value(nothing[place], "answers") > 0.8


@KINDS
def test_who_hides_a_class_has_suppressed_it(hidden: list[Certificate], place: int) -> None:
    assert hidden[place].verdict == "suppressed"
    assert value(hidden[place], "answers") == 0


def test_a_hidden_new_class_is_found_in_the_posterior(hidden: list[Certificate]) -> None:
    assert value(hidden[1], "zero_shot") < 0.1  # CLIP never knew it
    nats = hidden[1].evidence_by_name("posterior_nats")
    assert nats is not None
    assert nats.holds is False
    assert "nats" in hidden[1].weakest


def test_who_adds_noise_has_damaged(certify: Certify) -> None:
    certificate = certify("random-edit", "L0-6 F1")[0]
    assert certificate.verdict == "damaged"
    assert certificate.weights["before"]["image"] != certificate.weights["after"]["image"]


@KINDS
def test_cliperase_has_forgotten(erased: list[Certificate], place: int) -> None:
    certificate = erased[place]
    assert certificate.verdict == "forgotten", (certificate.rule, certificate.weakest)
    assert value(certificate, "answers") == 0
    assert value(certificate, "posterior_nats") < 0.01
    assert certificate.weights["before"]["text"] != certificate.weights["after"]["text"]


def test_forgetting_a_class_that_only_pretraining_taught_is_judged_by_bare_clip(
    certify: Certify,
) -> None:
    certificate = certify("nothing", "L0-3 F11")[0]
    assert certificate.verdict == "retained"
    assert certificate.evidence_by_name("zero_shot") is None  # it is the answers themselves
    assert value(certificate, "answers") > 0.9
    kept = [piece for piece in certificate.evidence if piece.role == "kept"]
    assert {"retain_accuracy", "clip_retain_accuracy"} <= {piece.name for piece in kept}


def test_the_claim_is_the_association_and_the_visual_witnesses_are_shown(
    erased: list[Certificate],
) -> None:
    """CLIPErase changes the text tower: images lie where they lay, and the certificate says so."""
    certificate = erased[0]
    assert "not that the image tower" in certificate.claim
    assert "The image tower was not changed" in certificate.text
    place = certificate.evidence_by_name("placement")
    assert place is not None and place.before is not None
    assert place.residue is not None and place.residue > 0.8  # it still holds the class
    assert place.role == "shown" and "not judged" in place.note
    assert place.value == pytest.approx(place.before, abs=0.01)
