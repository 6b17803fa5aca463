"""The exemplar memory: how it fills, shrinks and forgets, alone and under Avalanche's replay."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin
from torch import Tensor, nn

from clapforget import Clip, UserError
from clapforget.posterior import Predictive
from clapforget.scenarios import ImageData, stream
from clapforget.strategies import ClapForget, TrainSettings, UncertaintyBuffer
from clapforget.strategies.buffer import experience_samples
from clapforget.uncertainty import SCORES


def predictive(scores: Tensor) -> Predictive:
    """A prediction whose every uncertainty is ``scores`` [n]."""
    return Predictive(torch.full((len(scores), 2), 0.5), *[scores] * 7)


def fill(
    buffer: UncertaintyBuffer, labels: list[int], first_id: int, scores: list[float]
) -> Tensor:
    """Add random images; their ids count up from ``first_id``. :returns: the images."""
    generator = torch.Generator().manual_seed(first_id)
    images = torch.randint(256, (len(labels), 3, 4, 4), dtype=torch.uint8, generator=generator)
    ids = torch.arange(first_id, first_id + len(labels))
    buffer.add(images, torch.tensor(labels), ids, predictive(torch.tensor(scores)))
    return images


def counts(buffer: UncertaintyBuffer) -> dict[int, int]:
    return {label: int((buffer.labels == label).sum()) for label in buffer.classes}


def test_every_class_has_the_same_share_of_a_fixed_total() -> None:
    buffer = UncertaintyBuffer(10, "mutual_information")
    fill(buffer, [0] * 20, 0, [0.0] * 20)
    assert counts(buffer) == {0: 10}
    fill(buffer, [1] * 20 + [2] * 20, 100, [0.0] * 40)
    assert sum(counts(buffer).values()) == len(buffer) == 10
    assert sorted(counts(buffer).values()) == [3, 3, 4]


def test_a_class_with_few_samples_keeps_them_all_and_takes_no_more() -> None:
    buffer = UncertaintyBuffer(10, "mutual_information")
    fill(buffer, [0] * 20 + [1] * 2, 0, [0.0] * 22)
    assert counts(buffer) == {0: 5, 1: 2}


def test_a_shrunk_memory_keeps_the_highest_scores_of_every_class() -> None:
    buffer = UncertaintyBuffer(8, "mutual_information")
    fill(buffer, [0] * 4 + [1] * 4, 0, [0.1, 0.4, 0.2, 0.3, 0.8, 0.5, 0.6, 0.7])
    buffer.resize(None, 4)
    assert buffer.max_size == 4
    assert set(buffer.sample_ids.tolist()) == {1, 3, 4, 7}
    fill(buffer, [0] * 4, 50, [0.0, 0.9, 0.0, 0.35])
    assert set(buffer.sample_ids.tolist()) == {51, 1, 4, 7}


def test_the_highest_scores_are_kept_with_their_own_images() -> None:
    buffer = UncertaintyBuffer(3, "mutual_information")
    scores = [0.3, 0.9, 0.1, 0.8, 0.2, 0.7]
    images = fill(buffer, [7] * 6, 40, scores)
    assert buffer.sample_ids.tolist() == [41, 43, 45]
    assert torch.equal(buffer.images, images[[1, 3, 5]])
    assert buffer.scores.tolist() == pytest.approx([0.9, 0.8, 0.7])


def test_a_sample_that_comes_twice_is_held_once() -> None:
    buffer = UncertaintyBuffer(20, "mutual_information")
    fill(buffer, [0] * 5, 0, [0.5] * 5)
    fill(buffer, [0] * 5, 0, [0.5] * 5)
    assert sorted(buffer.sample_ids.tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("request_", "gone"),
    [({"labels": [1]}, {3, 4, 5}), ({"sample_ids": [0, 8]}, {0, 8}),
     ({"labels": [2], "sample_ids": [1]}, {1, 6, 7, 8}), ({}, set())],
)  # fmt: skip
def test_forgetting_removes_images_labels_ids_and_scores(
    request_: dict[str, list[int]], gone: set[int]
) -> None:
    buffer = UncertaintyBuffer(9, "mutual_information")
    images = fill(buffer, [0, 0, 0, 1, 1, 1, 2, 2, 2], 0, [0.5] * 9)
    assert buffer.forget(**request_) == len(gone)
    left = [i for i in range(9) if i not in gone]
    assert buffer.sample_ids.tolist() == left
    assert torch.equal(buffer.images, images[left])
    assert len(buffer.labels) == len(buffer.scores) == len(buffer.mass) == len(left)
    storage = bytes(buffer.images.untyped_storage())  # of the tensor as a whole, not of its view
    assert len(storage) == buffer.images.numel()
    assert all(bytes(images[i].flatten().tolist()) not in storage for i in gone)
    assert set(buffer.buffer.sample_id) == set(left)


def test_forgetting_frees_room_for_what_is_learned_next() -> None:
    buffer = UncertaintyBuffer(6, "mutual_information")
    fill(buffer, [0] * 6 + [1] * 6, 0, [0.5] * 12)
    buffer.forget(labels=[0])
    assert len(buffer) == 3
    fill(buffer, [2] * 6, 100, [0.5] * 6)
    assert counts(buffer) == {1: 3, 2: 3}


def test_a_saved_memory_comes_back_whole_and_selects_as_it_would_have() -> None:
    buffer = UncertaintyBuffer(6, "random", seed=3)
    fill(buffer, [0] * 9 + [1] * 9, 0, [0.5] * 18)
    copy = UncertaintyBuffer(6, "random", seed=3)
    copy.load_state_dict({k: v.clone() for k, v in buffer.state_dict().items()})
    for name, value in buffer.state_dict().items():
        assert torch.equal(value, copy.state_dict()[name]), name
    fill(buffer, [2] * 9, 100, [0.5] * 9)
    fill(copy, [2] * 9, 100, [0.5] * 9)
    assert buffer.sample_ids.tolist() == copy.sample_ids.tolist()


def test_random_selection_depends_on_the_seed_alone() -> None:
    chosen = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(chosen))
        buffer = UncertaintyBuffer(8, "random", seed)
        fill(buffer, [0] * 100, 0, [0.5] * 100)
        chosen.append(buffer.sample_ids.tolist())
    assert chosen[0] == chosen[1] != chosen[2]


def test_the_buffer_is_a_data_set_of_floats_with_labels_and_task() -> None:
    buffer = UncertaintyBuffer(2, "mutual_information")
    images = fill(buffer, [4, 4], 0, [0.2, 0.1])
    x, y, task = buffer.buffer[0]
    assert torch.allclose(x, images[0].float() / 255)
    assert (y, task) == (4, 0)
    with pytest.raises(UserError, match="cannot be set"):
        buffer.buffer = None


@pytest.mark.parametrize("size", [0, -5])
def test_a_memory_without_room_is_refused(size: int) -> None:
    with pytest.raises(UserError, match=str(size)):
        UncertaintyBuffer(size)


def test_an_unknown_score_is_refused_with_a_hint() -> None:
    with pytest.raises(UserError, match="mutual_information"):
        UncertaintyBuffer(5, "mutual_informations")


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(("direction", "kept"), [("", 1), (":low", 0)])
def test_posterior_scores_rank_by_their_own_uncertainty(
    score: str, direction: str, kept: int
) -> None:
    buffer = UncertaintyBuffer(1, score + direction)
    seen = predictive(torch.full((3,), 0.5))
    setattr(seen, score, torch.tensor([0.1, 0.9, 0.2]))
    buffer.add(torch.zeros(3, 3, 2, 2).byte(), torch.zeros(3).long(), torch.arange(3), seen)
    assert buffer.sample_ids.tolist() == [kept]


def add(buffer: UncertaintyBuffer, ids: range, label: int, values: Tensor, **known: Any) -> None:
    """Samples of one class; ``values`` [held + n] score the memory's exemplars too."""
    images = torch.zeros(len(ids), 3, 1, 1, dtype=torch.uint8)
    labels = torch.full((len(ids),), label)
    buffer.add(images, labels, torch.tensor(list(ids)), predictive(values), with_held=True, **known)


