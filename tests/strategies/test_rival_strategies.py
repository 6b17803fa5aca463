"""Rivals in a stream: each learns, forgets, is certified, and goes on from its checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from clapforget import Clip
from clapforget.scenarios import ImageData, stream
from clapforget.strategies import ClapForget
from clapforget.strategies.checkpoint import load_checkpoint, save_checkpoint
from clapforget.strategies.measure import snapshot
from clapforget.strategies.registry import STRATEGIES, StrategyOptions

SEQUENCE = "L0-3 L4,5 F1 L6-8"
QUICK = {"memory.size": 80, "requests.certify": "quick"}
RIVALS: dict[str, dict[str, Any]] = {
    "clip-adapter": {},
    "linear": {},
    "finetune": {},
    "joint": {},
    "clapforget": {"prompt.style": "coop", "training.epochs": 8},
    "loranpac": {"loranpac.features": 400, "loranpac.rank": 100},
}


def build(name: str, clip: Clip, seed: int = 0, **settings: Any) -> ClapForget:
    values = {**QUICK, **RIVALS[name], **{k.replace("__", "."): v for k, v in settings.items()}}
    options = StrategyOptions.parse(name, "null-space", values)  # in closed form: quick
    return STRATEGIES.get(name).build(clip, options, seed)


@pytest.fixture(scope="module", params=RIVALS)
def lived(
    request: Any, clip: Clip, data: ImageData, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, ClapForget, Path, list[Any]]:
    """A strategy at the end of its stream, its checkpoints, and what it answered on the way."""
    folder, seen = tmp_path_factory.mktemp(request.param), []
    strategy = build(request.param, clip)
    for index, experience in enumerate(stream(data, SEQUENCE).train_stream):
        strategy.train(experience)
        save_checkpoint(folder / str(index + 1), strategy, clip, index + 1)
        seen.append(snapshot(strategy, data, experience.learned_classes))
    return request.param, strategy, folder, seen


def test_it_learns_new_classes(lived: Any) -> None:
    """2, 5 and 8 are new: zero-shot CLIP cannot know them."""
    _, _, _, seen = lived
    assert seen[1].strategy[2] + seen[1].strategy[5] > 1.2
    assert seen[1].clip[2] + seen[1].clip[5] + seen[1].clip[8] < 0.6
    assert sum(seen[3].strategy[c] for c in (0, 2, 3, 4, 5, 6, 7, 8)) / 8 > 0.7


def test_it_forgets_and_stays_so(lived: Any) -> None:
    _, strategy, _, seen = lived
    assert seen[1].strategy[1] > 0.7
    chance = 1 / len(seen[2].strategy)  # a name without a meaning is still among the answers
    assert seen[2].strategy[1] < 2 * chance and seen[3].strategy[1] < 2 * chance
    assert sum(seen[2].strategy[c] for c in (0, 2, 3, 4, 5)) / 5 > 0.7
    assert len(strategy.certificates) == 1
    assert 1 not in strategy.memory.classes


def test_it_goes_on_from_its_checkpoint(lived: Any, clip: Clip, data: ImageData) -> None:
    """Up to rounding: features are encoded again in other batches."""
    name, strategy, folder, _ = lived
    other = build(name, clip)
    assert load_checkpoint(folder / "3", other, clip) == 3
    other.train(list(stream(data, SEQUENCE).train_stream)[3])
    assert torch.equal(other.memory.sample_ids, strategy.memory.sample_ids)
    images = data.test.images(data.rows("test", [0, 2, 5, 8]))
    torch.testing.assert_close(
        other.model(images).exp(), strategy.model(images).exp(), atol=2e-3, rtol=0
    )


def test_no_gradient_stays(lived: Any) -> None:
    _, strategy, _, _ = lived
    assert not any(p.grad is not None for p in strategy.model.parameters())


def test_the_clip_given_stays_as_it_was(lived: Any, clip: Clip) -> None:
    from clapforget import load_clip

    assert clip.fingerprint() == load_clip("lab-tiny").fingerprint()
