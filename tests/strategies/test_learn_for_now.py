"""CLPU's three kinds of request: learn for good, learn for now, forget."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch

from clapforget import Clip
from clapforget.errors import UserError
from clapforget.scenarios import ImageData, stream
from clapforget.strategies import ClapForget, UncertaintyBuffer

MakeStrategy = Callable[..., ClapForget]


def lived(strategy: ClapForget, data: ImageData, text: str) -> ClapForget:
    for experience in stream(data, text).train_stream:
        strategy.train(experience)
    return strategy


def answers(strategy: ClapForget, data: ImageData, labels: list[int]) -> torch.Tensor:
    head = strategy.model.head
    v = strategy.cache(data.test, data.rows("test", labels))
    return head.predict(v).probs[:, head.columns(labels)]


def same_memory(one: ClapForget, other: ClapForget) -> None:
    mine, others = one.memory.state_dict(), other.memory.state_dict()
    for name, value in mine.items():
        assert torch.equal(value, others[name]), name


def test_what_was_learned_for_now_is_taken_back_exactly(
    clip: Clip, data: ImageData, make_strategy: MakeStrategy
) -> None:
    """Classes 2 and 5 are new to CLIP; in between, another one is learned for good."""
    memory = partial(
        UncertaintyBuffer, 60, "coverage"
    )  # goes by features: others ask the posterior
    strategy = make_strategy(posterior="exact", certify=False, memory=memory())
    for text in ("L0,1", "L0,1 N2,5"):
        experience = stream(data, text).train_stream[-1]
        strategy.train(experience)
    assert answers(strategy, data, [2]).argmax(1).eq(0).all()
    head = strategy.model.head
    own = head.predict(strategy.cache(data.test, data.rows("test", [2]))).probs.argmax(1)
    assert (head.labels[own] == 2).float().mean() > 0.8
    assert set(strategy.memory.classes) == {0, 1}
    whole = stream(data, "L0,1 N2,5 L3 F2,5").train_stream
    strategy.train(whole[2])
    strategy.train(whole[3])
    never = make_strategy(posterior="exact", certify=False, memory=memory())
    lived(never, data, "L0,1 L3")
    same_memory(strategy, never)
    assert strategy.model.clip.fingerprint() == clip.fingerprint()
    columns = [s.model.head.columns([0, 1, 3]) for s in (strategy, never)]
    sums = [s.model.head.sums for s in (strategy, never)]
    assert torch.equal(sums[0].count[columns[0]], sums[1].count[columns[1]])
    assert torch.allclose(sums[0].first[columns[0]], sums[1].first[columns[1]], atol=1e-9)
    assert torch.allclose(sums[0].second, sums[1].second, atol=1e-9)
    assert strategy.last_forgetting is not None
    assert strategy.last_forgetting["taken_back"] == [2, 5]


def test_a_class_that_pretraining_knows_is_forgotten_by_clip_as_well(
    data: ImageData, make_strategy: MakeStrategy
) -> None:
    strategy = lived(make_strategy(posterior="exact", certify=False), data, "L0 N1,2 F1,2")
    text = strategy.model.clip.class_features(data.class_names, data.templates)
    v = strategy.cache(data.test, data.rows("test", [1]))
    assert not ((v @ text.T).argmax(1) == 1).any()
    assert strategy.last_forgetting is not None
    assert strategy.last_forgetting["taken_back"] == [2]
    assert strategy.last_forgetting["towers"] == ["text"]


def test_what_is_kept_for_good_after_all_counts_once(
    data: ImageData, make_strategy: MakeStrategy
) -> None:
    promoted = lived(make_strategy(posterior="exact"), data, "L0,1 N2 L2,3")
    at_once = lived(make_strategy(posterior="exact"), data, "L0,1 L2,3")
    labels = [0, 1, 2, 3]
    counts = [s.model.head.sums.count[s.model.head.columns(labels)] for s in (promoted, at_once)]
    assert torch.equal(*counts)
    assert set(promoted.memory.classes) == set(labels)
    both = [answers(s, data, labels) for s in (promoted, at_once)]
    assert torch.allclose(*both, atol=0.05)  # columns stand in another order, so noise differs


def test_a_head_that_cannot_take_back_exactly_refuses(
    data: ImageData, make_strategy: MakeStrategy
) -> None:
    with pytest.raises(UserError, match=r"cannot learn for now.*--strategy exact"):
        lived(make_strategy(), data, "L0,1 N2")
