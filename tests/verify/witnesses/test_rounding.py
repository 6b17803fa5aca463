"""Weights rounded to few bits: how far they move, and from what."""

from __future__ import annotations

import pytest
import torch

from clapforget.verify.witnesses.rounding import round_weights
from tests.verify.worlds import clip


@pytest.mark.parametrize("scale", ["tensor", "row"])
@pytest.mark.parametrize("bits", [8, 4])
def test_rounding_leaves_few_values_and_small_errors(bits: int, scale: str) -> None:
    rounded = dict(round_weights(clip(), bits, scale).model.named_parameters())  # type: ignore[arg-type]
    for name, old in clip().model.named_parameters():
        new = rounded[name]
        if old.ndim < 2:
            assert torch.equal(new, old)
            continue
        flat, was = (x.flatten(1) if scale == "row" else x.flatten()[None] for x in (new, old))
        step = was.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
        assert ((flat - was).abs() <= step / 2 + 1e-6).all()


def test_a_copy_that_was_rounded_before_is_rounded_from_the_model_itself() -> None:
    before, copy = clip().fingerprint(), clip().trainable_copy([])
    round_weights(clip(), 4, "tensor", copy)
    given, new = round_weights(clip(), 8, "row", copy), round_weights(clip(), 8, "row")
    assert given is copy and given.fingerprint() == new.fingerprint()
    assert clip().fingerprint() == before


def test_rounding_twice_is_rounding_once() -> None:
    once = round_weights(clip(), 8, "tensor")
    twice = round_weights(once, 8, "tensor")
    for a, b in zip(once.model.parameters(), twice.model.parameters()):
        assert torch.allclose(a, b, atol=1e-6)
