from __future__ import annotations

import open_clip
import pytest
import torch
from PIL import Image

from clapforget import lab
from clapforget.clip import Clip, tower_of
from clapforget.errors import UserError
from clapforget.loading import build_clip


def state(clip: Clip) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in clip.model.state_dict().items()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


# ---- identity and protection ---------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "tower"),
    [("visual.conv1.weight", "image"), ("visual.layer1.0.bn1.running_mean", "image"),
     ("text_projection", "text"), ("token_embedding.weight", "text"), ("logit_scale", None)],
)  # fmt: skip
def test_one_weight_changes_the_fingerprint_of_its_tower_only(
    random_clip: Clip, name: str, tower: str | None
) -> None:
    before = {which: random_clip.fingerprint(which) for which in (None, "image", "text")}
    value = random_clip.model.state_dict()[name]
    old = value.flatten()[-1].item()
    value.view(-1)[-1] = old + 1e-3
    after = {which: random_clip.fingerprint(which) for which in (None, "image", "text")}
    assert {w for w in before if before[w] != after[w]} == {None, tower}
    value.view(-1)[-1] = old
    assert random_clip.fingerprint() == before[None]


def test_fingerprints_tell_where_a_value_stands() -> None:
    clip = build_clip("lab-tiny", seed=0)
    before = clip.fingerprint("text")
    with torch.no_grad():
        weight = clip.model.text_projection
        weight.copy_(weight.flip(0))
    assert clip.fingerprint("text") != before


def test_seeds_make_models_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(7)
    wanted = torch.rand(3)
    torch.manual_seed(7)
    first = build_clip("lab-tiny", seed=1)
    assert torch.equal(torch.rand(3), wanted)
    assert build_clip("lab-tiny", seed=1).fingerprint() == first.fingerprint()
    assert build_clip("lab-tiny", seed=2).fingerprint() != first.fingerprint()


def test_every_parameter_belongs_to_one_tower_or_is_the_scale(random_clip: Clip) -> None:
    image, text = random_clip.parameter_names("image"), random_clip.parameter_names("text")
    assert set(random_clip.parameter_names()) == {*image, *text, "logit_scale"}
    assert not set(image) & set(text)
    assert [tower_of(n) for n in ("visual.x", "logit_bias", "transformer.y")] == [
        "image", None, "text",
    ]  # fmt: skip


def test_train_stays_in_eval_mode(random_clip: Clip) -> None:
    for clip in (random_clip, random_clip.trainable_copy()):
        assert clip.train() is clip
        assert not any(module.training for module in clip.modules())
    before = state(random_clip)
    random_clip.train()
    random_clip.encode_image(lab.draw("train", range(4)))
    assert same(before, state(random_clip)), "batch statistics moved"


def test_a_trainable_copy_leaves_the_original_alone(random_clip: Clip) -> None:
    before = state(random_clip)
    copy = random_clip.trainable_copy()
    assert all(p.requires_grad for p in copy.model.parameters())
    assert not any(p.requires_grad for p in random_clip.model.parameters())
    assert copy.tokenizer is random_clip.tokenizer
    v, t = copy.encode_image(lab.draw("train", range(4))), copy.encode_text(["a dosal"] * 4)
    (v * t).sum().backward()
    torch.optim.SGD(copy.model.parameters(), lr=1.0).step()
    assert copy.fingerprint("image") != random_clip.fingerprint("image")
    assert copy.fingerprint("text") != random_clip.fingerprint("text")
    assert same(before, state(random_clip))


def test_a_trainable_copy_trains_the_named_parameters_only(random_clip: Clip) -> None:
    names = random_clip.parameter_names("text")
    copy = random_clip.trainable_copy(names)
    assert [n for n, p in copy.model.named_parameters() if p.requires_grad] == names
    assert not any(p.requires_grad for p in random_clip.trainable_copy([]).model.parameters())


# ---- encoding ------------------------------------------------------------------------------
def test_features_are_open_clips_of_unit_norm(lab_clip: Clip) -> None:
    images, texts = lab.draw("test", range(5)), ["a dosal", "one red nosut", ""]
    x = (images / 255 - lab_clip.mean) / lab_clip.std
    with torch.no_grad():
        v = lab_clip.model.encode_image(x, normalize=True)
        t = lab_clip.model.encode_text(lab_clip.tokenizer(texts), normalize=True)
    torch.testing.assert_close(lab_clip.encode_image(images), v)
    torch.testing.assert_close(lab_clip.encode_text(texts), t)
    assert v.shape[1] == t.shape[1] == lab_clip.width
    torch.testing.assert_close(lab_clip.encode_image(images).norm(dim=1), torch.ones(5))
    torch.testing.assert_close(lab_clip.encode_text(texts).norm(dim=1), torch.ones(3))


def test_bytes_and_fractions_are_the_same_image(lab_clip: Clip) -> None:
    images = lab.draw("test", range(5))
    torch.testing.assert_close(
        lab_clip.encode_image(images), lab_clip.encode_image(images.float() / 255)
    )


def test_batches_are_a_matter_of_speed(lab_clip: Clip) -> None:
    images, texts = lab.draw("test", range(7)), lab.captions("test", range(7))
    torch.testing.assert_close(
        lab_clip.encode_image(images, batch_size=3), lab_clip.encode_image(images)
    )
    tokens = lab_clip.tokenize(texts)
    torch.testing.assert_close(
        lab_clip.encode_tokens(tokens, batch_size=2), lab_clip.encode_text(texts)
    )
    assert lab_clip.encode_image(images[:0]).shape == (0, lab_clip.width)
    assert lab_clip.encode_text(texts[:1])[:0].shape == lab_clip.encode_tokens(tokens[:0]).shape


