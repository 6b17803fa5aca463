from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from avalanche.benchmarks.utils.data_attribute import DataAttribute
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin
from avalanche.training.storage_policy import ClassBalancedBuffer
from avalanche.training.supervised import Naive
from torch import nn

from clapforget.errors import UserError
from clapforget.scenarios import (
    ForgetExperience,
    Learn,
    LearnExperience,
    TensorImages,
    parse_sequence,
    stream,
    unseen_classes,
)

SEQUENCE = "L0-9 L10-19 F3 L20-29 F12,14 L3"


@pytest.fixture(scope="module")
def benchmark(small_lab):
    return stream(small_lab, SEQUENCE)


def labels_of(experience):
    return {int(y) for _, y, _ in experience.dataset}


def test_the_train_stream_follows_the_requests(benchmark):
    train = benchmark.train_stream
    assert [e.request for e in train] == parse_sequence(SEQUENCE)
    assert [e.kind for e in train] == ["learn", "learn", "forget", "learn", "forget", "learn"]
    assert [e.current_experience for e in train] == list(range(6))
    kinds = {"learn": LearnExperience, "forget": ForgetExperience}
    for e in train:
        assert type(e) is kinds[e.kind]
        assert labels_of(e) == set(e.classes) == e.classes_in_this_experience
        assert len(e.dataset) == 4 * len(e.classes)
        assert e.task_labels == [0]
        assert e.origin_stream is train
    assert [e.learn_id for e in train if e.kind == "learn"] == [0, 1, 2, 3]
    assert [e.forget_id for e in train if e.kind == "forget"] == [0, 1]


def test_experiences_know_what_is_learned_and_forgotten(benchmark):
    train = benchmark.train_stream
    assert train[1].learned_classes == tuple(range(20))
    assert set(train[2].learned_classes) == set(range(20)) - {3}
    assert train[2].forgotten_classes == train[3].forgotten_classes == (3,)
    assert train[4].forgotten_classes == (3, 12, 14)
    assert set(train[5].learned_classes) == set(range(30)) - {12, 14}
    assert train[5].forgotten_classes == (12, 14)


def test_test_streams(benchmark, small_lab):
    learns = [e for e in benchmark.train_stream if e.kind == "learn"]
    assert [e.classes for e in benchmark.test_stream] == [e.classes for e in learns]
    assert [e.current_experience for e in benchmark.test_stream] == [e.learn_id for e in learns]
    assert [e.classes for e in benchmark.forget_stream] == [(3,), (12, 14)]
    (retain,), (unseen,) = benchmark.retain_stream, benchmark.unseen_stream
    assert labels_of(retain) == set(range(30)) - {12, 14}
    assert labels_of(unseen) == set(range(30, 100)) - small_lab.known
    for name in ("test", "forget", "retain", "unseen"):
        for e in benchmark.streams[name]:
            assert labels_of(e) == set(e.classes)
            assert len(e.dataset) == 2 * len(e.classes)
            x, y, _ = e.dataset[0]
            image, label = small_lab.test[e.dataset.sample_id[0]]
            assert torch.equal(x, image)
            assert y == label


def test_sample_ids_outlive_subset_concatenation_and_evaluation_mode(benchmark, small_lab):
    first, second = (e.dataset for e in benchmark.train_stream[:2])
    mixed = second.subset([5, 1]).concat(first.subset([39, 0, 7])).eval()
    assert isinstance(mixed.sample_id, DataAttribute)
    for i, row in enumerate(mixed.sample_id):
        x, y, task = mixed[i]
        image, label = small_lab.train[row]
        assert torch.equal(x, image)
        assert (y, task) == (label, 0) == (mixed.targets[i], 0)
    assert len(set(mixed.sample_id)) == 5


def test_streams_with_nothing_to_show_are_empty(small_lab):
    benchmark = stream(small_lab, "L0-99")
    assert len(benchmark.forget_stream) == len(benchmark.unseen_stream) == 0
    assert len(benchmark.retain_stream) == 1


def test_what_counts_as_unseen(small_lab):
    requests = parse_sequence("L0-49 F4")
    assert set(unseen_classes(small_lab, requests)) == set(range(50, 100)) - small_lab.known
    nothing_known = replace(small_lab, known=None)
    assert unseen_classes(nothing_known, requests) == ()
    assert unseen_classes(replace(small_lab, known=frozenset()), requests) == tuple(range(50, 100))


def test_class_order_decides_which_images_a_label_means(small_lab):
    order = list(reversed(range(100)))
    plain = stream(small_lab, [Learn([0, 1])])
    turned = stream(small_lab, [Learn([99, 98])], class_order=order)
    ids = [sorted(b.train_stream[0].dataset.sample_id) for b in (plain, turned)]
    assert ids[0] == ids[1]
    assert labels_of(turned.train_stream[0]) == {98, 99}
    assert turned.train_stream[0].data.class_order == tuple(order)


