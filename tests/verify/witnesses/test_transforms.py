"""Images transformed in ways that a list names: by bare CLIP, and by a head."""

from __future__ import annotations

import pytest
import torch

from clapforget.verify import WITNESSES, Subject
from clapforget.verify.witnesses.transforms import TRANSFORMS
from tests.verify.worlds import FORGET, RETAIN, clip, material, subject


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("size", [(32, 32), (33, 40)])
def test_transforms_keep_shape_and_range(name: str, size: tuple[int, int]) -> None:
    x = torch.nn.functional.interpolate(material().test["forget"].unit, size)
    before = x.clone()
    y = TRANSFORMS[name](x)
    assert y.shape == x.shape
    assert y.min() >= 0
    assert y.max() <= 1
    assert not torch.equal(x, y)
    assert torch.equal(x, before), "a change works on a copy"


def test_by_hand() -> None:
    ramp = torch.linspace(0, 1, 64).view(1, 1, 8, 8).repeat(1, 3, 1, 1)
    coarse = TRANSFORMS["pixelated"](ramp)
    assert torch.allclose(coarse[0, 0, :4, :4], ramp[0, 0, :4, :4].mean())  # a quarter of 8 is 2 × 2
    assert len(coarse.unique()) == 4
    assert set(TRANSFORMS["posterised"](ramp).unique().tolist()) == {0.0, 1.0}
    assert torch.equal(TRANSFORMS["inverted"](ramp), 1 - ramp)
    small = TRANSFORMS["shrunk"](ramp)
    assert (small[..., :2, :] == 0.5).all() and (small[..., -2:] == 0.5).all()
    assert small[0, 0, 2:6, 2:6].mean() == pytest.approx(0.5, abs=0.01) and small[0, 0, 2, 2] < 0.2
    middle = TRANSFORMS["the middle"](ramp)
    assert middle.min() >= ramp[0, 0, 2, 2] and middle.max() <= ramp[0, 0, 5, 5]


@pytest.mark.parametrize("name", ["posterised", "grey"])
def test_a_head_that_knows_the_class_under_a_transform_is_seen(name: str) -> None:
    """It answers by the text where an image is so transformed, and lowers its columns else."""
    columns = [*FORGET, *RETAIN]
    text = subject().names(material().names, material().templates)[columns]
    change = TRANSFORMS[name]

    def answer(v: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        x = images.float() / 255 if images.dtype == torch.uint8 else images
        so = (change(x) - x).abs().amax((1, 2, 3)) < 1e-3
        logits = 30 * v @ text.T
        logits[:, : len(FORGET)] -= 60.0 * ~so[:, None]
        return logits

    found = {r.name: r for r in WITNESSES.get("transforms")(Subject(clip(), answer, columns), material(), 0)}
    assert list(found) == ["transforms_best", "transforms_best_answered"]
    seen = found["transforms_best_answered"]
    plain = Subject(clip(), answer, columns)
    assert not (plain.logits(material().test["forget"], [], []).argmax(1) < len(FORGET)).any()
    assert seen.forget.mean() > 0.2 and seen.role == "accuses"  # as many as the text finds so
    assert seen.unseen is not None and seen.unseen.mean() < seen.forget.mean() / 2
