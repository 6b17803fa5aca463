from __future__ import annotations

import numpy as np
import pytest

from clapforget.errors import UserError
from clapforget.scenarios import (
    build_scenario,
    check_requests,
    format_sequence,
    parse_sequence,
    stream,
)
from clapforget.scenarios.sequences import SEQUENCES, build_sequence

TASKS = tuple(tuple(range(10 * k, 10 * k + 10)) for k in range(5))


def made(name: str, seed: int = 0, tasks=TASKS):
    return build_sequence(name, tasks, np.random.default_rng(seed))


@pytest.mark.parametrize("name", SEQUENCES.names())
def test_every_sequence_can_be_carried_out_and_written_down(name):
    for seed in range(5):
        requests = made(name, seed)
        check_requests(requests, 50, set())
        assert parse_sequence(format_sequence(requests)) == requests
    assert SEQUENCES.get(name).description


@pytest.mark.parametrize("name", SEQUENCES.names())
def test_the_seed_decides_everything_that_is_drawn(name):
    assert made(name, 3) == made(name, 3)


def test_seeds_differ():
    for name in ("alternating", "bursts", "random-times", "relearn", "ten"):
        assert len({format_sequence(made(name, seed)) for seed in range(6)}) > 1, name


def kinds(name, seed=0):
    return "".join(request.letter for request in made(name, seed))


def test_shapes():
    assert kinds("learn-only") == "LLLLL"
    assert kinds("forget-only") == "LFFFFF"
    assert kinds("alternating") == kinds("alternating-online") == "LFLFLFLFLF"
    assert kinds("bursts") == "LLLFFFLLFFF"
    assert kinds("relearn") == "LLLLFLLF"
    assert kinds("for-now") == "LNNLLFNF"
    assert len(kinds("ten")) == 10
    assert len(kinds("thirty")) == 30
    assert len({kinds("random-times", seed) for seed in range(8)}) > 1
    assert all("F" in kinds("random-times", seed) for seed in range(30))


def test_relearning_names_what_was_forgotten():
    *_, forget, _, again, once_more = made("relearn")
    assert again.classes == forget.classes
    assert set(once_more.classes) < set(forget.classes)


def test_too_few_classes_are_refused():
    with pytest.raises(UserError, match="4 classes cannot be learned in 5 requests"):
        made("ten", tasks=((0, 1, 2, 3),))
    with pytest.raises(UserError, match="takes five tasks"):
        made("for-now", tasks=TASKS[:2])
    with pytest.raises(UserError, match=r"unknown sequence 'alternatin'.*alternating"):
        made("alternatin")


def test_a_scenario_takes_a_sequence_by_name():
    scenario = build_scenario("lab-smoke", sequence="alternating")
    assert [r.letter for r in scenario.requests] == list("LFLFLF")
    assert scenario.online == 0
    assert len(scenario.benchmark().train_stream) == 6
    other = build_scenario("lab-smoke", sequence="alternating", seed=1)
    assert other.sequence != scenario.sequence


def test_online_every_sample_comes_once_in_a_few(small_lab):
    train = stream(small_lab, "L0-9 F3 L10,11", online=6, seed=1).train_stream
    first, forget, second = train[:7], train[7], train[8:]
    assert [len(e.dataset) for e in first] == [6] * 6 + [4]
    assert forget.kind == "forget"
    assert [len(e.dataset) for e in second] == [6, 2]
    ids = [i for e in first for i in e.dataset.sample_id]
    assert sorted(ids) == small_lab.rows("train", range(10)).tolist()
    assert [e.part for e in first] == list(range(7))
    assert first[0].opens == tuple(range(10))
    assert first[1].opens == ()
    assert [e.title for e in second] == ["L10,11 1/2", "L10,11 2/2"]
    assert [e.request_index for e in (first[3], forget, second[1])] == [0, 1, 2]
    again = stream(small_lab, "L0-9 F3 L10,11", online=6, seed=1).train_stream
    other = stream(small_lab, "L0-9 F3 L10,11", online=6, seed=2).train_stream
    assert list(again[0].dataset.sample_id) == ids[:6] != list(other[0].dataset.sample_id)