def test_old_and_new_samples_of_a_class_are_scored_by_the_same_posterior() -> None:
    """The posterior of the first round calls all very uncertain; the later one tells them apart."""
    buffer = UncertaintyBuffer(6, "entropy")
    add(buffer, range(0, 3), 0, torch.tensor([9.0, 9.1, 9.2]))
    held = buffer.sample_ids.tolist()
    now = torch.tensor([0.5 if i == 1 else 0.1 for i in held])
    add(buffer, range(3, 9), 0, torch.cat([now, torch.tensor([0.6, 0.4, 0.7, 0.2, 0.3, 0.8])]))
    assert buffer.sample_ids.tolist() == [8, 5, 3, 1, 4, 7]
    assert buffer.scores.tolist() == pytest.approx([0.8, 0.7, 0.6, 0.5, 0.4, 0.3])


def test_a_class_without_new_samples_keeps_its_order() -> None:
    buffer = UncertaintyBuffer(6, "entropy")
    add(buffer, range(0, 6), 0, torch.tensor([0.1, 0.6, 0.2, 0.5, 0.3, 0.4]))
    assert buffer.sample_ids.tolist() == [1, 3, 5, 4, 2, 0]
    reverse = torch.arange(6) / 10
    add(buffer, range(6, 12), 1, torch.cat([reverse, torch.zeros(6)]))
    assert buffer.sample_ids[buffer.labels == 0].tolist() == [1, 3, 5]


