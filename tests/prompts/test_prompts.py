"""Learned prompts: put where they belong, nothing else changed, gradients to them alone."""

from __future__ import annotations

from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clapforget import Clip, UserError, load_clip
from clapforget.prompts import PROMPTS, Prompt, PromptSettings, make_prompt
from clapforget.prompts.insertion import encode_prompted, in_images, in_text, prompt_tokens

NAMES = ["zorup", "sugak", "red star"]
AWAKE = torch.zeros(3, dtype=torch.bool)


@pytest.fixture(scope="module")
def vit() -> Clip:
    """An untrained small ViT model of open_clip, as ViT-B-32 is laid out."""
    torch.manual_seed(0)
    model = open_clip.CLIP(
        embed_dim=32,
        vision_cfg={"image_size": 16, "patch_size": 8, "width": 48, "layers": 3, "head_width": 16},
        text_cfg={"context_length": 20, "vocab_size": 49408, "width": 40, "heads": 2, "layers": 4},
    )
    return Clip(model.eval(), open_clip.SimpleTokenizer(context_length=20), "tiny-vit")


@pytest.fixture(scope="module")
def resnet() -> Clip:
    return load_clip("lab-tiny")


def make(clip: Clip, style: str, **settings: Any) -> Prompt:
    prompt = make_prompt(clip, PromptSettings(style=style, **settings), 1)
    assert prompt is not None
    prompt.bind(clip, NAMES)
    prompt.word(torch.zeros(len(NAMES), dtype=torch.bool))
    return prompt


def images(n: int = 5) -> Tensor:
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(2))


# ---- insertion ---------------------------------------------------------------------------------
def test_the_tokens_own_vectors_put_back_change_nothing(resnet: Clip) -> None:
    tokens = prompt_tokens(resnet, NAMES, 4)
    own = resnet.model.token_embedding(tokens[:1, 1:5])[0]
    expected = resnet.encode_text([f"X X X X {name}." for name in NAMES])
    torch.testing.assert_close(encode_prompted(resnet, tokens, [own]), expected)


def test_vectors_of_words_give_the_text_with_those_words(resnet: Clip) -> None:
    words = resnet.model.token_embedding(resnet.tokenize(["a picture of a"])[0, 1:5])
    tokens = prompt_tokens(resnet, NAMES, 4)
    expected = resnet.encode_text([f"a picture of a {name}." for name in NAMES])
    torch.testing.assert_close(encode_prompted(resnet, tokens, [words]), expected)


def test_after_the_block_the_model_is_as_before(vit: Clip) -> None:
    before = vit.encode_text(NAMES), vit.encode_image(images())
    with pytest.raises(RuntimeError), in_text(vit, [torch.zeros(2, 40)] * 3):
        raise RuntimeError
    with in_images(vit, [torch.ones(2, 48)] * 2):
        vit.encode_image(images())
    assert torch.equal(vit.encode_text(NAMES), before[0])
    assert torch.equal(vit.encode_image(images()), before[1])


def test_deep_text_prompts_are_the_layers_by_hand(vit: Clip) -> None:
    rng = torch.Generator().manual_seed(3)
    layers = [torch.randn(2, 40, generator=rng) for _ in range(3)]
    tokens, model = prompt_tokens(vit, NAMES, 2), vit.model
    x = model.token_embedding(tokens)
    x[:, 1:3] = layers[0]
    x = x + model.positional_embedding
    for number, block in enumerate(model.transformer.resblocks):
        if 0 < number < 3:
            x = x.clone()
            x[:, 1:3] = layers[number]
        x = block(x, attn_mask=model.attn_mask)
    x = model.ln_final(x)[torch.arange(3), tokens.argmax(1)] @ model.text_projection
    torch.testing.assert_close(encode_prompted(vit, tokens, layers), F.normalize(x, dim=-1))


def test_deep_image_prompts_are_the_layers_by_hand(vit: Clip) -> None:
    rng = torch.Generator().manual_seed(3)
    layers, visual = [torch.randn(2, 48, generator=rng) for _ in range(2)], vit.model.visual
    x = visual.conv1(vit.preprocess(images())).flatten(2).mT
    x = torch.cat([visual.class_embedding.expand(5, 1, -1), x], 1) + visual.positional_embedding
    x = visual.ln_pre(torch.cat([x, layers[0].expand(5, -1, -1)], 1))
    for number, block in enumerate(visual.transformer.resblocks):
        if number == 1:
            x = torch.cat([x[:, :-2], layers[1].expand(5, -1, -1)], 1)
        x = block(x)
    expected = F.normalize(visual.ln_post(x[:, 0]) @ visual.proj, dim=-1)
    with in_images(vit, layers):
        torch.testing.assert_close(vit.encode_image(images()), expected)


