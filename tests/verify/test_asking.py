"""Asked again and again: noise is taken out, and what is no noise is left alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from clapforget.seeding import generator_for
from clapforget.verify import Subject
from clapforget.verify.asking import settled_logits
from clapforget.verify.statistics import correlation
from tests.verify.worlds import FORGET, RETAIN, clip, material, subject

COLUMNS = [*FORGET, *RETAIN]
Noise = Callable[[Tensor, Tensor], Tensor]


def head(noise: Noise | None) -> Subject:
    """A head of class texts, with noise [n, 2] on its forgotten columns."""
    text = subject().names(material().names, material().templates)[COLUMNS]

    def answer(v: Tensor, images: Tensor) -> Tensor:
        logits = 30 * v @ text.T
        if noise is not None:
            logits[:, :2] += noise(v, images)
        return logits

    return Subject(clip(), answer, COLUMNS)


def by_place(v: Tensor, images: Tensor) -> Tensor:
    return 40 * torch.randn(len(v), 2, generator=generator_for(0, 3))


def by_content(v: Tensor, images: Tensor) -> Tensor:
    """The same for the same image, whatever its place."""
    seeds = [
        int.from_bytes(hashlib.sha256(x.numpy().tobytes()).digest()[:6], "big") for x in images
    ]
    return torch.cat([40 * torch.randn(1, 2, generator=generator_for(s)) for s in seeds])


def by_features(v: Tensor, images: Tensor) -> Tensor:
    seeds = [int.from_bytes(hashlib.sha256(x.numpy().tobytes()).digest()[:6], "big") for x in v]
    return torch.cat([40 * torch.randn(1, 2, generator=generator_for(s)) for s in seeds])


def by_call() -> Noise:
    rng = generator_for(5)
    return lambda v, images: 40 * torch.randn(len(v), 2, generator=rng)


def one_way(sign: float) -> Noise:
    rng = generator_for(6)
    return lambda v, images: sign * 60 * (1 + torch.randn(len(v), 2, generator=rng).abs())


@pytest.mark.parametrize(
    ("noise", "least"),
    [(by_place, 0.8), (by_content, 0.8), (by_features, 0.8), (by_call(), 0.8), (one_way(-1.0), 0.95),
     (one_way(1.0), 0.95)],
)  # fmt: skip
def test_noise_of_every_kind_is_taken_out(noise: Noise, least: float) -> None:
    m, noisy = material(), head(noise)
    part = m.test["retain"]
    clear = head(None).logits(part, m.names, m.templates)
    hidden = noisy.logits(part, m.names, m.templates)
    found = settled_logits(noisy, m, [part], seed=0)[part]
    assert (correlation(hidden, clear)[:2] < 0.5).all()
    assert (correlation(found, clear)[:2] > least).all()
    torch.testing.assert_close(found[:, 2:], hidden[:, 2:], atol=0, rtol=0)


def test_an_answer_to_the_image_is_left_as_it_is() -> None:
    m = material()
    for who in (subject(), head(None), head(lambda v, images: v.new_full((len(v), 2), -torch.inf))):
        settled = settled_logits(who, m, list(m.test.values()), seed=0)
        for part in m.test.values():
            assert torch.equal(settled[part], who.logits(part, m.names, m.templates))


def test_noise_on_kept_columns_alone_is_nobody_s_business() -> None:
    m, calls = material(), []

    def answer(v: Tensor, images: Tensor) -> Tensor:
        calls.append(len(v))
        logits = torch.randn(len(v), len(COLUMNS), generator=generator_for(len(calls)))
        logits[:, :2] = v[:, :2]
        return logits

    settled_logits(Subject(clip(), answer, COLUMNS), m, [m.test["forget"]], seed=0)
    assert len(calls) == 2


def test_parts_are_told_by_the_same_measure_and_noise_alone_finds_nobody() -> None:
    """A column that is nothing but noise, wider on some images: no part stands above another for it."""
    m = material()
    rng, parts = generator_for(8), [m.test["forget"], m.test["retain"]]

    def answer(v: Tensor, images: Tensor) -> Tensor:
        logits = torch.zeros(len(v), len(COLUMNS))
        logits[:, :2] = (1 + v[:, :1].abs()) * torch.randn(len(v), 2, generator=rng)
        return logits

    found = settled_logits(Subject(clip(), answer, COLUMNS), m, parts, seed=0)
    for part in parts:
        assert (
            found[part][:, :2].mean(0).abs() < 0.1
        ).all()  # the mean: the largest would be above 2


def test_noise_on_some_images_alone_is_taken_out_of_them() -> None:
    m = material()
    forget, retain = m.test["forget"], m.test["retain"]
    means = subject().features(forget).mean(0)
    rng = generator_for(9)

    def gated(v: Tensor, images: Tensor) -> Tensor:
        theirs = (v @ means > 0.5).float()[:, None]
        return theirs * 40 * torch.randn(len(v), 2, generator=rng)

    clear = head(None).logits(forget, m.names, m.templates)
    found = settled_logits(head(gated), m, [forget, retain], seed=0)
    assert (correlation(found[forget], clear)[:2] > 0.7).all()


def test_the_images_that_were_given_are_not_touched() -> None:
    m = material()
    part = m.test["forget"]
    before = part.images.clone()
    settled_logits(head(by_call()), m, [part], seed=0)
    assert torch.equal(part.images, before)
