"""Fine-tuning changes the image tower alone; joint training forgets by retraining."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from avalanche.training.plugins import EvaluationPlugin

from clapforget import Clip, UserError
from clapforget.scenarios import Forget, ImageData, Learn, stream
from clapforget.strategies import TrainSettings, UncertaintyBuffer
from clapforget.strategies.finetune import Finetune, FinetuneSettings
from clapforget.strategies.joint import Joint
from clapforget.strategies.loader import ImageLoader
from clapforget.unlearn import make_forgetter


def make(kind: type[Finetune], clip: Clip, forgetter: str = "nothing", **finetune: Any) -> Finetune:
    return kind(
        model=clip, finetune=FinetuneSettings(**finetune), memory=UncertaintyBuffer(40),
        forgetter=make_forgetter(forgetter), training=TrainSettings(epochs=1), certify=False,
        evaluator=EvaluationPlugin(),
    )  # fmt: skip


def live(strategy: Finetune, data: ImageData, sequence: str) -> Finetune:
    for experience in stream(data, sequence).train_stream:
        strategy.train(experience)
    return strategy


def test_it_changes_the_image_tower_alone(clip: Clip, data: ImageData) -> None:
    strategy = live(make(Finetune, clip), data, "L0-3")
    now = strategy.model.clip
    assert now.fingerprint("image") != clip.fingerprint("image")
    assert now.fingerprint("text") == clip.fingerprint("text")
    assert strategy.cache.tower == now.fingerprint("image")
    expected = now.encode_image(strategy.memory.images)
    torch.testing.assert_close(strategy.memory_views[:, 0], expected, atol=1e-5, rtol=1e-4)
    assert not any(p.requires_grad for p in now.parameters())


def test_its_last_blocks_alone(clip: Clip, data: ImageData) -> None:
    strategy = live(make(Finetune, clip, train="image-blocks"), data, "L0-3")
    now, was = strategy.model.clip.model.state_dict(), clip.model.state_dict()
    changed = {name.split(".")[1] for name in was if not torch.equal(now[name], was[name])}
    assert changed == {"layer4", "attnpool"}


def test_without_steps_it_is_zero_shot(clip: Clip, data: ImageData) -> None:
    strategy = live(make(Finetune, clip, lr=0.0), data, "L0-3")
    assert strategy.model.clip.fingerprint() == clip.fingerprint()


def test_the_head_alone_is_another_strategy(clip: Clip) -> None:
    with pytest.raises(UserError, match="linear"):
        make(Finetune, clip, train="head")


def test_joint_training_does_not_depend_on_the_order_of_tasks(clip: Clip, data: ImageData) -> None:
    """At each experience it starts again from the given CLIP, with all data so far."""
    strategy = live(make(Joint, clip), data, "L0,1 L2,3")
    assert sorted(data.train.targets[strategy.rows].unique().tolist()) == [0, 1, 2, 3]
    assert strategy.start is not strategy.model.clip
    assert strategy.start.fingerprint() == clip.fingerprint()


def test_joint_training_forgets_as_if_the_class_had_never_been(clip: Clip, data: ImageData) -> None:
    """By the same shuffle it is the tower trained on the rest alone, up to rounding in AdamW."""
    strategy = make(Joint, clip)
    learn, forget = stream(data, "L0-3 F1").train_stream
    strategy.train(learn)
    before = strategy.model.clip
    strategy.train(forget)
    assert sorted(data.train.targets[strategy.rows].unique().tolist()) == [0, 2, 3]
    other = make(Joint, clip)
    other.clock.train_exp_counter = 1  # the seed of the shuffle counts experiences
    live(other, data, "L0,2,3")
    images = data.test.images(data.rows("test", range(4)))
    was, now, twin = (
        model.encode_image(images) for model in (before, strategy.model.clip, other.model.clip)
    )
    assert (now - twin).norm(dim=1).max() < 0.01
    assert (now - was).norm(dim=1).mean() > 0.1


def test_joint_training_forgets_single_samples(clip: Clip, data: ImageData) -> None:
    rows = data.rows("train", [1])[:3].tolist()
    strategy = make(Joint, clip)
    for experience in stream(data, [Learn([0, 1]), Forget(samples=rows)]).train_stream:
        strategy.train(experience)
    assert len(strategy.rows) == 2 * 20 - 3
    assert not set(rows) & set(strategy.rows.tolist())


def test_joint_training_needs_data_that_can_be_read_again(clip: Clip) -> None:
    strategy = make(Joint, clip)
    strategy.experience = object()
    with pytest.raises(UserError, match="reads all earlier data"):
        strategy.make_train_dataloader()


def test_the_loader_gives_every_image_once_mirrored_or_not() -> None:
    images = torch.arange(7 * 2, dtype=torch.uint8).view(7, 1, 1, 2)
    loader = ImageLoader(images.__getitem__, torch.arange(7), 3, torch.Generator(), True)
    batches = list(loader)
    assert [len(b[1]) for b in batches] == [3, 3, 1] and len(loader) == 3
    seen, labels = torch.cat([b[0] for b in batches]), torch.cat([b[1] for b in batches])
    assert sorted(labels.tolist()) == list(range(7))
    straight = (seen == images[labels]).flatten(1).all(1)
    mirrored = (seen == images[labels].flip(-1)).flatten(1).all(1)
    assert (straight ^ mirrored).all() and straight.any() and mirrored.any()


@pytest.mark.parametrize("wrong", [{"blocks": 0}, {"lr": -1.0}, {"weight_decay": -1.0}], ids=str)
def test_impossible_numbers_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=r"finetune\."):
        FinetuneSettings(**wrong)