def test_where_nothing_is_known_of_the_old_their_scores_stay() -> None:
    buffer = UncertaintyBuffer(3, "entropy")
    fill(buffer, [0, 0, 0], 0, [0.1, 0.5, 0.9])
    fill(buffer, [0, 0], 10, [0.7, 0.3])
    assert buffer.sample_ids.tolist() == [2, 10, 1]


def test_exemplars_stand_for_all_samples_seen_but_for_no_deleted_class() -> None:
    buffer = UncertaintyBuffer(4, "entropy")
    fill(buffer, [0] * 10 + [1] * 6, 0, [0.5] * 16)
    assert buffer.mass.tolist() == [5, 5, 3, 3]
    fill(buffer, [0] * 10, 100, [0.9] * 10)
    assert buffer.mass[buffer.labels == 0].sum() == 20
    buffer.forget(labels=[0])
    assert buffer.mass.tolist() == [3, 3]
    fill(buffer, [0] * 8, 0, [0.5] * 8)
    assert buffer.mass[buffer.labels == 0].sum() == 8


def spread_features(n: int) -> Tensor:
    """Of one class, [n, 8], drifting from one place to another as a stream does."""
    generator = torch.Generator().manual_seed(5)
    v = torch.randn(n, 8, generator=generator, dtype=torch.double)
    v[:, 0] += 3
    v[:, 1] += torch.linspace(-3, 3, n)
    return torch.nn.functional.normalize(v, dim=-1)


def test_herding_in_small_experiences_is_not_carried_away_by_the_last_one() -> None:
    """Were every candidate to count once, old exemplars would give way to the newest samples."""
    v, gaps = spread_features(200), []
    for forgetful in (False, True):
        buffer = UncertaintyBuffer(10, "herding")
        for part in range(20):
            ids = torch.arange(10 * part, 10 * part + 10)
            known = v[torch.cat([buffer.sample_ids, ids])]
            buffer.add(
                torch.zeros(10, 3, 1, 1).byte(), torch.zeros(10).long(), ids,
                features=known, with_held=True,
            )  # fmt: skip
            if forgetful:
                buffer.mass = torch.ones(10)
            else:
                assert buffer.mass.tolist() == pytest.approx([part + 1] * 10)
        gaps.append((v[buffer.sample_ids].mean(0) - v.mean(0)).norm())
    assert gaps[0] < 0.5 * gaps[1]


