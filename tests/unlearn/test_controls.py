from __future__ import annotations

import pytest
import torch

from clapforget.unlearn import FORGETTERS, make_forgetter


@pytest.mark.parametrize("name", ["nothing", "hide"])
def test_controls_that_pretend_change_no_weight(lab_clip, task, name: str) -> None:
    before = lab_clip.fingerprint()
    result = make_forgetter(name).unlearn(lab_clip, task())
    assert result.clip.fingerprint() == before == lab_clip.fingerprint()
    assert result.steps == 0 and not result.losses
    assert not FORGETTERS.get(name).unlearns_posterior


def test_only_hide_hides() -> None:
    assert [name for name in FORGETTERS.names() if FORGETTERS.get(name).hides] == ["hide"]
    assert FORGETTERS.get("cliperase").unlearns_posterior


@pytest.mark.parametrize("relative", [0.1, 1.0, 3])
@pytest.mark.parametrize("tower", ["all", "image", "text"])
def test_a_random_edit_moves_every_tensor_by_exactly_its_share(
    lab_clip, task, relative: float, tower: str
) -> None:
    before = {n: p.clone() for n, p in lab_clip.model.state_dict().items()}
    overrides = {"relative": relative, "train": tower}
    result = make_forgetter("random-edit", overrides).unlearn(lab_clip, task())
    after = result.clip.model.state_dict()
    chosen = set(lab_clip.parameter_names(None if tower == "all" else tower)) - {"logit_scale"}
    for name, old in before.items():
        change = (after[name] - old).double().norm()
        wanted = relative * old.double().norm() if name in chosen else torch.zeros(()).double()
        torch.testing.assert_close(change, wanted, rtol=1e-4, atol=1e-9)
        if name not in chosen:
            assert torch.equal(after[name], old)
    assert all(torch.equal(v, before[n]) for n, v in lab_clip.model.state_dict().items())


def test_a_random_edit_is_seeded_and_its_directions_are_its_own(lab_clip, task) -> None:
    edit = make_forgetter("random-edit")
    torch.manual_seed(0)
    first = edit.unlearn(lab_clip, task()).clip
    torch.manual_seed(1)
    assert edit.unlearn(lab_clip, task()).clip.fingerprint() == first.fingerprint()
    assert edit.unlearn(lab_clip, task(seed=1)).clip.fingerprint() != first.fingerprint()
    name = "text_projection"
    old, new = (c.model.state_dict()[name].flatten() for c in (lab_clip, first))
    assert torch.nn.functional.cosine_similarity(new - old, old, dim=0).abs() < 0.1
