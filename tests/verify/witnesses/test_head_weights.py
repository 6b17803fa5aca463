"""What a head shows of itself."""

from __future__ import annotations

import numpy as np
import torch

from clapforget.verify import Subject
from tests.verify.worlds import FORGET, RETAIN, call, clip, data, head_of


def test_a_masked_head_is_seen_through_its_stored_vectors() -> None:
    text = clip().class_features(data().class_names, data().templates).detach()

    def masked(v: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        return (clip().scale * v @ text.T).index_fill(1, torch.tensor(FORGET), -torch.inf)

    who = Subject(clip(), masked, list(range(len(text))), text)
    assert call("answers", "answers", who).forget.sum() == 0
    assert call("head_weights", "head_weights", who).forget.mean() > 0.9
    assert call("answers", "zero_shot", who).forget.mean() > 0.9
    assert np.isfinite(call("answers", "answers_probability", who).forget).all()
    assert call("association", "column_shut", who).forget.tolist() == [1.0, 1.0]
    free = Subject(clip(), lambda v, x: clip().scale * v @ text.T - 60.0, list(range(len(text))))
    assert call("association", "column_shut", free).forget.tolist() == [0.0, 0.0]


def test_vectors_that_are_not_what_answers_are_only_shown() -> None:
    columns = [*FORGET, *RETAIN]
    honest, decoy = (
        call("head_weights", "head_weights", head_of(columns, spoil=spoil))
        for spoil in (False, True)
    )
    assert honest.role == "both"
    assert decoy.role == "shown" and "not those that answer" in decoy.note
    constant = head_of(columns)
    free = constant.answer
    assert free is not None

    def shut(v: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        return free(v, images).index_fill(1, torch.tensor([0, 1]), -torch.inf)

    other = Subject(clip(), shut, columns, constant.class_weights)
    assert call("head_weights", "head_weights", other).role == "both"  # another witness's
