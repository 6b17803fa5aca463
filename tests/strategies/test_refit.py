"""The exact posterior in a stream: learned, forgotten, certified, resumed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from clapforget import Clip
from clapforget.posterior import packed
from clapforget.posterior.exact import ExactSettings
from clapforget.scenarios import ImageData, stream
from clapforget.strategies import ClapForget
from clapforget.strategies.certify import Certifier
from clapforget.strategies.checkpoint import load_checkpoint, save_checkpoint
from clapforget.unlearn import Forgetter, make_forgetter

MakeStrategy = Callable[..., ClapForget]
SEQUENCE = "L0-3 L4,5 F1 L6"


def make(make_strategy: MakeStrategy, **options: Any) -> ClapForget:
    head = ExactSettings(**{"features": 30, **options.pop("head", {})})
    return make_strategy(posterior="exact", head=head, **options)


def steps(number: int) -> Forgetter:
    return make_forgetter(
        "cliperase", {"steps": number, "vocabulary_batch": 48, "retain_batch": 32}
    )


@pytest.fixture(scope="module")
def lived(
    data: ImageData, make_strategy: MakeStrategy, clip: Clip, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ClapForget, list[dict[str, Tensor]], Path]:  # fmt: skip
    """A strategy at the end of the stream, its head after every experience, and its checkpoints."""
    folder = tmp_path_factory.mktemp("exact")
    strategy, states = make(make_strategy, forgetter=steps(60), certify="quick"), []
    for index, experience in enumerate(stream(data, SEQUENCE).train_stream):
        strategy.train(experience)
        states.append(copy.deepcopy(strategy.model.head.state_dict()))
        save_checkpoint(folder / f"{index + 1}", strategy, clip, index + 1)
    return strategy, states, folder


def test_it_forgets_and_its_certificate_proves_the_head(lived: Any, data: ImageData) -> None:
    strategy = lived[0]
    (certificate,) = strategy.certificates
    assert certificate.evidence_by_name("answers").value == 0
    found = certificate.evidence_by_name("posterior_refit_difference")
    assert found.group == "head" and found.n == 100
    assert found.holds and 0 < found.value < 1e-6
    assert "proves the head alone" in certificate.text
    assert "towers" in certificate.text and "towers" in found.note
    assert strategy.model.head.nats()[strategy.model.head.columns([1])].abs().max() < 1e-9


def test_its_certificate_tells_a_head_that_still_holds_something(
    data: ImageData, make_strategy: MakeStrategy
) -> None:
    """One image's second moment is in the sums once more than will be subtracted."""
    strategy = make(make_strategy, forgetter=steps(2), certify=False)
    *learning, request = stream(data, "L0-3 F1").train_stream
    for experience in learning:
        strategy.train(experience)
    strategy.certifier = Certifier("quick")
    head = strategy.model.head
    phi = head.map(strategy.cache(data.train, data.rows("train", [1])[:1]))
    packed.add_products(head.sums.packed, phi, 1.0)
    strategy.train(request)
    (certificate,) = strategy.certificates
    found = certificate.evidence_by_name("posterior_refit_difference")
    assert found.holds is False and found.value > 1e-4
    assert "differs by" in certificate.text and "proves" not in certificate.text


def test_the_head_is_that_of_a_strategy_that_learned_the_rest(
    lived: Any, data: ImageData, make_strategy: MakeStrategy
) -> None:
    head = lived[0].model.head
    twin = make(make_strategy, certify=False)
    for experience in stream(data, "L0,2,3 L4,5 L6").train_stream:
        twin.train(experience)
    twin = twin.model.head
    mine = head.columns(twin.labels)
    twin.reword(head.templates[mine])  # the text tower has changed since
    v = lived[0].cache(data.test, data.rows("test", range(10)))
    for a, b in zip(head.parts, twin.parts, strict=True):
        assert a.rate == pytest.approx(b.rate, rel=1e-6, abs=1e-6 / b.spread)
        torch.testing.assert_close(a.posterior.mean[mine], b.posterior.mean, atol=1e-6, rtol=0)
        torch.testing.assert_close(a.posterior.factor, b.posterior.factor, atol=1e-6, rtol=1e-6)
    said, other = head.predict(v), twin.predict(v)
    torch.testing.assert_close(said.logits[:, mine], other.logits, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(said.energy, other.energy, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("done", [2, 3])
def test_it_goes_on_from_its_checkpoint(
    lived: Any, data: ImageData, make_strategy: MakeStrategy, clip: Clip, done: int
) -> None:
    """What it subtracts then are features encoded again."""
    _, states, folder = lived
    strategy = make(make_strategy, certify=False, forgetter=steps(2))
    assert load_checkpoint(folder / str(done), strategy, clip) == done
    for name, value in strategy.model.head.state_dict().items():
        assert torch.equal(value, states[done - 1][name]), name
    strategy.train(list(stream(data, SEQUENCE).train_stream)[done])
    for name, value in strategy.model.head.state_dict().items():
        if done == 3 or name != "templates":  # the forgetter's steps are fewer here
            torch.testing.assert_close(value, states[done][name], atol=1e-6, rtol=1e-6)


def test_a_changed_image_tower_is_told_as_drift(
    data: ImageData, make_strategy: MakeStrategy
) -> None:
    ssd = make_forgetter("ssd", {"train": "image"})
    strategy = make(make_strategy, forgetter=ssd, certify="quick")
    for experience in stream(data, "L0-3 F1 L4").train_stream:
        strategy.train(experience)
    assert strategy.last_forgetting["towers"] == ["image"]
    certificate = strategy.certificates[0]
    assert certificate.evidence_by_name("posterior_refit_difference") is None
    drift = certificate.evidence_by_name("posterior_drift")
    assert drift.n == 45 and 0 < drift.value < 1
    assert "proves the head" not in certificate.text


def test_other_heads_have_no_such_evidence(data: ImageData, make_strategy: MakeStrategy) -> None:
    strategy = make_strategy(posterior="nearest-mean", forgetter="nothing", certify="quick")
    for experience in stream(data, "L0-2 F1").train_stream:
        strategy.train(experience)
    names = {e.name for e in strategy.certificates[0].evidence}
    assert not names & {"posterior_refit_difference", "posterior_drift"}
