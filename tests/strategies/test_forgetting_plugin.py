"""Forget requests in Avalanche's own Naive, with its own replay."""

from __future__ import annotations

import io
import json
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin
from avalanche.training.storage_policy import (
    ClassBalancedBuffer,
    ExperienceBalancedBuffer,
    ReservoirSamplingBuffer,
)
from avalanche.training.supervised import Naive
from torch import nn

from clapforget import Clip
from clapforget.errors import UserError
from clapforget.scenarios import ImageData, stream
from clapforget.strategies import UncertaintyBuffer
from clapforget.strategies.classifier import ClipClassifier
from clapforget.strategies.forgetting_plugin import ForgettingPlugin, forget_in_buffer
from clapforget.unlearn import ForgetTask, Forgetter, Unlearned, make_forgetter
from clapforget.verify import schema

QUICK = {"steps": 60, "vocabulary_batch": 48, "retain_batch": 32}


def naive(clip: Clip, data: ImageData, plugins: list, model: nn.Module | None = None) -> Naive:
    model = model or ClipClassifier(clip, data.class_names, data.templates)
    return Naive(
        model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9),
        criterion=nn.CrossEntropyLoss(), train_mb_size=32, train_epochs=2, eval_mb_size=64,
        plugins=plugins, evaluator=EvaluationPlugin(),
    )  # fmt: skip


@torch.no_grad()
def accuracy(strategy: Naive, data: ImageData, label: int) -> float:
    images = data.test.images(data.rows("test", [label]))
    return float((strategy.model(images).argmax(1) == label).float().mean())


def test_a_class_leaves_replay_classifier_and_clip(clip: Clip, data: ImageData) -> None:
    replay = ReplayPlugin(40, storage_policy=ClassBalancedBuffer(40, adaptive_size=True))
    plugin = ForgettingPlugin(make_forgetter("cliperase", QUICK), certify="quick")
    strategy = naive(clip, data, [replay, plugin])
    learn, forget, later = stream(data, "L0-3 F1 L4,5").train_stream
    strategy.train(learn)
    assert accuracy(strategy, data, 1) > 0.9
    assert accuracy(strategy, data, 2) > 0.9  # new to CLIP: the classifier learned it
    kept = strategy.model.delta[[0, 2, 3]].clone()
    strategy.train(forget)
    buffer = replay.storage_policy.buffer
    assert set(buffer.targets) == {0, 2, 3}
    assert len(buffer) == 30  # no exemplar of another class was lost with it
    assert accuracy(strategy, data, 1) == 0
    assert accuracy(strategy, data, 2) > 0.9
    assert not strategy.model.delta[1].any()
    assert torch.equal(strategy.model.delta[[0, 2, 3]], kept)
    assert not strategy.optimizer.state
    assert plugin.done[0]["exemplars_deleted"] == 10
    assert strategy.clock.train_exp_counter == 2
    (certificate,) = plugin.certificates
    assert certificate.request == {"text": "F1", "classes": [1], "names": [data.class_names[1]]}
    assert certificate.event == 1
    assert certificate.evidence_by_name("answers").value == 0.0  # type: ignore[union-attr]
    assert certificate.evidence_by_name("answers").before > 0.9  # type: ignore[union-attr,operator]
    assert certificate.weights["before"]["text"] != certificate.weights["after"]["text"]
    assert certificate.verdict in ("forgotten", "inconclusive"), certificate.weakest
    assert any("not removed" in line for line in certificate.not_tested)
    jsonschema.validate(json.loads(json.dumps(certificate.to_dict())), schema())
    strategy.train(later)
    assert set(replay.storage_policy.buffer.targets) == {0, 2, 3, 4, 5}
    assert accuracy(strategy, data, 1) == 0


