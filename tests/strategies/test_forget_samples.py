"""Requests by sample and by pair, repeated requests, and classes known from pretraining alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from clapforget import Clip
from clapforget.errors import UserError
from clapforget.scenarios import ImageData, stream
from clapforget.strategies import ClapForget

MakeStrategy = Callable[..., ClapForget]


def ids_of(data: ImageData, label: int, n: int) -> list[int]:
    return data.rows("train", [label]).tolist()[:n]


def lived(strategy: ClapForget, data: ImageData, text: str) -> ClapForget:
    for experience in stream(data, text).train_stream:
        strategy.train(experience)
    return strategy


def text_of(ids: list[int]) -> str:
    return ",".join(map(str, ids))


@pytest.mark.parametrize("posterior", ["variational", "exact"])
def test_samples_go_and_their_class_and_clip_stay(
    posterior: str, clip: Clip, data: ImageData, make_strategy: MakeStrategy
) -> None:
    gone = ids_of(data, 1, 12)
    strategy = make_strategy(posterior=posterior, certify="quick")
    learn, forget, later = stream(data, f"L0-3 F@{text_of(gone)} L4,5").train_stream
    strategy.train(learn)
    assert set(strategy.memory.sample_ids.tolist()) & set(gone)
    for experience in (forget, later):
        strategy.train(experience)
        assert not set(strategy.memory.sample_ids.tolist()) & set(gone)
        assert len(strategy.memory_views) == len(strategy.memory)
        held = strategy.cache._features[(data.train.fingerprint, False)]
        assert not held[gone].any()
        assert held[ids_of(data, 1, 20)[12:]].any()
    assert strategy.model.clip.fingerprint() == clip.fingerprint()
    assert 1 in strategy.memory.classes
    rows = data.rows("test", [1])
    predicted = strategy.model.head.predict(strategy.cache(data.test, rows)).probs.argmax(1)
    assert (strategy.model.head.labels[predicted] == 1).float().mean() > 0.8
    certificate = strategy.certificates[0]
    assert certificate.forget_data["count"] == 12
    assert certificate.request == {
        "text": "F@ 12 samples",
        "classes": [],
        "names": [data.class_names[1]],
    }
    removed = certificate.forgetter.get("not_removed")
    assert (removed is None) == (posterior == "exact")
    if posterior == "exact":
        assert certificate.verdict == "forgotten"
        assert certificate.evidence_by_name("posterior_refit_difference").holds  # type: ignore[union-attr]
    else:
        assert "Not removed: the attention" in certificate.claim
        assert certificate.verdict == "inconclusive"  # 12 samples tell nothing


def test_the_exact_head_is_the_one_that_never_saw_the_samples(
    data: ImageData, make_strategy: MakeStrategy
) -> None:
    gone = text_of([*ids_of(data, 1, 12), *ids_of(data, 4, 20)])
    deleted = lived(make_strategy(posterior="exact"), data, f"L0-3 L4,5 F@{gone}")
    never = lived(
        make_strategy(posterior="exact"), data, f"F@{text_of(ids_of(data, 1, 12))} L0-3 L5"
    )
    v = strategy_features(deleted, data)
    both = [s.model.head.sums for s in (deleted, never)]
    kept = torch.tensor([0, 1, 2, 3, 5])
    columns = [s.model.head.columns(kept) for s in (deleted, never)]
    assert torch.equal(both[0].count[columns[0]], both[1].count[columns[1]])
    assert torch.allclose(both[0].first[columns[0]], both[1].first[columns[1]], atol=1e-9)
    assert torch.allclose(both[0].second, both[1].second, atol=1e-9)
    assert v.isfinite().all()


def strategy_features(strategy: ClapForget, data: ImageData) -> torch.Tensor:
    return strategy.model.head.predict(strategy.cache(data.test, torch.arange(50))).probs


def test_what_is_forgotten_already_changes_nothing_and_that_is_said(
    data: ImageData, make_strategy: MakeStrategy
) -> None:
    gone = ids_of(data, 1, 3)
    strategy = make_strategy(posterior="exact", certify="quick")
    text = f"L0-5 F@{text_of(gone)} F@{gone[0]} F2 F2"
    certificates = []
    for i, experience in enumerate(stream(data, text).train_stream):
        before = (strategy.model.clip.fingerprint(), strategy.model.head.state_dict())
        before[1].update({k: v.clone() for k, v in before[1].items()})
        strategy.train(experience)
        if i in (2, 4):
            assert strategy.model.clip.fingerprint() == before[0]
            for name, value in strategy.model.head.state_dict().items():
                assert torch.equal(value, before[1][name]), name
            assert strategy.last_forgetting is not None
            assert "forgotten before" in strategy.last_forgetting["nothing_to_do"]
            certificates.append(strategy.certificates[-1])
    assert len(strategy.certificates) == 4
    assert [c.forget_data["count"] for c in certificates] == [0, 0]
    assert all("Nothing was to be done" in c.text for c in certificates)
    assert certificates[1].rule.startswith("2:")  # the model before shows nothing any more
    answers = certificates[1].evidence_by_name("answers")
    assert answers is not None and answers.value == answers.before and answers.holds


def test_a_class_known_from_pretraining_alone_is_forgotten_and_can_be_learned(
    data: ImageData, make_strategy: MakeStrategy
) -> None:
    known = min((data.known or set()) - set(range(10)))
    strategy = make_strategy(posterior="exact")
    _, forget, learn = stream(data, f"L0-3 F{known} L{known}").train_stream
    lived(strategy, data, "L0-3")
    rows = data.rows("test", [known])

    def by_clip() -> float:
        text = strategy.model.clip.class_features(data.class_names, data.templates)
        return float(((strategy.cache(data.test, rows) @ text.T).argmax(1) == known).float().mean())

    assert by_clip() > 0.9
    strategy.train(forget)
    assert by_clip() == 0
    assert strategy.last_forgetting is not None
    assert strategy.last_forgetting["never_learned"] == [known]
    assert known not in strategy.model.head.labels.tolist()
    strategy.train(learn)
    assert known in strategy.memory.classes
    head = strategy.model.head
    answers = head.labels[head.predict(strategy.cache(data.test, rows)).probs.argmax(1)]
    assert (answers == known).float().mean() > 0.8


def test_pairs_leave_clip_and_the_rest_stays(data: ImageData, make_strategy: MakeStrategy) -> None:
    phrase = f"red {data.class_names[0]}"
    strategy = make_strategy(posterior="exact", certify="quick")
    _, forget = stream(data, f'L0-3 F"{phrase}"').train_stream
    lived(strategy, data, "L0-3")
    ids = torch.tensor(list(forget.dataset.sample_id))
    captions = [c[0] for c in data.captions("train", ids)]  # type: ignore[misc]
    v = strategy.model.clip.encode_image(data.train.images(ids))

    def cosine() -> float:
        return float((v * strategy.model.clip.encode_text(captions)).sum(1).mean())

    before = cosine()
    strategy.train(forget)
    assert cosine() < before - 0.1
    assert strategy.certificates[-1].request["text"] == f'F"{phrase}"'
    assert not set(ids.tolist()) & set(strategy.memory.sample_ids.tolist())
    assert strategy.last_forgetting is not None
    assert strategy.last_forgetting["towers"] == ["text"]


def test_samples_in_clip_need_captions(data: ImageData, make_strategy: MakeStrategy) -> None:
    bare = replace(data, captions=None)
    strategy = make_strategy(posterior="exact", samples_in_clip=True)
    with pytest.raises(UserError, match="has no captions"):
        lived(strategy, bare, f"L0-3 F@{ids_of(data, 1, 1)[0]}")


@pytest.mark.parametrize("posterior", ["variational", "exact"])
def test_a_class_of_which_no_image_is_left_takes_none_of_others(
    posterior: str, data: ImageData, make_strategy: MakeStrategy
) -> None:
    """Its column would stand at the prior, with nothing behind it."""
    every = ids_of(data, 1, 1000)
    text = f"L0-3 F@{text_of(every[:3])} F@{text_of(every[3:])} L4"
    learn, first, rest, later = stream(data, text).train_stream
    strategy = make_strategy(posterior=posterior, certify=False)
    strategy.train(learn)
    strategy.train(first)
    assert "emptied" not in strategy.last_forgetting
    head = strategy.model.head
    assert not head.retired.any()
    kept = [0, 2, 3]
    before = weights_of(strategy, kept)
    strategy.train(rest)
    assert strategy.last_forgetting["emptied"] == [1]
    assert head.labels[head.retired].tolist() == [1]
    torch.testing.assert_close(weights_of(strategy, kept), before, atol=1e-4, rtol=1e-4)
    rows = data.rows("test", kept)
    answers = head.labels[head.probs(strategy.cache(data.test, rows)).argmax(1)]
    assert not (answers == 1).any()
    strategy.train(later)
    assert strategy.model.head.labels[strategy.model.head.retired].tolist() == [1]


def weights_of(strategy: ClapForget, labels: list[int]) -> torch.Tensor:
    """Mean class weights [n, d] of a trained head; nothing of one that is solved for."""
    head = strategy.model.head
    if not hasattr(head, "weights"):
        return torch.zeros(0)
    weights = head.weights()
    return (weights.x + weights.mu)[head.columns(labels)].detach()
