from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.transformer import Transformer

from clapforget import lab
from clapforget.clip import Clip
from clapforget.towers import blocks_owner, text_length

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