def test_samples_leave_replay_and_clip_stays(clip: Clip, data: ImageData) -> None:
    replay = ReplayPlugin(40, storage_policy=UncertaintyBuffer(40, "random"))
    plugin = ForgettingPlugin()
    strategy = naive(clip, data, [replay, plugin])
    ids = data.rows("train", [1]).tolist()[:15]
    learn, forget = stream(data, f"L0-3 F@{','.join(map(str, ids))}").train_stream
    strategy.train(learn)
    accuracy_before = [accuracy(strategy, data, c) for c in range(4)]
    strategy.train(forget)
    assert not set(replay.storage_policy.sample_ids.tolist()) & set(ids)
    assert strategy.model.clip.fingerprint() == clip.fingerprint()
    (certificate,) = plugin.certificates
    assert certificate.request["classes"] == []
    assert certificate.request["names"] == [data.class_names[1]]
    assert certificate.forget_data["count"] == 15
    assert certificate.event == 1
    weights = certificate.weights
    assert weights["before"]["all"] == weights["after"]["all"]
    assert (
        weights["before"]["head"] != weights["after"]["head"]
    )  # what it was taught of the class is gone
    told = certificate.evidence_by_name("samples_entropy_auroc")
    assert told is not None and told.n == 15 and 0 < told.value < 1
    kept = certificate.evidence_by_name("retain_accuracy")
    assert kept is not None and kept.before == pytest.approx(
        np.mean([accuracy_before[c] for c in range(4)]), abs=1e-6
    )
    assert certificate.verdict == "inconclusive" and certificate.rule.startswith("3")  # 15 are few
    assert any("shadow models" in line for line in certificate.not_tested)
    jsonschema.validate(json.loads(json.dumps(certificate.to_dict())), schema())


@pytest.mark.parametrize("kind", [ClassBalancedBuffer, ExperienceBalancedBuffer, ReservoirSamplingBuffer])  # fmt: skip
def test_every_common_buffer_forgets_and_goes_on(kind: type, data: ImageData) -> None:
    buffer = kind(30) if kind is ReservoirSamplingBuffer else kind(30, adaptive_size=True)
    first, second, third = stream(data, "L0-3 L4,5 L6").train_stream

    class State:
        experience = first

    for state in (first, second):
        State.experience = state
        buffer.update(State)
    ids = set(list(buffer.buffer.sample_id)[:4])
    deleted = forget_in_buffer(buffer, ids, [4])
    assert deleted >= 4
    left = buffer.buffer
    assert not set(left.sample_id) & ids
    assert 4 not in set(left.targets)
    State.experience = third
    buffer.update(State)
    assert 6 in set(buffer.buffer.targets)
    assert len(buffer.buffer) <= 30


@pytest.mark.parametrize("again", ["F1", "F@1"])
def test_what_is_gone_already_is_said_to_be(clip: Clip, data: ImageData, again: str) -> None:
    replay = ReplayPlugin(20, storage_policy=UncertaintyBuffer(20, "random"))
    plugin = ForgettingPlugin("stranger", certify=False)
    strategy = naive(clip, data, [replay, plugin])
    *before, last = stream(data, f"L0-3 {again} {again}").train_stream
    for experience in before:
        strategy.train(experience)
    held = replay.storage_policy.sample_ids.clone()
    state = {name: value.clone() for name, value in strategy.model.state_dict().items()}
    strategy.train(last)
    assert "nothing_to_do" not in plugin.done[0] and plugin.done[1]["nothing_to_do"]
    assert torch.equal(replay.storage_policy.sample_ids, held)
    for name, value in strategy.model.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_pairs_leave_clip_with_their_captions(clip: Clip, data: ImageData) -> None:
    """The forgetter is given the captions that match, and keeps by those of the exemplars."""
    tasks = []

    class Watched(Forgetter):
        def unlearn(self, clip: Clip, task: ForgetTask) -> Unlearned:
            tasks.append(task)
            return make_forgetter("stranger").unlearn(clip, task)

    replay = ReplayPlugin(20, storage_policy=UncertaintyBuffer(20, "random"))
    plugin = ForgettingPlugin(Watched())
    strategy = naive(clip, data, [replay, plugin])
    name = data.class_names[1]
    learn, forget = stream(data, f'L0-3 F"{name}"').train_stream
    strategy.train(learn)
    before = strategy.model.clip.fingerprint("text")
    strategy.train(forget)
    (task,) = tasks
    assert task.forget.names and all(name in caption for caption in task.forget.names)
    assert len(task.retain) == len(replay.storage_policy) > 0
    assert not any(name in caption for caption in task.retain.names)
    assert strategy.model.clip.fingerprint("text") != before
    (certificate,) = plugin.certificates
    lead = certificate.evidence_by_name("pairs_cosine")
    assert lead is not None and lead.before is not None and lead.before > lead.value
    assert certificate.rule.startswith("pairs"), certificate.rule