def test_class_features_are_the_mean_over_templates(lab_clip: Clip) -> None:
    names, templates = ["dosal", "nosut"], ["a {}", "one {}", "we see a {}"]
    e = lab_clip.encode_names(names, templates)
    assert e.shape == (2, 3, lab_clip.width)
    torch.testing.assert_close(e[1, 2], lab_clip.encode_text(["we see a nosut"])[0])
    t = lab_clip.class_features(names, templates)
    mean = sum(lab_clip.encode_text([w.format("dosal")])[0] for w in templates)
    torch.testing.assert_close(t[0], mean / mean.norm())


def open_clips(clip: Clip, images: torch.Tensor) -> torch.Tensor:
    """open_clip's own evaluation transform, on Pillow images."""
    config = clip.model.visual.preprocess_cfg
    names = ("mean", "std", "interpolation", "resize_mode", "fill_color")
    transform = open_clip.image_transform(
        config["size"], is_train=False, **{name: config[name] for name in names}
    )
    pictures = [Image.fromarray(i.permute(1, 2, 0).numpy()) for i in images]
    return torch.stack([transform(p) for p in pictures])


def smooth(height: int, width: int) -> torch.Tensor:
    """Pictures without hard edges, where two resamplers must agree."""
    y, x = torch.meshgrid(torch.linspace(0, 3, height), torch.linspace(0, 3, width), indexing="ij")
    waves = torch.stack([torch.sin(x + k) * torch.cos(y * (k + 1) / 2) for k in range(3)])
    return ((waves / 2 + 0.5) * 255).to(torch.uint8)[None]


def test_preprocessing_of_images_of_the_models_size_is_open_clips(lab_clip: Clip) -> None:
    images = lab.draw("test", range(6))
    torch.testing.assert_close(
        lab_clip.preprocess(images), open_clips(lab_clip, images), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("size", [(64, 64), (16, 16), (45, 45), (48, 64), (96, 64), (50, 33)])
def test_resizing_is_open_clips_within_a_few_grey_levels(lab_clip: Clip, size) -> None:
    images = smooth(*size)
    ours, theirs = lab_clip.preprocess(images), open_clips(lab_clip, images)
    assert ours.shape == theirs.shape == (1, 3, 32, 32)
    grey = (ours - theirs).abs() * lab_clip.std * 255
    assert grey.mean() < 1.5
    assert grey.max() < 8


@pytest.mark.parametrize("size", [(48, 64), (96, 64)])
def test_a_model_that_squashes_its_images_is_given_squashed_ones(random_clip: Clip, size) -> None:
    model = random_clip.model  # SigLIP and its kin: no crop, another mean, another filter
    model.visual.preprocess_cfg |= {
        "resize_mode": "squash", "interpolation": "bilinear",
        "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.5, 0.5),
    }  # fmt: skip
    clip = Clip(model, random_clip.tokenizer, "lab-tiny")
    ours, theirs = clip.preprocess(smooth(*size)), open_clips(clip, smooth(*size))
    grey = (ours - theirs).abs() * clip.std * 255
    assert grey.mean() < 1.5
    assert grey.max() < 8


def test_fine_grain_is_averaged_away_and_not_aliased(lab_clip: Clip) -> None:
    images = torch.randint(256, (1, 3, 128, 128), generator=torch.Generator().manual_seed(0))
    images = images.to(torch.uint8)
    ours, theirs = lab_clip.preprocess(images), open_clips(lab_clip, images)
    assert ((ours - theirs).abs() * lab_clip.std * 255).max() < 4


def test_resizing_keeps_pixels_in_range(lab_clip: Clip) -> None:
    hard = torch.zeros(1, 3, 20, 20)
    hard[..., ::2, :] = 1  # bicubic overshoots at such edges
    pixels = lab_clip.preprocess(hard) * lab_clip.std + lab_clip.mean
    assert pixels.min() >= -1e-6 and pixels.max() <= 1 + 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [(32, 32), (48, 40)], ids=["own-size", "other-size"])
def test_half_precision_reads_images_of_any_size(
    random_clip: Clip, dtype: torch.dtype, size: tuple[int, int]
) -> None:
    images = torch.rand(3, 3, *size, generator=torch.Generator().manual_seed(0))
    exact = random_clip.preprocess(images)
    half = Clip(random_clip.model.to(dtype), random_clip.tokenizer, "half")
    pixels = half.preprocess(images)
    assert pixels.dtype == dtype
    torch.testing.assert_close(pixels.float(), exact, atol=0.05, rtol=0.01)
    for given in (images, images.to(dtype), (images * 255).to(torch.uint8)):
        features = half.encode_image(given)
        assert features.dtype == dtype
        assert features.isfinite().all()


def test_a_model_is_taken_out_of_what_distributes_it(random_clip: Clip) -> None:
    wrapped = torch.nn.DataParallel(torch.nn.DataParallel(random_clip.model))
    clip = Clip(wrapped, random_clip.tokenizer, "wrapped")
    assert clip.model is random_clip.model
    assert clip.fingerprint() == random_clip.fingerprint()


def test_what_is_no_clip_is_refused_in_a_line(random_clip: Clip) -> None:
    for other in (torch.nn.Linear(2, 2), torch.nn.DataParallel(torch.nn.Linear(2, 2))):
        with pytest.raises(UserError, match="no image tower"):
            Clip(other, random_clip.tokenizer, "other")


def test_the_given_model_itself_is_frozen_as_documented(random_clip: Clip) -> None:
    model = random_clip.model.train().requires_grad_(True)
    Clip(model, random_clip.tokenizer, "mine")
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert Clip.__init__.__doc__ is not None
    assert "copy.deepcopy" in Clip.__init__.__doc__