def test_requests_that_cannot_be_carried_out_are_refused_unless_unchecked(small_lab):
    with pytest.raises(UserError, match="learned already"):
        stream(small_lab, [Learn([0, 1]), Learn([1])])
    again = stream(small_lab, [Learn([0, 1]), Learn([1])], check=False)
    assert len(again.test_stream) == 2
    with pytest.raises(UserError, match="label 100"):
        stream(small_lab, [Learn([100])], check=False)


def ids_of(experience):
    return set(experience.dataset.sample_id)


def test_a_request_that_repeats_another_holds_what_is_left_of_it(small_lab):
    _, once, again, twice = stream(small_lab, "L0-3 F1 F1 F1,2").train_stream
    assert (once.nothing_to_do, again.nothing_to_do) == ("", "forgotten before")
    assert len(again.dataset) == 0
    assert (again.already_forgotten, again.fresh_classes) == ((1,), ())
    assert (twice.already_forgotten, twice.fresh_classes) == ((1,), (2,))
    assert labels_of(twice) == {2}
    assert not twice.nothing_to_do


def test_a_class_known_from_pretraining_alone_is_told_apart(small_lab):
    known = min(small_lab.known - {0, 1})
    forget = stream(small_lab, f"L0,1 F1,{known}").train_stream[1]
    assert forget.never_learned == (known,)
    assert labels_of(forget) == {1, known}


def test_samples_are_forgotten_by_id_and_never_come_back(small_lab):
    mine = small_lab.rows("train", [2]).tolist()
    other = small_lab.rows("train", [50]).tolist()
    text = f"L0-3 F@{mine[0]},{other[0]} F@{mine[0]},{mine[1]} F@{mine[1]} F2 L2 L50"
    _, first, second, third, whole, again, late = stream(small_lab, text).train_stream
    assert ids_of(first) == {mine[0]}  # the other was not learned: nothing of it to forget ...
    assert ids_of(second) == {mine[1]}
    assert ids_of(third) == set()
    assert third.nothing_to_do
    assert first.by_sample
    assert first.classes == ()
    assert set(first.learned_classes) == {0, 1, 2, 3}
    assert ids_of(whole) == ids_of(again) == set(mine[2:])
    assert ids_of(late) == set(other[1:])  # ... and it is not learned later either
    assert late.forgotten_samples == tuple(sorted([*mine[:2], other[0]]))
    everything = ",".join(map(str, mine))
    with pytest.raises(UserError, match=r"no train image of class 2 .* left"):
        stream(small_lab, f"L0-3 F@{everything} F2 L2")


def test_pairs_are_found_by_their_captions(small_lab):
    name = small_lab.class_names[2]
    captions = small_lab.captions("train", torch.arange(len(small_lab.train)))
    forget = stream(small_lab, f'L0-3 F"{name.upper()} on a"').train_stream[1]
    expected = {i for i, both in enumerate(captions) if any(f"{name} on a" in c for c in both)}
    assert ids_of(forget) == expected
    assert labels_of(forget) == {2}
    nothing = stream(small_lab, f'L0-3 F"{name[:-1]}"').train_stream[1]  # whole words only
    assert nothing.nothing_to_do
    rule = stream(small_lab, f'L0-3 F"re:{name[:-1]}. on"').train_stream[1]
    assert ids_of(rule) == expected


def test_a_class_without_images_is_named(small_lab):
    rows = small_lab.rows("test", range(99))
    test = TensorImages(small_lab.test.images(rows), small_lab.test.targets[rows], "test")
    bare = replace(small_lab, test=test)
    with pytest.raises(UserError, match=r"class 99 \(.*\) of lab has no test image"):
        stream(bare, "L98,99")
    assert len(stream(bare, "L97,98").test_stream) == 1


@pytest.mark.parametrize("replay", [False, True])
def test_strategies_of_avalanche_run_unchanged(small_lab, replay):
    torch.manual_seed(0)
    benchmark = stream(small_lab, "L0-4 L5-9 F3 L10-14")
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 100))
    memory = ReplayPlugin(20, storage_policy=ClassBalancedBuffer(20, adaptive_size=True))
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=8,
        eval_mb_size=16,
        plugins=[memory] if replay else None,
        evaluator=EvaluationPlugin(accuracy_metrics(experience=True), strict_checks=True),
    )
    for experience in [e for e in benchmark.train_stream if e.kind == "learn"]:
        strategy.train(experience)
        results = strategy.eval(benchmark.test_stream)
    accuracies = [value for name, value in results.items() if name.startswith("Top1_Acc_Exp")]
    assert len(accuracies) == 3
    assert all(0 <= accuracy <= 1 for accuracy in accuracies)
    if replay:
        kept = memory.storage_policy.buffer
        assert sorted(set(kept.targets)) == list(range(15))
        for i, row in enumerate(kept.sample_id):
            assert small_lab.train.targets[row] == kept.targets[i]
