from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from clapforget.clip import Clip
from clapforget.errors import UserError
from clapforget.lab import captions, class_names, draw
from clapforget.retrieval import clip_tasks, gallery, matching, recall_at


def problem(seed: int, n: int = 9, m: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    positive = torch.rand(n, m, generator=rng) < 0.2
    positive[torch.arange(n), torch.randint(m, (n,), generator=rng)] = True
    return torch.randn(n, m, generator=rng), positive


def by_sorting(similarity: torch.Tensor, positive: torch.Tensor, k: int) -> float:
    top = similarity.numpy().argsort(1)[:, ::-1][:, :k]
    return float(np.take_along_axis(positive.numpy(), top, 1).any(1).mean())


@given(st.integers(0, 10_000), st.integers(1, 8))
def test_recall_is_what_sorting_gives(seed: int, k: int) -> None:
    similarity, positive = problem(seed)
    assert recall_at(similarity, positive, k) == pytest.approx(by_sorting(similarity, positive, k))


def test_recall_grows_with_k_and_ends_at_one() -> None:
    similarity, positive = problem(0)
    values = [recall_at(similarity, positive, k) for k in range(1, 8)]
    assert values == sorted(values)
    assert values[-1] == 1


def test_a_constant_similarity_earns_nothing_but_by_chance_of_place() -> None:
    positive = torch.eye(20, dtype=torch.bool)
    assert recall_at(torch.ones(20, 20), positive, 10) == 0
    assert matching(torch.ones(20, 20), positive) == {"matching_auc": 0.5, "matching_accuracy": 0.5}


def test_any_of_several_positives_counts() -> None:
    similarity = torch.tensor([[0.1, 0.9, 0.5]])
    assert recall_at(similarity, torch.tensor([[True, False, False]]), 2) == 0
    assert recall_at(similarity, torch.tensor([[True, False, True]]), 2) == 1
    with pytest.raises(UserError, match="recall at 0"):
        recall_at(similarity, similarity > 0, 0)


@given(st.integers(0, 10_000))
def test_matching_auc_is_sklearns(seed: int) -> None:
    similarity, positive = problem(seed)
    similarity = (similarity * 3).round()  # with ties
    found = matching(similarity, positive)
    expected = roc_auc_score(positive.flatten().numpy(), similarity.flatten().numpy())
    assert found["matching_auc"] == pytest.approx(expected)
    rows = [
        roc_auc_score(p.numpy(), s.numpy()) for s, p in zip(similarity, positive) if not p.all()
    ]
    assert found["matching_accuracy"] == pytest.approx(np.mean(rows))


def test_without_a_negative_pair_there_is_no_matching() -> None:
    found = matching(torch.ones(2, 1), torch.ones(2, 1, dtype=torch.bool))
    assert found == {"matching_auc": None, "matching_accuracy": None}


def test_equal_texts_are_one_text_with_several_images(lab_clip: Clip) -> None:
    v = lab_clip.encode_image(draw("test", [0, 1, 2]))
    shown = gallery(lab_clip, v, [("a", "b"), ("b",), ("c",)])
    assert shown.positive.tolist() == [
        [True, True, False],
        [False, True, False],
        [False, False, True],
    ]
    with pytest.raises(UserError, match="3 images and 2 with a caption"):
        gallery(lab_clip, v, [("a",), (), ("c",)])


def test_the_built_in_model_retrieves_what_it_was_pretrained_on(lab_clip: Clip) -> None:
    from clapforget.lab import known_classes

    rows = np.array([c + 100 * i for c in known_classes()[:20] for i in range(3)])
    v = lab_clip.encode_image(draw("test", rows))
    shown = gallery(lab_clip, v, [(c,) for c in captions("test", rows)])
    texts = lab_clip.class_features(class_names(), ["a photo of a {}"])
    found = clip_tasks(shown, torch.from_numpy(rows % 100), texts)
    assert list(found) == [
        "zero_shot", "image_retrieval@1", "image_retrieval@5", "image_retrieval@10",
        "text_retrieval@1", "text_retrieval@5", "text_retrieval@10", "matching_auc",
        "matching_accuracy",
    ]  # fmt: skip
    assert found["zero_shot"] > 0.9  # type: ignore[operator]
    assert found["text_retrieval@5"] > 0.8  # type: ignore[operator]
    assert found["matching_auc"] > 0.9  # type: ignore[operator]
    shuffled = clip_tasks(shown._replace(images=v[torch.randperm(len(v))]))
    assert "zero_shot" not in shuffled
    assert shuffled["matching_auc"] < 0.7  # type: ignore[operator]
