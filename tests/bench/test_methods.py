"""The table of learning methods: what is asked for, what is learned from, what is averaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from scipy import stats
from typer.testing import CliRunner

from clapforget import UserError, load_clip
from clapforget.bench.chosen_images import chosen_images
from clapforget.bench.methods import (
    MEASURES,
    NOVELTY,
    _reads,
    _row,
    _table,
    markdown,
    measure,
    parse_method,
)
from clapforget.cli import app
from clapforget.pretrain import save_clip
from clapforget.scenarios import build_scenario
from clapforget.strategies.registry import StrategyOptions


def test_a_method_is_a_strategy_and_its_settings() -> None:
    assert parse_method("exact") == ("exact", [])
    text = "clapforget:released, training.epochs=1,clap.tokens=true"
    assert parse_method(text) == ("clapforget:released", ["training.epochs=1", "clap.tokens=true"])


def test_few_images_are_the_same_pixels_whatever_the_order_of_classes() -> None:
    """Drawn with the seed by canonical class."""
    one, other = (
        chosen_images(3, 0, seed=5)(build_scenario("lab-smoke", class_order=order))
        for order in (list(range(100)), list(range(99, -1, -1)))
    )
    for scenario in (one, other):
        assert torch.bincount(scenario.data.train.targets, minlength=100).eq(3).all()
    assert one.data.train.fingerprint == other.data.train.fingerprint
    assert torch.equal(one.data.train.targets, 99 - other.data.train.targets)
    another = chosen_images(3, 0, seed=6)(build_scenario("lab-smoke", class_order=list(range(100))))
    assert another.data.train.fingerprint != one.data.train.fingerprint
    assert another.data.test.fingerprint == one.data.test.fingerprint


def test_held_out_images_are_judged_by_and_not_learned_from() -> None:
    scenario = build_scenario("lab-smoke", class_order=list(range(100)))
    whole, data = scenario.data, chosen_images(0, 7, seed=5)(scenario).data

    def pixels(images) -> set[bytes]:
        every = images.images(torch.arange(len(images.targets)))
        return {image.numpy().tobytes() for image in every}

    train, test = pixels(data.train), pixels(data.test)
    assert torch.bincount(data.test.targets, minlength=100).eq(7).all()
    assert not train & test and train | test == pixels(whole.train)
    assert not (train | test) & pixels(whole.test)
    few = chosen_images(3, 7, seed=5)(scenario).data
    assert few.test.fingerprint == data.test.fingerprint and len(few.train.targets) == 300
    assert pixels(few.train) < train
    each = int(torch.bincount(whole.train.targets).min())
    with pytest.raises(UserError, match=f"hold out at most {each - 1}"):
        chosen_images(0, each, seed=5)(scenario)


def test_novelty_is_told_by_one_score_named_beforehand() -> None:
    """Not by the best of a run's scores, which nobody could know without the answers."""
    scores = {
        NOVELTY: {"auroc": 0.6, "aupr": 0.5, "fpr95": 0.9},
        "entropy": {"auroc": 0.9, "aupr": 0.8, "fpr95": 0.2},
    }
    row = _row({"novelty": {"scores": scores}, "last_accuracy": 0.25})
    assert (row["novelty_auroc"], row["novelty_aupr"], row["novelty_fpr95"]) == (0.6, 0.5, 0.9)
    assert row["last_accuracy"] == 0.25 and row["ece"] != row["ece"]
    missing = _row({"novelty": None})
    assert missing["novelty_auroc"] != missing["novelty_auroc"]


def test_intervals_are_students_and_differences_are_paired() -> None:
    def rows(*last: float) -> list[dict[str, float]]:
        return [dict.fromkeys(MEASURES, 0.5) | {"last_accuracy": x} for x in last]

    table = _table({"a": rows(0.5, 0.7, 0.6), "b": rows(0.4, 0.6, 0.5)}, "b")
    cell = table["a"]["last_accuracy"]["value"]
    low, high = stats.ttest_1samp([0.5, 0.7, 0.6], 0).confidence_interval()
    assert (cell["low"], cell["high"]) == pytest.approx((low, high), abs=1e-5)
    gap = table["a"]["last_accuracy"]["difference"]
    assert (gap["low"], gap["mean"], gap["high"]) == pytest.approx((0.1, 0.1, 0.1))
    about = {"weights": {"a": "lab-tiny", "b": "mine"}, "reads": {"a": "none", "b": "2000"}}
    text = markdown({"table": table, "seeds": [0, 1, 2], "reference": "b", **about})
    assert "| `a` | lab-tiny | none |" in text and "| `b` | mine | 2000 |" in text
    assert text.index("`a`") < text.index("`b`") and "0.600 ± 0.248" in text and "+0.100" in text


