"""Learned prompts in a stream: what is trained, cached, forgotten and refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from avalanche.training.plugins import EvaluationPlugin

from clapforget import Clip, UserError
from clapforget.prompts import PromptSettings
from clapforget.scenarios import ImageData, stream
from clapforget.strategies import ClapForget, TrainSettings, UncertaintyBuffer
from clapforget.strategies.checkpoint import load_checkpoint, save_checkpoint
from clapforget.strategies.measure import snapshot
from clapforget.strategies.registry import StrategyOptions
from clapforget.unlearn import make_forgetter


@pytest.fixture(scope="module")
def vit() -> Clip:
    """An untrained small ViT model."""
    torch.manual_seed(0)
    model = open_clip.CLIP(
        embed_dim=32,
        vision_cfg={"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16},
        text_cfg={"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    )
    return Clip(model.eval(), open_clip.SimpleTokenizer(context_length=20), "tiny-vit")


def make(clip: Clip, style: str, posterior: str = "prompted", **options: Any) -> ClapForget:
    return ClapForget(
        clip, posterior=posterior, prompt=PromptSettings(style=style),
        memory=UncertaintyBuffer(40), training=TrainSettings(epochs=1),
        forgetter=make_forgetter("null-space"), evaluator=EvaluationPlugin(),
        **{"certify": "quick" if posterior == "variational" else False, **options},
    )  # fmt: skip


STYLES = [("coop", "prompted"), ("coop", "variational"), ("attriclip", "prompted"),
          ("attriclip", "variational"), ("maple", "prompted"), ("maple", "variational")]  # fmt: skip


@pytest.fixture(scope="module", params=STYLES, ids="-".join)
def lived(
    request: Any, clip: Clip, vit: Clip, data: ImageData, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Clip, ClapForget, Path]:
    base = vit if request.param[0] == "maple" else clip
    folder, strategy = tmp_path_factory.mktemp("prompts"), make(base, *request.param)
    for index, experience in enumerate(stream(data, "L0-3 F1 L4").train_stream):
        strategy.train(experience)
        save_checkpoint(folder / str(index + 1), strategy, base, index + 1)
    return request.param, base, strategy, folder


def test_prompts_learn_and_clip_does_not(lived: Any) -> None:
    param, base, strategy, _ = lived
    start = make(base, *param).model.prompt
    for mine, other in zip(strategy.model.prompt.parameters(), start.parameters(), strict=True):
        assert not torch.equal(mine, other)
    clip = strategy.model.clip
    assert clip.fingerprint("image") == base.fingerprint("image")
    assert not any(p.requires_grad or p.grad is not None for p in strategy.model.parameters())


def test_a_forgotten_class_has_no_worded_text(lived: Any) -> None:
    _, _, strategy, _ = lived
    head = strategy.model.head
    column = head.columns([1])
    assert head.retired[column].all()
    assert not head.prompt.texts[column].any() if len(head.prompt.texts) else True
    names = [strategy.model.class_names[1]]
    plain = strategy.model.clip.class_features(names, strategy.model.templates)
    torch.testing.assert_close(head.text[column], plain)
    v = strategy.memory_views[:, 0]
    assert not head.offset(v)[:, column].any()


def test_the_others_are_worded_by_the_tower_of_now(lived: Any) -> None:
    (style, _), base, strategy, _ = lived
    head, clip = strategy.model.head, strategy.model.clip
    assert clip.fingerprint("text") != base.fingerprint("text")
    if style != "attriclip":
        before = head.prompt.texts.clone()
        strategy.model.word()
        torch.testing.assert_close(head.prompt.texts, before)
        own = ~head.retired
        torch.testing.assert_close(head.text[own], before[own])


def test_the_memory_is_read_by_the_prompts_of_now(lived: Any, data: ImageData) -> None:
    (style, _), _, strategy, _ = lived
    images = strategy.memory.images
    torch.testing.assert_close(
        strategy.memory_views[:, 0], strategy.model.encode_image(images), atol=1e-5, rtol=1e-4
    )
    rows = strategy.memory.sample_ids
    bare = strategy.model.clip.encode_image(images)
    torch.testing.assert_close(strategy.cache(data.train, rows), bare, atol=1e-5, rtol=1e-4)
    assert torch.allclose(strategy.memory_views[:, 0], bare, atol=1e-4) is (style != "maple")


def test_it_goes_on_from_its_checkpoint(lived: Any, data: ImageData) -> None:
    param, base, strategy, folder = lived
    other = make(base, *param)
    assert load_checkpoint(folder / "2", other, base) == 2
    other.train(list(stream(data, "L0-3 F1 L4").train_stream)[2])
    mine, theirs = (snapshot(s, data, [0, 2, 3, 4]).strategy for s in (other, strategy))
    assert mine.keys() == theirs.keys()
    images = data.test.images(data.rows("test", [0, 4]))
    torch.testing.assert_close(
        other.model(images).exp(), strategy.model(images).exp(), atol=5e-3, rtol=0
    )


def test_without_steps_a_prompt_of_claps_words_changes_its_answer_alone(
    clip: Clip, data: ImageData
) -> None:
    """An image-conditioned prompt adds an offset; the posterior over weights is CLAP's."""
    strategy = make(clip, "attriclip", "variational")
    strategy.train(next(iter(stream(data, "L0-3").train_stream)))
    head, v = strategy.model.head, strategy.memory_views[:, 0]
    mean = head.logits(head.weights(), v)[0]
    said = head.predict(v).logits
    assert said is not None
    torch.testing.assert_close(said, mean + head.offset(v))
    assert head.offset(v).abs().mean() > 0.01


def test_what_takes_no_prompts_refuses_them(clip: Clip) -> None:
    for posterior in ("exact", "ranpac", "linear"):
        with pytest.raises(UserError, match="takes no learned prompts"):
            make(clip, "coop", posterior)
    with pytest.raises(UserError, match="no vision transformer"):
        make(clip, "maple")
    with pytest.raises(UserError, match="image"):
        ClapForget(
            clip, prompt=PromptSettings(style="attriclip"), training=TrainSettings(elbo="pyro")
        )
    with pytest.raises(UserError, match="unknown setting"):
        StrategyOptions.parse("exact", "cliperase", {"prompt.style": "coop"})


def test_a_prompted_head_needs_a_style(clip: Clip) -> None:
    with pytest.raises(UserError, match="needs learned prompts"):
        make(clip, "hand-crafted")
