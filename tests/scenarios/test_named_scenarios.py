from __future__ import annotations

import os

import pytest

import clapforget.lab as world
from clapforget.errors import UserError
from clapforget.scenarios import SCENARIOS, build_scenario, parse_sequence, unseen_classes
from clapforget.scenarios.cifar100_data import DATA_VARIABLE, class_folders
from clapforget.scenarios.cifar100_data import unseen_classes as cifar100_unseen


def known_in(scenario, request):
    return sum(label in (scenario.data.known or ()) for label in request.classes)


def test_names_and_descriptions_need_no_data():
    assert {"cifar100", "folder", "lab", "lab-smoke"} <= set(SCENARIOS.names())
    for name in SCENARIOS.names():
        spec = SCENARIOS.get(name)
        assert spec.name == name
        assert 20 < len(spec.description) < 100
        assert "\n" not in spec.description


def test_lab():
    scenario = build_scenario("lab", seed=7)
    learns = [r for r in scenario.requests if r.kind == "learn"]
    forgets = [r for r in scenario.requests if r.kind == "forget"]
    assert [r.kind[0] for r in scenario.requests] == list("llfllflf")
    assert [r.classes for r in learns] == [tuple(range(k, k + 10)) for k in range(0, 50, 10)]
    assert [known_in(scenario, r) for r in learns] == [4] * 5
    assert [(len(r.classes), known_in(scenario, r)) for r in forgets] == [(1, 1), (1, 0), (2, 1)]
    assert len({label // 10 for label in forgets[2].classes}) == 2
    assert scenario.data.known >= set(range(50, 90))
    assert unseen_classes(scenario.data, scenario.requests) == tuple(range(90, 100))
    assert set(scenario.data.class_order[90:]) == set(world.unseen_classes())
    assert (scenario.model, scenario.pretrained) == ("lab-tiny", None)
    assert (len(scenario.data.train), len(scenario.data.test)) == (10_000, 6_000)


@pytest.fixture(scope="module")
def smoke():
    return build_scenario("lab-smoke")


def test_lab_smoke(smoke):
    assert [r.kind[0] for r in smoke.requests] == list("llflf")
    assert [known_in(smoke, r) for r in smoke.requests] == [2, 2, 1, 2, 0]
    assert (len(smoke.data.train), len(smoke.data.test)) == (4_000, 4_000)
    benchmark = smoke.benchmark()
    assert [e.request for e in benchmark.train_stream] == smoke.requests
    assert parse_sequence(smoke.sequence) == smoke.requests


def test_the_seed_decides_order_and_forgotten_classes_and_not_pixels(smoke):
    again, other = build_scenario("lab-smoke"), build_scenario("lab-smoke", seed=1)
    assert (again.data.class_order, again.sequence) == (smoke.data.class_order, smoke.sequence)
    assert other.data.class_order != smoke.data.class_order
    assert other.data.train.fingerprint == smoke.data.train.fingerprint


def test_sequence_and_class_order_take_the_place_of_the_seeded_ones(smoke):
    order = list(range(100))
    scenario = build_scenario("lab-smoke", sequence="L0,1 F0", class_order=order)
    assert scenario.sequence == "L0,1 F0"
    assert scenario.data.class_order == tuple(order)
    same_order = build_scenario("lab-smoke", class_order=smoke.data.class_order)
    assert same_order.sequence == smoke.sequence


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "lab-smok"}, "did you mean lab-smoke"),
        ({"name": "lab-smoke", "seed": -1}, "seed is -1"),
        ({"name": "lab-smoke", "data_path": "somewhere"}, "cannot use somewhere"),
        ({"name": "lab-smoke", "sequence": "L0 L0"}, "learned already"),
        ({"name": "lab-smoke", "class_order": [1, 2]}, "no permutation"),
        ({"name": "folder"}, "--data DIR"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(UserError, match=message):
        build_scenario(**options)


@pytest.mark.parametrize(
    ("number", "tasks", "forgotten_after"),
    [(2, 1, [1]), (3, 2, [1, 2]), (10, 5, [3, 5]), (48, 5, [3, 5]), (61, 7, [4, 7])],
)
def test_folder(make_folder, number, tasks, forgotten_after):
    root = make_folder(tuple(f"c{i:02d}" for i in range(number)), train=1, test=1)
    scenario = build_scenario("folder", root)
    learns = [r for r in scenario.requests if r.kind == "learn"]
    assert len(learns) == tasks
    assert sorted(label for r in learns for label in r.classes) == list(range(number))
    done = [
        sum(earlier.kind == "learn" for earlier in scenario.requests[:i])
        for i, r in enumerate(scenario.requests)
        if r.kind == "forget"
    ]
    assert done == forgotten_after
    assert len(scenario.benchmark().train_stream) == len(scenario.requests)


def test_folder_of_one_class(make_folder):
    with pytest.raises(UserError, match="one class"):
        build_scenario("folder", make_folder(("cow",)))


def check_cifar100(scenario):
    learns = [r for r in scenario.requests if r.kind == "learn"]
    assert [r.kind[0] for r in scenario.requests] == list("llfllflllfllf")
    assert [r.classes for r in learns] == [tuple(range(k, k + 10)) for k in range(0, 90, 10)]
    assert sorted(known_in(scenario, r) for r in learns) == [6] * 3 + [7] * 6
    forgets = [r for r in scenario.requests if r.kind == "forget"]
    assert [len(r.classes) for r in forgets] == [1, 1, 2, 1]
    assert [known_in(scenario, forgets[i]) for i in (0, 1, 3)] == [1, 0, 1]
    assert len({label // 10 for label in forgets[2].classes}) == 2
    assert unseen_classes(scenario.data, scenario.requests) == tuple(range(90, 100))
    assert set(scenario.data.class_order[90:]) == set(cifar100_unseen())


def test_cifar100(make_folder):
    check_cifar100(
        build_scenario("cifar100", make_folder(class_folders(), train=1, test=1), seed=3)
    )


@pytest.mark.skipif(DATA_VARIABLE not in os.environ, reason=f"needs CIFAR-100 in {DATA_VARIABLE}")
def test_cifar100_of_real_images():
    scenario = build_scenario("cifar100")
    check_cifar100(scenario)
    assert (len(scenario.data.train), len(scenario.data.test)) == (40_000, 5_000)