def test_a_method_that_cannot_run_stops_before_any_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no strategy|unknown"):
        measure("lab-smoke", ["zero-shot", "rainpac"], [0], tmp_path)
    with pytest.raises(UserError, match="reference"):
        measure("lab-smoke", ["zero-shot"], [0], tmp_path, reference="exact")
    assert not list(tmp_path.iterdir())


def test_runs_are_kept_and_not_repeated(tmp_path: Path) -> None:
    command = ["bench", "methods", "lab-smoke", "--method", "nearest-mean", "--method", "zero-shot"]
    command += ["--seeds", "0", "--per-class", "4", "--out", str(tmp_path / "runs")]
    said = CliRunner().invoke(app, [*command, "--json", str(tmp_path / "one.json")])
    assert said.exit_code == 0, said.output
    found = json.loads((tmp_path / "one.json").read_text())
    assert found["weights"] == dict.fromkeys(found["table"], "lab-tiny, built-in")
    assert found["reads"] == dict.fromkeys(found["table"], "none")
    better = found["table"]["nearest-mean"]["last_accuracy"]
    assert better["value"]["mean"] > 0.6 and better["difference"]["mean"] > 0.1
    summaries = sorted((tmp_path / "runs").glob("*/summary.json"))
    assert [p.parent.name for p in summaries] == ["nearest-mean-0", "zero-shot-0"]
    times = [p.stat().st_mtime_ns for p in summaries]
    said = CliRunner().invoke(app, [*command, "--json", str(tmp_path / "two.json")])
    assert said.exit_code == 0, said.output
    assert times == [p.stat().st_mtime_ns for p in summaries]
    assert json.loads((tmp_path / "two.json").read_text()) == found
    for other in (["--per-class", "5"], ["--validation", "3"], ["--model", "cifar100-tiny"], ["--sequence", "L0-9"]):
        said = CliRunner().invoke(app, [*command, *other])
        name = other[0].strip("-").replace("-", "_")
        assert isinstance(said.exception, UserError), other
        assert f"holds runs with another {name} " in str(said.exception)
    (tmp_path / "runs" / "streams.json").write_text("[")
    with pytest.raises(UserError, match="cannot be read"):
        measure("lab-smoke", ["zero-shot"], [0], tmp_path / "runs", per_class=4)
    (tmp_path / "runs" / "streams.json").unlink()
    with pytest.raises(UserError, match="not told"):
        measure("lab-smoke", ["zero-shot"], [0], tmp_path / "runs", per_class=4)
    with pytest.raises(UserError, match="is a file"):
        measure("lab-smoke", ["zero-shot"], [0], tmp_path / "one.json", per_class=4)


@pytest.mark.parametrize(
    ("strategy", "wanted"),
    [("clapforget", "300"), ("finetune", "300"), ("joint", "all data"), ("linear", "300"),
     ("clapforget:best", "none"), ("ranpac", "none")],
)  # fmt: skip
def test_what_is_learned_from_beside_the_experience_is_told(strategy: str, wanted: str) -> None:
    assert _reads(strategy, StrategyOptions.parse(strategy, "stranger", {"memory.size": 300})) == wanted


def test_all_methods_read_the_model_that_is_named(tmp_path: Path) -> None:
    weights = tmp_path / "mine.safetensors"
    save_clip(load_clip("lab-tiny"), weights)
    own, other = (
        measure("lab-smoke", ["zero-shot"], [0], tmp_path / name, per_class=2, model=model)
        for name, model in (("own", str(weights)), ("other", "cifar100-tiny"))
    )
    accuracy = [f["rows"]["zero-shot"][0]["last_accuracy"] for f in (own, other)]
    assert accuracy[0] > accuracy[1] + 0.2


def test_a_run_that_was_cut_short_before_its_first_checkpoint_begins_again(tmp_path: Path) -> None:
    cut = tmp_path / "zero-shot-0"
    (cut / "certificates").mkdir(parents=True)
    (cut / "events.jsonl").write_text("")
    (cut / "notes.txt").write_text("mine")
    measure("lab-smoke", ["zero-shot"], [0], tmp_path, per_class=2)
    assert (cut / "summary.json").is_file() and (cut / "notes.txt").read_text() == "mine"