def test_a_deleted_sample_plays_no_part_in_a_later_choice() -> None:
    """Two memories that differ in deleted samples alone choose the same afterwards."""
    v = spread_features(60)
    chosen = []
    for first in (range(0, 20), range(20, 40)):
        buffer = UncertaintyBuffer(8, "herding")
        ids = torch.tensor([*first, *range(40, 44)])
        images, labels = torch.zeros(24, 3, 1, 1).byte(), torch.tensor([0] * 20 + [1] * 4)
        buffer.add(images, labels, ids, features=v[ids], with_held=True)
        buffer.forget(sample_ids=list(first))
        later = torch.arange(44, 60)
        known = v[torch.cat([buffer.sample_ids, later])]
        buffer.add(
            images[:16], torch.tensor([0] * 8 + [1] * 8), later, features=known, with_held=True
        )
        chosen.append((buffer.sample_ids.tolist(), buffer.mass.tolist()))
    assert chosen[0] == chosen[1]


def test_what_is_kept_is_what_a_loop_over_classes_keeps() -> None:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(7, (120,), generator=generator) * 3
    scores = torch.rand(120, generator=generator)
    buffer = UncertaintyBuffer(45, "mutual_information")
    buffer.add(torch.zeros(120, 3, 1, 1).byte(), labels, torch.arange(120), predictive(scores))
    wanted = []
    for place, label in enumerate(sorted(set(labels.tolist()))):
        own = [i for i in range(120) if labels[i] == label]
        own.sort(key=lambda i: -float(scores[i]))
        wanted += own[: 6 + (place < 3)]
    assert buffer.sample_ids.tolist() == wanted


def test_a_score_that_is_not_a_number_is_not_taken_for_an_order() -> None:
    """The released variance of entropy is NaN, and so keeps the first samples of the data set."""
    buffer = UncertaintyBuffer(3, "entropy")
    with pytest.raises(UserError, match=r"'entropy' is not a number.*lower its rate"):
        fill(buffer, [0, 0], 0, [0.1, float("nan")])


@pytest.mark.parametrize("score", ["herding", "coverage", "mean_distance"])
def test_a_score_of_features_without_features_says_what_to_do(score: str) -> None:
    with pytest.raises(UserError, match=rf"'{score}' needs image features.*random"):
        fill(UncertaintyBuffer(3, score), [0, 0], 0, [0.1, 0.2])


