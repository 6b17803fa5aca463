from __future__ import annotations

import json
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from clapforget import cli
from clapforget.bench import strategy
from clapforget.bench.memory import PeakMemory
from clapforget.bench.timing import flushing, in_turn
from clapforget.scenarios import lab, stream
from clapforget.strategies import TrainSettings
from clapforget.strategies.selection import SELECTORS


def test_sides_take_turns_and_the_first_round_does_not_count() -> None:
    calls: list[str] = []

    def run(name: str, seconds: list[float]):
        def side() -> None:
            calls.append(name)
            time.sleep(seconds.pop(0))

        return side

    @contextmanager
    def slow():
        time.sleep(0.05)
        yield

    timing = in_turn(
        {"a": run("a", [0.3, 0.02, 0.02, 0.02]), "b": run("b", [0, 0.04, 0.2, 0.04])},
        3,
        {"a": slow},
    )
    assert calls == ["a", "b"] * 4
    assert timing["a"] == pytest.approx(0.02, abs=0.015)
    assert timing["b"] == pytest.approx(0.04, abs=0.015)
    assert timing.ratio("b", "a") == pytest.approx(2, abs=0.8)


def test_a_warm_turn_begins_with_a_run_outside_the_clock() -> None:
    seconds = [0.0] * 2 + [0.1, 0.01] * 3
    calls: list[float] = []

    def side() -> None:
        calls.append(seconds[len(calls)])
        time.sleep(calls[-1])

    assert in_turn({"a": side}, 3, warm=True)["a"] == pytest.approx(0.01, abs=0.01)
    assert len(calls) == 8


def test_denormals_are_flushed_inside_only() -> None:
    tiny = torch.tensor([1e-39])
    with flushing():
        assert tiny.mul(0.5).eq(0).all()
    assert tiny.mul(0.5).ne(0).all()


def test_peak_memory_counts_what_lives_at_once() -> None:
    with PeakMemory() as memory:
        a = torch.zeros(1000)
        b = a + 1
        del a
        view = (b * 2)[:10]
        del b
    assert memory.peak == 8000 and memory.now == 4000
    assert len(view) == 10
    x = torch.randn(100, 100, requires_grad=True)
    with PeakMemory() as memory:
        (x @ x).exp().sum().backward()
    assert memory.now == 40_000, "the gradient stays"
    assert 80_000 <= memory.peak <= 200_000


def test_the_plain_loop_trains_what_the_strategy_trains() -> None:
    """Otherwise their times could not be compared: the same head to the last bit."""
    experiences = stream(lab(8, 2), "L0-2 L3,4").train_stream
    heads = []
    for plain in (False, True):
        one = strategy._strategy(TrainSettings(epochs=2, consolidation_epochs=1), memory=20)
        one.train(experiences[0])
        if plain:
            with flushing():
                strategy.plain_learning(one, experiences[1])
        else:
            one.train(experiences[1])
        heads.append(one.model.head.state_dict())
    for name, value in heads[0].items():
        assert torch.equal(value, heads[1][name]), name


def bench(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["clapforget", "bench", "learn", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


def test_the_command_writes_every_number_it_promises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "numbers.json"
    assert bench(monkeypatch, "--quick", "--rounds", "1", "--json", str(file)) == 0
    found = json.loads(file.read_text())
    for name in ("step_ratio_c20_t4", "head_ratio_c20_t4", "step_limit_c20_t4",
                 "products_gflop_c20_t4", "update_ms_c20_t4", "update_mb_c20_t4", "consolidation_step_ratio_c20_t4",
                 "pyro_step_ms_c20_t4", "pyro_step_peak_mb_c20_t4", "uncertainty_ratio",
                 "strategy_overhead", "selection_seconds"):  # fmt: skip
        assert found[name] > 0, name
    assert found["encodes_per_image"] == 1
    slow, fast = found["naive_step_ms_c20_t4"], found["fast_step_ms_c20_t4"]
    assert found["step_ratio_c20_t4"] == pytest.approx(slow / fast, rel=0.02)
    assert found["products_ms_c20_t4"] < fast, "the step is more than its products"
    floor = found["products_ms_c20_t4"] + found["update_ms_c20_t4"]
    assert found["step_limit_c20_t4"] == pytest.approx(slow / floor, rel=0.02)
    by_score = found["selection_seconds_by_score"]
    assert set(by_score) == set(SELECTORS.names())
    assert found["selection_seconds"] == max(by_score.values())
    whole = found["selection_seconds_with_posterior_by_score"]
    assert all(whole[name] >= seconds for name, seconds in by_score.items())
    for doubt in ("entropy", "expected_entropy", "mutual_information"):
        assert found["uncertainty_error_nats"][doubt]["closed_form"] >= 0
    assert bench(monkeypatch, "--quick", "--json", str(file)) == 2
    assert "exists already" in capsys.readouterr().err
    assert bench(monkeypatch, "--quick", "--json", str(tmp_path / "no" / "x.json")) == 2
    assert json.loads(file.read_text()) == found