def test_a_prompt_without_room_is_refused(resnet: Clip) -> None:
    with pytest.raises(UserError, match=r"text tower has 20; set prompt.length"):
        make(resnet, "coop", length=17)


# ---- styles ------------------------------------------------------------------------------------
def test_hand_crafted_is_no_prompt(resnet: Clip) -> None:
    assert make_prompt(resnet, PromptSettings(), 0) is None
    with pytest.raises(UserError, match="did you mean coop"):
        make(resnet, "coops")
    assert PROMPTS.names() == ["attriclip", "coop", "maple"]


@pytest.mark.parametrize("style", ["coop", "attriclip", "maple"])
def test_gradients_reach_the_prompts_alone(style: str, vit: Clip) -> None:
    prompt = make(vit, style)
    v = prompt.encode_image(vit, images())
    cosine = prompt.similarity(v) if prompt.by_image else v @ prompt.texts.T
    (cosine[:, 0].sum() + prompt.penalty(v)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in prompt.parameters())
    assert not any(p.grad is not None for p in vit.parameters())


@pytest.mark.parametrize("style", ["coop", "maple"])
def test_a_retired_class_leaves_no_text(style: str, vit: Clip) -> None:
    prompt = make(vit, style)
    assert torch.allclose(prompt.texts.norm(dim=1), torch.ones(3))
    prompt.word(torch.tensor([False, True, False]))
    assert prompt.texts.norm(dim=1).round().tolist() == [1, 0, 1]


def test_an_image_is_worded_by_its_own_attributes(resnet: Clip) -> None:
    """One image at a time, by hand."""
    prompt: Any = make(resnet, "attriclip", length=3, top=2, bank=5)
    v = F.normalize(torch.randn(6, 128, generator=torch.Generator().manual_seed(4)), dim=-1)
    tokens, expected = prompt_tokens(resnet, NAMES, 6), []
    for one in v:
        best = F.cosine_similarity(one[None], prompt.keys).topk(2).indices.sort().values
        texts = encode_prompted(resnet, tokens, [prompt.prompts[best].flatten(0, 1)])
        expected.append(texts @ one)
    assert len(prompt.chosen(v).unique(dim=0)) > 1
    torch.testing.assert_close(prompt.similarity(v), torch.stack(expected))
    with torch.no_grad():
        torch.testing.assert_close(prompt.similarity(v), torch.stack(expected))


def test_what_was_worded_is_out_of_date_after_a_step(resnet: Clip) -> None:
    prompt: Any = make(resnet, "attriclip", length=3)
    v = F.normalize(torch.ones(1, 128), dim=-1)
    with torch.no_grad():
        before = prompt.similarity(v)
        prompt.prompts *= torch.linspace(-3, 3, 64)
        prompt.word(AWAKE)
        assert not torch.allclose(prompt.similarity(v), before)


def test_the_penalty_pulls_chosen_keys_to_the_image(resnet: Clip) -> None:
    prompt: Any = make(resnet, "attriclip", length=3, orthogonality_weight=0.0, key_weight=1.0)
    v = F.normalize(torch.ones(2, 128), dim=-1)
    best = F.cosine_similarity(v[:1], prompt.keys).topk(3).values
    torch.testing.assert_close(prompt.penalty(v), (1 - best).mean())


def test_maple_starts_from_words_and_keeps_depth_to_both_towers(vit: Clip) -> None:
    prompt: Any = make(vit, "maple")
    assert prompt.prompts.shape == (3, 2, 40) and prompt.weight.shape == (3, 48, 40)
    words = vit.model.token_embedding(vit.tokenize(["a photo"])[0, 1:3])
    torch.testing.assert_close(prompt.prompts[0], words)
    assert not torch.allclose(prompt.encode_image(vit, images()), vit.encode_image(images()))


def test_maple_refuses_a_tower_without_tokens(resnet: Clip) -> None:
    with pytest.raises(UserError, match="no vision transformer"):
        make(resnet, "maple")


def test_published_length_shrinks_in_a_short_tower(resnet: Clip) -> None:
    assert make(resnet, "coop").length == 12
    assert make(resnet, "attriclip").length == 4


@pytest.mark.parametrize(
    "wrong", [{"length": -1}, {"top": 11}, {"bank": 0}, {"depth": 0}, {"lr": -1.0}], ids=str
)
def test_impossible_numbers_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"prompt\."):
        PromptSettings(**wrong)