def test_a_model_it_cannot_change_is_refused(clip: Clip, data: ImageData) -> None:
    _, forget = stream(data, "L0-3 F1").train_stream
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 100))
    strategy = naive(clip, data, [ForgettingPlugin()], linear)
    with pytest.raises(UserError, match="cannot change a Sequential"):
        strategy.train(forget)


def saved(thing: Any) -> bytes:
    file = io.BytesIO()
    torch.save(thing, file)
    return file.getvalue()


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_nothing_that_is_saved_holds_the_old_weights(
    clip: Clip, data: ImageData, kind: type[torch.optim.Optimizer]
) -> None:
    """Neither the model nor the optimiser, though the request is the last."""
    strategy = naive(clip, data, [ForgettingPlugin("stranger", certify="quick")])
    model = strategy.model
    strategy.optimizer = kind(model.parameters(), lr=0.01)
    learn, forget = stream(data, "L0-3 F1").train_stream
    strategy.train(learn)
    table = model.clip.token_table.weight
    old = table.detach().clone()
    strategy.optimizer.state[table]["exp_avg"] = old.clone()  # as if CLIP had been trained
    taught = model.delta.detach()[1].numpy().tobytes()
    strategy.train(forget)
    (row,) = (old != table).any(1).nonzero().flatten()[:1].tolist()
    wanted, new = old[row].numpy().tobytes(), table.detach()[row].numpy().tobytes()
    for thing in (model.state_dict(), strategy.optimizer.state_dict(), strategy.optimizer, model):
        assert wanted not in saved(thing)
        assert taught not in saved(thing)
    assert new in saved(model.state_dict()) and new in saved(strategy.optimizer)
    (group,) = strategy.optimizer.param_groups
    assert {id(p) for p in group["params"]} == {id(p) for p in model.parameters()}
    assert not any(p.requires_grad for p in model.clip.parameters())


def test_a_changed_clip_of_other_tensors_is_refused(clip: Clip, data: ImageData) -> None:
    model = ClipClassifier(clip, data.class_names, data.templates)
    before, other = model.fingerprint(), clip.trainable_copy([])
    other.model.extra = nn.Parameter(torch.zeros(1))
    with pytest.raises(UserError, match="with other tensors than it was given"):
        model.forget(other, [1])
    assert model.fingerprint() == before


def test_an_untrained_classifier_is_zero_shot_clip(clip: Clip, data: ImageData) -> None:
    images = data.test.images(torch.arange(20))
    text = clip.class_features(data.class_names, data.templates)
    expected = clip.scale * clip.encode_image(images) @ text.T
    model = ClipClassifier(clip, data.class_names, data.templates)
    assert torch.allclose(model(images), expected, atol=1e-4)


def test_a_classifier_that_only_hides_the_class_is_found_out(clip: Clip, data: ImageData) -> None:
    """The classifier's own vector is taken away; CLIP, which knew the class, is as it was."""
    plugin = ForgettingPlugin(make_forgetter("nothing"), certify="quick")
    strategy = naive(
        clip, data, [ReplayPlugin(40, storage_policy=UncertaintyBuffer(40, "random")), plugin]
    )
    learn, forget = stream(data, "L0-5 F1").train_stream
    strategy.train(learn)
    strategy.train(forget)
    assert plugin.certificates[0].verdict in ("retained", "suppressed")
