from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.transformer import Transformer

from clapforget import lab
from clapforget.clip import Clip
from clapforget.towers import blocks_owner, one_query, text_length

TEXTS = ["a dosal", "one small red nosut on a navy background", ""]


def whole(clip: Clip, tokens: torch.Tensor) -> torch.Tensor:
    return F.normalize(clip.model.encode_text(tokens), dim=-1)


def lengths(clip: Clip, tokens: torch.Tensor) -> list[int]:
    """How many tokens the text tower's blocks see."""
    seen: list[int] = []
    block = clip.text_tower.transformer.resblocks[0]
    handle = block.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    clip.encode_tokens(tokens)
    handle.remove()
    return seen


@pytest.mark.parametrize("kind", [CLIP, CustomTextCLIP])
def test_texts_are_run_to_their_longest_end_with_the_features_and_gradients_of_the_whole(
    make_transformer, kind
) -> None:
    clip = make_transformer(kind)
    tokens = torch.randint(1, 20, (5, 24), generator=torch.Generator().manual_seed(0))
    for row, end in enumerate((3, 9, 5, 9, 2)):
        tokens[row, end], tokens[row, end + 1 :] = 63, 0
    assert lengths(clip, tokens) == [10] and text_length(clip.model, tokens) == 10
    names = clip.parameter_names("text")
    now = clip.trainable_copy(names)
    outs = now.encode_tokens(tokens), whole(now, tokens)
    assert (outs[0] - outs[1]).abs().max() < 1e-5
    weights = torch.randn(outs[0].shape, generator=torch.Generator().manual_seed(2))
    parameters = [now.model.get_parameter(name) for name in names]
    both = [torch.autograd.grad((out * weights).sum(), parameters) for out in outs]
    for name, a, b in zip(names, *both):
        assert (a - b).norm() <= 1e-4 * b.norm().clamp_min(1e-6), name


def test_the_built_in_model_is_open_clips(lab_clip: Clip) -> None:
    tokens = lab_clip.tokenize(TEXTS)
    assert lengths(lab_clip, tokens) == [int(tokens.argmax(1).max()) + 1] < [tokens.shape[1]]
    with torch.no_grad():
        assert (lab_clip.encode_tokens(tokens) - whole(lab_clip, tokens)).abs().max() < 1e-6
    assert type(lab_clip.text_tower.transformer) is Transformer, "put back"


def test_whoever_hangs_something_on_the_blocks_is_run_whole(random_clip: Clip) -> None:
    """A hook, another forward or a subclass may look at every token."""
    clip = random_clip.trainable_copy([])
    tokens = clip.tokenize(lab.captions("test", range(3)))
    transformer = clip.text_tower.transformer
    before = clip.encode_tokens(tokens)

    handle = transformer.register_forward_hook(lambda m, args, out: out.flip(-1))
    assert blocks_owner(clip.model, "text") is None
    assert torch.equal(clip.encode_tokens(tokens), whole(clip, tokens))
    assert (clip.encode_tokens(tokens) - before).abs().max() > 1e-3, "the hook counts"
    handle.remove()

    forward = transformer.forward
    transformer.forward = lambda *args, **kwargs: forward(*args, **kwargs).flip(-1)
    assert torch.equal(clip.encode_tokens(tokens), whole(clip, tokens))
    assert blocks_owner(clip.model, "text") is None
    del transformer.forward

    class Other(Transformer):
        pass

    transformer.__class__ = Other
    assert blocks_owner(clip.model, "text") is None
    transformer.__class__ = Transformer
    assert blocks_owner(clip.model, "text") is clip.text_tower
    torch.testing.assert_close(clip.encode_tokens(tokens), before)


def images_whole(clip: Clip, images: torch.Tensor) -> torch.Tensor:
    return F.normalize(clip.model.encode_image(clip.preprocess(images)), dim=-1)


@pytest.mark.parametrize("training", [False, True])
def test_attention_pooling_asked_once_has_the_features_and_gradients_of_the_whole(
    lab_clip: Clip, training
) -> None:
    images = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    names = [name for name in lab_clip.parameter_names("image") if "attnpool" in name]
    clip = lab_clip.trainable_copy(names)
    clip.model.double().train(training)
    pool, before = clip.model.visual.attnpool, set(clip.model.state_dict())
    outs = clip.encode_image(images), images_whole(clip, images)
    assert clip.model.visual.attnpool is pool and set(clip.model.state_dict()) == before, "put back"
    assert outs[0].dtype == torch.float64 and (outs[0] - outs[1]).abs().max() < 1e-12
    weights = torch.randn(outs[0].shape, generator=torch.Generator().manual_seed(2))
    parameters = [clip.model.get_parameter(name) for name in names]
    assert len(parameters) == 9
    both = [torch.autograd.grad((out * weights).sum(), parameters) for out in outs]
    for name, a, b in zip(names, *both):
        assert (a - b).norm() <= 1e-9 * b.norm() + 1e-12, name


def test_one_query_is_asked_of_the_pool_and_of_no_other(lab_clip: Clip) -> None:
    clip = lab_clip.trainable_copy([])
    pool = clip.model.visual.attnpool
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with one_query(clip.model):
        assert clip.model.visual.attnpool is not pool
    seen: list[torch.Tensor] = []
    handle = pool.register_forward_hook(lambda module, args, out: seen.append(out))
    clip.encode_image(images)
    assert len(seen) == 1, "a hook sees the pool run"
    handle.remove()
    pool.forward = lambda x: x.new_ones(len(x), clip.width)
    assert (clip.encode_image(images) == clip.width**-0.5).all(), "another forward is kept"


def test_an_encoding_that_fails_puts_the_pool_back(lab_clip: Clip) -> None:
    clip = lab_clip.trainable_copy([])
    pool = clip.model.visual.attnpool
    with pytest.raises(RuntimeError), one_query(clip.model):
        clip.model.encode_image(torch.zeros(1, 4, 32, 32))
    assert clip.model.visual.attnpool is pool
