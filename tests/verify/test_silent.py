"""Images of which the model after gives out nothing are not seen to be forgotten."""

from __future__ import annotations

import torch

from clapforget.verify import Judgement, Subject
from clapforget.verify.silent import heard, silent
from tests.verify.worlds import clip, material


def muted() -> Subject:
    """A model whose image tower overflows on some forgotten images alone."""
    other = Subject(clip())
    part = material().test["forget"]
    other.features(part)[:3] = 0
    return other


def test_images_without_features_are_counted() -> None:
    part = material().test["forget"]
    assert silent(Subject(clip()), part) == 0
    assert silent(muted(), part) == 3


def test_what_gives_out_nothing_is_not_called_forgotten() -> None:
    m, good = material(), Judgement("forgotten", "11", "x", "claim", ["y"])
    assert heard(good, Subject(clip()), m) is good
    changed = heard(good, muted(), m)
    assert (changed.verdict, changed.claim, changed.not_tested) == ("inconclusive", "claim", ["y"])
    assert "3 of" in changed.weakest
    bad = Judgement("damaged", "3", "x", "claim")
    assert heard(bad, muted(), m) is bad


def test_features_that_overflow_are_zeros() -> None:
    other = clip().trainable_copy([])
    with torch.no_grad():
        for parameter in other.model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(1e30)
    m = material()
    found = Subject(other)
    assert not found.features(m.test["forget"]).any()
    assert not found.names(m.names[:2], m.templates).any()
    assert found.inner(m.test["forget"]).isfinite().all()  # type: ignore[union-attr]
