from __future__ import annotations

import sys
from pathlib import Path

import pytest

from clapforget import cli
from clapforget.bench import forget
from clapforget.bench.plain_forget import PlainBatches
from clapforget.loading import load_clip
from clapforget.seeding import generator_for
from clapforget.unlearn import make_forgetter
from clapforget.unlearn.batches import Batches
from clapforget.unlearn.parameters import trainable_copy


def test_both_sides_of_the_ratio_take_the_same_steps(make_transformer) -> None:
    """Otherwise the plain way would be a straw man: the same losses, the same weights."""
    clip, task = make_transformer(), forget.caption_task(32, 20)
    forgetter = make_forgetter("cliperase:published", {"train": "last-blocks", "blocks": 2})
    losses, weights = [], []
    for kind in (PlainBatches, Batches):
        changed, chosen = trainable_copy(clip, "last-blocks", 2, 4, generator_for(0))
        batches = kind(clip, task, 16, 16, chosen)
        step = forget._step(forgetter, changed, batches)
        for _ in range(2):
            step()
        terms = forgetter.terms(changed, batches, 2)
        losses.append([value.item() for _, value in terms.values()])
        weights.append([chosen[name].detach() - clip.model.get_parameter(name) for name in chosen])
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    for a, b in zip(*weights):
        assert (a - b).norm() <= 0.02 * a.norm() + 1e-9


def test_reuse_is_faster_where_most_of_a_tower_stays(make_transformer) -> None:
    clip, task = make_transformer(), forget.caption_task(32, 24)
    found = forget.prefix_step(clip, task, 9)
    assert found["prefix_feature_error"] < 1e-5
    assert found["prefix_step_ratio"] > 1.3
    assert found["ours_step_peak_mb"] < found["plain_step_peak_mb"]
    assert forget.judge_ratio(clip, task, 1) > 1


def test_a_request_cut_short_is_extrapolated_to_all_its_steps(make_transformer) -> None:
    task = forget.caption_task(32, 16)
    found = forget.request_cost(make_transformer(), task, "cliperase", short=True)
    assert (found["steps"], found["measured_steps"]) == (150, 4)
    assert found["seconds"] > 0 and found["peak_mb"] > 0
    whole = forget.request_cost(make_transformer(), task, "gradient-ascent", short=False)
    assert (whole["steps"], whole["measured_steps"]) == (6, 6)


def test_the_class_request_is_one_that_every_method_takes() -> None:
    task = forget.class_task(2)
    assert (len(task.forget), len(set(task.forget.names)), len(task.retain)) == (100, 1, 38)
    assert not set(task.forget.names) & set(task.retain.names)
    clip = load_clip("lab-tiny")
    t = clip.class_features(task.vocabulary, task.templates)
    best = (clip.encode_image(task.forget.images) @ t.T).argmax(1)
    assert {task.vocabulary[i] for i in best.tolist()} == set(task.forget.names)


def test_the_command_refuses_a_file_that_exists_before_it_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "numbers.json"
    file.write_text("mine")
    monkeypatch.setattr(sys, "argv", ["clapforget", "bench", "forget", "--json", str(file)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2 and file.read_text() == "mine"
    assert "exists already" in capsys.readouterr().err
