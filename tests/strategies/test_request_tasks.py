from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from clapforget.scenarios import ImageData, stream
from clapforget.strategies import ClapForget
from clapforget.strategies.request_tasks import request_tasks

MakeStrategy = Callable[..., ClapForget]


def looked(strategy: ClapForget, data: ImageData, text: str) -> dict[str, dict[str, float | None]]:
    return request_tasks(strategy, stream(data, text).train_stream[1])


def test_a_class_is_looked_at_on_test_images(data: ImageData, make_strategy: MakeStrategy) -> None:
    found = looked(make_strategy(), data, "L0,1,3,4 F1")
    assert found["forget"]["zero_shot"] > 0.9  # type: ignore[operator]
    assert found["retain"]["zero_shot"] > 0.9  # type: ignore[operator]
    assert len(found["retain"]) == 9


def test_samples_are_looked_at_themselves_and_leave_nothing_in_the_cache(
    data: ImageData, make_strategy: MakeStrategy
) -> None:
    strategy = make_strategy()
    ids = data.rows("train", [1]).tolist()[:2]
    found = looked(strategy, data, f"L0,1 F@{ids[0]},{ids[1]}")
    assert found["forget"]["text_retrieval@5"] == 1  # two images have four texts
    key = (data.train.fingerprint, False)
    assert key not in strategy.cache._features


def test_pairs_are_looked_at_with_their_matching_captions_alone(
    data: ImageData, make_strategy: MakeStrategy
) -> None:
    strategy, phrase = make_strategy(), f"red {data.class_names[1]}"
    _, forget = stream(data, f'L0,1 F"{phrase}"').train_stream
    found = request_tasks(strategy, forget)
    rows = data.rows_with_caption("test", forget.request.matches)
    texts = {c for own in data.captions_of("test", rows) for c in own if phrase in c}
    assert found["forget"]["text_retrieval@10"] == 1 if len(texts) <= 10 else True
    assert torch.isin(data.test.targets[rows], torch.tensor([1])).all()


def test_data_without_captions_is_asked_by_class_names(
    data: ImageData, make_strategy: MakeStrategy
) -> None:
    from dataclasses import replace

    found = looked(make_strategy(), replace(data, captions=None), "L0,1,3 F1")
    assert found["forget"]["matching_auc"] is None  # one text for all
    assert found["retain"]["text_retrieval@5"] == pytest.approx(1)
