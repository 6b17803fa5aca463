"""The certificate in words."""

from __future__ import annotations

from dataclasses import replace

from clapforget.verify import Evidence, Judgement
from clapforget.verify.document import plain_words

PIECE = Evidence("entropy", "entropy of images", "posterior", 1.0, (0.9, 1.1), role="accuses")
GONE = Judgement("forgotten", "11", "the weakest", "the claim")


def test_forgotten_is_worded_by_claim() -> None:
    """Under the association visual witnesses may still tell it from what was never learned."""
    knowledge = plain_words(["girel"], GONE, "knowledge", [PIECE])
    association = plain_words(["girel"], GONE, "association", [PIECE])
    assert "shows no more than one that the model never learned" in knowledge
    assert "tied to its name no more" in association
    assert "not judged" in association
    for words in (knowledge, association):
        assert "cannot be told from" not in words
        assert "the claim" in words
        assert "scar" not in words


def test_a_scar_that_was_judged_is_named() -> None:
    scar = replace(PIECE, scar=True)
    assert "by a scar: entropy of images." in plain_words(["girel"], GONE, "knowledge", [scar])
    shown = replace(scar, role="shown")
    assert "scar" not in plain_words(["girel"], GONE, "knowledge", [shown])
    kept = replace(GONE, verdict="retained")
    assert "scar" not in plain_words(["girel"], kept, "knowledge", [scar])
