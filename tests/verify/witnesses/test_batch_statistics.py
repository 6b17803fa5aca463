"""Batch statistics estimated anew."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from clapforget.clip import Clip
from clapforget.loading import build_clip
from clapforget.seeding import generator_for
from clapforget.verify import WITNESSES, Subject
from clapforget.verify.witnesses.batch_statistics import normalisations
from tests.verify.worlds import call, clip, material, scrambled, subject


def with_other_statistics() -> Clip:
    """The image tower under running statistics that no images have."""
    other = clip().trainable_copy([])
    for i, module in enumerate(normalisations(other)):
        noise = torch.randn(module.running_mean.shape, generator=generator_for(i, 0))
        module.running_mean += 2 * noise * module.running_var.sqrt()
    return other


def test_batch_statistics_estimated_anew_bring_back_what_lived_in_others() -> None:
    name = "batch_statistics"
    hidden = Subject(with_other_statistics())
    assert call("answers", "answers", hidden).forget.mean() < 0.5
    back, known = call(name, name, hidden), call(name, name)
    assert back.forget.mean() > 0.9 and known.forget.mean() > 0.9
    assert back.unseen is not None and back.unseen.mean() < 0.3
    assert back.forget == pytest.approx(known.forget)  # the weights are the same
    assert call(name, name, Subject(scrambled())).forget.mean() < 0.2


def test_batch_statistics_leave_the_examined_model_alone_and_need_some() -> None:
    before = clip().fingerprint()
    call("batch_statistics", "batch_statistics")
    assert clip().fingerprint() == before
    transformer = Subject(build_clip("lab-vit", seed=0))
    assert WITNESSES.get("batch_statistics")(transformer, material(), 0) == []
    unarmed = replace(material(), shots={})
    assert WITNESSES.get("batch_statistics")(subject(), unarmed, 0) == []
