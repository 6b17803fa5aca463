from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clapforget.errors import UserError
from clapforget.unlearn import make_forgetter
from clapforget.unlearn.salun import salient


@settings(max_examples=60)
@given(st.lists(st.integers(-6, 6), min_size=1, max_size=30), st.floats(0.01, 1.0))
def test_salient_entries_are_the_largest_of_those_not_zero(values, fraction) -> None:
    x = torch.tensor(values, dtype=torch.double)
    cut = len(values) // 2
    masks = salient([x[:cut], x[cut:].reshape(-1, 1)], fraction)
    assert [m.shape for m in masks] == [(cut,), (len(values) - cut, 1)]
    chosen = torch.cat([m.flatten() for m in masks]).numpy()
    magnitudes = np.sort(np.abs([v for v in values if v]))[::-1]
    wanted = np.zeros(len(values), bool)
    if len(magnitudes):
        least = magnitudes[math.ceil(fraction * len(magnitudes)) - 1]
        wanted = np.abs(values) >= least
    assert (chosen == wanted).all()


@pytest.mark.parametrize("order", ["together", "alternate"])
def test_masked_entries_stay_to_the_bit_and_the_others_move(lab_clip, task, order: str) -> None:
    """Weight decay included: it would move an entry whose gradient alone is masked."""
    request = task(templates=("a {}",))
    options = {"order": order, "steps": 4, "weight_decay": 0.5, "fraction": 0.3, "forget_batch": 5}
    result = make_forgetter("salun", options).unlearn(lab_clip, request)
    clip = lab_clip.trainable_copy()
    t = clip.encode_text([f"a {name}" for name in request.forget.names])
    (1 - (clip.encode_image(request.forget.images) * t).sum(1)).mean().backward()
    gradients = {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in clip.model.named_parameters()
    }
    flat = torch.cat([g.flatten() for g in gradients.values()]).abs().double().numpy()
    least = np.quantile(flat[flat > 0], 0.7)
    after, moved, chosen = result.clip.model.state_dict(), 0, 0
    for name, before in lab_clip.model.named_parameters():
        magnitude, same = gradients[name].abs(), after[name] == before
        assert same[magnitude < 0.9 * least].all(), name
        moved += int((~same).sum())
        chosen += int((magnitude > 1.1 * least).sum())
    assert 0.8 * chosen < moved <= 1.05 * result.notes["salient_entries"]
    assert result.notes["salient_entries"] == pytest.approx(0.3 * (flat > 0).sum(), rel=0.05)
    assert result.notes["salient_share"] == pytest.approx(moved / len(flat), rel=0.1)


@pytest.mark.parametrize("overrides", [{"fraction": 0.0}, {"fraction": 1.1}, {"train": "lora"}])
def test_masks_that_cannot_be_are_refused(overrides: dict) -> None:
    with pytest.raises(UserError):
        make_forgetter("salun", overrides)