class _Labels(SupervisedPlugin, supports_distributed=False):
    """Notes which labels are trained on, by experience."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[set[int]] = []

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self.seen.append(set())

    def before_forward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self.seen[-1] |= set(strategy.mb_y.tolist())


def naive(plugins: list[Any]) -> Naive:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 100))
    return Naive(
        model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.01), criterion=nn.CrossEntropyLoss(),
        train_mb_size=16, plugins=plugins, evaluator=EvaluationPlugin(),
    )  # fmt: skip


def test_avalanches_replay_stores_and_replays_with_it(data: ImageData) -> None:
    buffer, labels = UncertaintyBuffer(12, "random"), _Labels()
    strategy = naive([ReplayPlugin(mem_size=12, storage_policy=buffer), labels])
    benchmark = stream(data, "L0-3 L4,5 F1 L6,7")
    for experience in benchmark.train_stream:
        if experience.kind == "learn":
            strategy.train(experience)
    assert labels.seen[0] == {0, 1, 2, 3}
    assert labels.seen[1] == {0, 1, 2, 3, 4, 5}
    assert labels.seen[2] == set(range(8))
    assert len(buffer) == 12
    assert counts(buffer) == {c: 2 if c < 4 else 1 for c in range(8)}
    assert torch.equal(data.train.images(buffer.sample_ids), buffer.images)


def test_a_posterior_score_without_a_posterior_says_what_to_do(data: ImageData) -> None:
    buffer = UncertaintyBuffer(12, "mutual_information")
    strategy = naive([ReplayPlugin(mem_size=12, storage_policy=buffer)])
    with pytest.raises(UserError, match=r"'mutual_information' needs a posterior.*random"):
        strategy.train(stream(data, "L0,1").train_stream[0])


def test_a_forget_experience_adds_nothing(data: ImageData) -> None:
    buffer = UncertaintyBuffer(12, "random")
    buffer.post_adapt(None, stream(data, "L0-2 F1").train_stream[1])
    assert len(buffer) == 0


def test_a_class_in_two_experiences_is_chosen_from_as_one_pool(data: ImageData, clip: Clip) -> None:
    """Through the strategy: exemplars held and new are described by the posterior of now."""
    strategy = ClapForget(
        clip, memory=UncertaintyBuffer(12, "coverage"), evaluator=EvaluationPlugin(),
        training=TrainSettings(epochs=1, consolidation_epochs=0),
    )  # fmt: skip
    seen: list[Any] = []
    select = strategy.memory.select

    def listen(candidates: Any) -> Tensor:
        seen.append(candidates)
        return select(candidates)

    strategy.memory.select = listen
    halves = []
    for half in (0, 1):
        experience = stream(data, "L0-2").train_stream[0]
        order = torch.tensor(list(experience.dataset.targets)).argsort(stable=True)
        rows = order[half::2].tolist()
        experience._dataset = experience.dataset.subset(rows)
        halves.append(experience)
    strategy.train([halves[0]])
    held = strategy.memory.sample_ids.clone()
    assert len(held) == 12
    strategy.train([halves[1]])
    later, new = seen[1], len(halves[1].dataset)
    assert len(later.labels) == 12 + new
    encoded = strategy.model.clip.encode_image(data.train.images(held))
    torch.testing.assert_close(later.features[:12], encoded, atol=1e-5, rtol=0)
    assert torch.equal(strategy.model.head.labels[later.columns], later.labels)
    assert later.mass.tolist() == pytest.approx([len(halves[0].dataset) / 12] * 12 + [1] * new)
    kept = strategy.memory.sample_ids
    assert torch.isin(kept, held).any() and not torch.isin(kept, held).all()
    encoded = strategy.model.clip.encode_image(data.train.images(kept))
    torch.testing.assert_close(strategy.memory_views[:, 0], encoded, atol=1e-5, rtol=0)


def experience_of(images: Tensor) -> Any:
    """An experience of another benchmark: nothing but a data set of images."""

    class Data(list):
        targets = [0] * len(images)

    return type("Experience", (), {"dataset": Data((image, 0, 0) for image in images)})()


def test_images_of_other_benchmarks_are_kept_as_they_are() -> None:
    bytes_ = torch.randint(256, (6, 3, 4, 4), dtype=torch.uint8)
    for images in (bytes_, bytes_ / 255, bytes_ / 255 + torch.rand(6, 3, 4, 4) * 0.001):
        kept, labels, ids = experience_samples(experience_of(images))
        assert torch.equal(kept, bytes_)
        assert labels.tolist() == [0] * 6 and ids.tolist() == list(range(6))


@pytest.mark.parametrize(
    ("images", "said"),
    [((torch.rand(4, 3, 4, 4) - 0.5) / 0.25, r"reach from -\d\.\d\d to \d"),
     (torch.full((4, 3, 4, 4), 1.01), "reach from 1.01 to 1.01"),
     (torch.full((4, 3, 4, 4), torch.nan), "nan"),
     (torch.randint(2, 256, (4, 3, 4, 4)), "normalise in the model"),
     (torch.rand(4, 1, 4, 4), r"are \[1, 4, 4\]; give them three channels")],
)  # fmt: skip
def test_images_it_cannot_keep_as_they_are_are_refused(images: Tensor, said: str) -> None:
    buffer = UncertaintyBuffer(4, "random")
    with pytest.raises(UserError, match=said) as error:
        buffer.post_adapt(None, experience_of(images))
    assert "images of experience 0" in str(error.value)
    assert not len(buffer)
