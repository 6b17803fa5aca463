from __future__ import annotations

import pytest
import torch
from open_clip.model import CLIP, CustomTextCLIP

from clapforget import lab
from clapforget.clip import Clip, tower_of
from clapforget.prefix import Budget, Prefix, blocks_before
from clapforget.unlearn.parameters import last_blocks, trainable_copy

_TEXTS = ["a red circle", "a small blue star on a navy background", "zorup"]


def inputs(clip: Clip, tower: str) -> torch.Tensor:
    return lab.draw("train", range(9)) if tower == "image" else clip.tokenize(_TEXTS * 3)


def whole(clip: Clip, tower: str, x: torch.Tensor) -> torch.Tensor:
    """Unit features of a tower, as open_clip works them out."""
    if tower == "text":
        return clip.model.encode_text(x, normalize=True)
    return clip.model.encode_image(clip.preprocess(x), normalize=True)


def moved(clip: Clip, names: list[str]) -> Clip:
    other = clip.trainable_copy(names)
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name in names:
            parameter = other.model.get_parameter(name)
            parameter += 0.1 * torch.randn(parameter.shape, generator=rng)
    return other


@pytest.mark.parametrize("kind", [CLIP, CustomTextCLIP])
@pytest.mark.parametrize("tower", ["image", "text"])
@pytest.mark.parametrize("blocks", [1, 2, 3])
@pytest.mark.parametrize("megabytes", [1024, 0.02, 0])
def test_features_and_gradients_are_those_of_the_whole_tower(
    make_transformer, kind, tower, blocks, megabytes
) -> None:
    clip = make_transformer(kind)
    names = [n for n in last_blocks(clip, tower, blocks) if tower_of(n) == tower]
    x = inputs(clip, tower)
    prefix = Prefix(clip, tower, x, names, Budget(megabytes))
    assert prefix.skipped == (4 if tower == "image" else 3) - blocks
    now = moved(clip, names)
    rows = torch.tensor([8, 0, 3, 3])
    found, wanted = prefix(now, rows), whole(now, tower, x[rows])
    assert (found - wanted).abs().max() < 1e-5
    assert (prefix.reference - whole(clip, tower, x)).abs().max() < 1e-5
    assert (found - prefix.reference[rows]).abs().max() > 1e-2, "nothing moved"
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(2))
    parameters = [now.model.get_parameter(name) for name in names]
    both = [torch.autograd.grad((out * weights).sum(), parameters) for out in (found, wanted)]
    for name, a, b in zip(names, *both):
        assert (a - b).norm() <= 1e-4 * b.norm().clamp_min(1e-6), name


def test_activations_are_computed_once_and_the_blocks_before_never_run_again(
    make_transformer,
) -> None:
    clip = make_transformer()
    ran: list[int] = []
    clip.model.visual.transformer.resblocks[0].register_forward_pre_hook(
        lambda _, args: ran.append(len(args[0]))
    )
    prefix = Prefix(clip, "image", inputs(clip, "image"), last_blocks(clip, "image", 2))
    ran.clear()
    for _ in range(3):
        prefix(clip, torch.arange(5))
    assert prefix.reference.shape == (9, 32) and ran == [9]


def test_what_finds_no_room_is_computed_again(make_transformer) -> None:
    clip = make_transformer()
    row = 17 * 64 * 4
    prefix = Prefix(
        clip, "image", inputs(clip, "image"), ["visual.proj"], Budget(4.5 * row / 2**20)
    )
    assert (prefix(clip) - clip.encode_image(prefix.inputs)).abs().max() < 1e-5
    assert len(prefix._kept) == 4
    budget = Budget(10 / 2**20)
    assert [budget.take(3, 4), budget.take(3, 4), budget.take(1, 2)] == [2, 0, 1]


@pytest.mark.parametrize(
    ("tower", "names", "skipped"),
    [
        ("image", ["visual.proj"], 4),
        ("image", ["visual.ln_post.weight", "visual.transformer.resblocks.2.ln_1.bias"], 2),
        ("image", ["visual.conv1.weight", "visual.proj"], 0),
        ("image", ["visual.ln_pre.weight"], 0),
        ("text", ["text_projection"], 3),
        ("text", ["ln_final.bias", "visual.conv1.weight"], 3),
        ("text", ["positional_embedding"], 0),
        ("text", ["token_embedding.weight"], 0),
        ("text", ["transformer.resblocks.1.mlp.c_fc.weight"], 1),
    ],
)
def test_the_cut_is_before_the_first_that_may_change(
    make_transformer, tower, names, skipped
) -> None:
    assert blocks_before(make_transformer(), tower, names) == skipped


def test_low_rank_names_are_found_and_other_layouts_are_computed_whole(
    make_transformer, lab_clip
) -> None:
    clip = make_transformer()
    _, names = trainable_copy(clip, "image-lora", 1, 2, torch.Generator())
    assert blocks_before(clip, "image", names) == 0
    late = [n for n in names if "resblocks.3" in n or "parametrizations.proj" in n]
    assert len(late) > 2 and blocks_before(clip, "image", late) == 3
    x = lab.draw("train", range(4))
    residual = Prefix(lab_clip, "image", x, last_blocks(lab_clip, "image", 1))
    assert residual.skipped == 0 and not residual.frozen
    assert torch.equal(residual(lab_clip), lab_clip.encode_image(x))


def test_a_frozen_tower_and_no_inputs(make_transformer) -> None:
    clip = make_transformer()
    frozen = Prefix(clip, "text", inputs(clip, "text"), ["visual.proj"])
    assert frozen.frozen and torch.equal(frozen(moved(clip, ["text_projection"])), frozen.reference)
    empty = Prefix(clip, "text", torch.zeros(0, 1).long(), ["text_projection"])
    assert empty(clip).shape == empty.reference.shape == (0, 32)


def test_texts_are_run_up_to_the_longest_end_only_where_later_tokens_cannot_matter(
    make_transformer,
) -> None:
    clip = make_transformer()
    x = inputs(clip, "text")
    end = int(x.argmax(-1).max()) + 1
    assert end < 24
    lengths = {}
    towers = {"causal": {}, "free": {"no_causal_mask": True}, "last": {"pool_type": "last"}}
    for name, options in towers.items():
        clip = make_transformer(CustomTextCLIP, **options)
        prefix = Prefix(clip, "text", x, ["text.text_projection"])
        lengths[name] = prefix._kept.shape[1]
        assert (prefix(clip) - whole(clip, "text", x)).abs().max() < 1e-5
    assert lengths == {"causal": end, "free": 24, "last": 24}
