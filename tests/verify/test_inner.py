from __future__ import annotations

import torch
from open_clip.model import CLIP, CustomTextCLIP

from clapforget import lab
from clapforget.verify import Subject
from clapforget.verify.inner import watch_last_block
from tests.verify.worlds import clip, material


def test_a_residual_tower_shows_the_mean_over_its_last_map() -> None:
    model = clip()
    images = lab.draw("test", range(5))
    with torch.no_grad(), watch_last_block(model) as left:
        features = model.encode_image(images, batch_size=3)
    visual, x = model.model.visual, model.preprocess(images)
    with torch.no_grad():
        for layer in (visual.stem, visual.layer1, visual.layer2, visual.layer3, visual.layer4):
            x = layer(x)
        pooled = visual.attnpool(x)
    assert [len(part) for part in left] == [3, 2]
    torch.testing.assert_close(torch.cat(left), x.mean((2, 3)))
    torch.testing.assert_close(features, torch.nn.functional.normalize(pooled, dim=-1))


def test_a_transformer_shows_its_first_token_and_the_mean_of_all(make_transformer) -> None:
    for kind in (CLIP, CustomTextCLIP):
        model = make_transformer(kind)
        seen: list[torch.Tensor] = []
        block = model.model.visual.transformer.resblocks[-1]
        handle = block.register_forward_hook(lambda m, args, out, seen=seen: seen.append(out))
        with torch.no_grad(), watch_last_block(model) as left:
            model.encode_image(lab.draw("test", range(4)))
        handle.remove()
        (out,) = seen
        assert torch.equal(left[0], torch.cat([out[:, 0], out.mean(1)], 1))


def test_nothing_is_left_hanging_and_nothing_passing_is_kept() -> None:
    model, part = clip(), material().test["forget"]
    watched = Subject(model)
    inner = watched.inner(part)
    assert inner is not None and len(inner) == len(part) and not inner.requires_grad
    assert not any(m._forward_hooks for m in model.model.modules())
    assert watched.with_clip(model)._inner == {}
    passing = watched.passing()
    passing.features(material().shots["retain"])
    assert list(watched._inner) == list(watched._features) == [part]


def test_a_tower_without_blocks_shows_nothing() -> None:
    model = clip().trainable_copy([])

    class Whole(torch.nn.Module):
        def __init__(self, inside: torch.nn.Module) -> None:
            super().__init__()
            self.inside = [inside]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inside[0](x)

    model.model.visual = Whole(model.model.visual)
    with torch.no_grad(), watch_last_block(model) as left:
        model.encode_image(lab.draw("test", range(3)))
    assert left == []
