from __future__ import annotations

import html
import json
import re

import pytest

from clapforget import lab
from clapforget.report.front import pareto_fronts, scatter
from clapforget.unlearn import ForgetTask, Pairs, make_forgetter


@pytest.fixture(scope="module")
def notes(lab_clip) -> dict:
    """What SLUG says about two classes."""

    def pairs(classes: list[int], each: int) -> Pairs:
        index = [c + 100 * i for c in classes for i in range(each)]
        return Pairs(lab.draw("train", index), [lab.class_names()[i % 100] for i in index])

    task = ForgetTask(pairs([0, 1], 8), pairs([3, 4, 6], 8), lab.TEMPLATES[:1], lab.class_names())
    options = {"evaluations": 2, "towers": "text"}
    found = make_forgetter("slug", options).unlearn(lab_clip, task).notes
    return json.loads(json.dumps(found))


def test_every_concept_has_a_figure_with_its_front_and_its_choice(notes) -> None:
    fronts = pareto_fronts(notes, "Request 1")
    assert [f["concept"] for f in fronts] == ["dosal", "pafom"]
    for front, choice in zip(fronts, notes["choice"]):
        assert front["chosen"] == choice["tensor"]
        plain = html.unescape(re.sub(r"<[^>]+>", " ", front["plot"]))
        assert f"edited: {choice['tensor']}" in plain and "text tower, front" in plain
        assert f"Pareto front for {front['concept']}" in front["plot"]


def test_a_dot_for_every_tensor(notes) -> None:
    rows = [r for r in notes["front"] + notes["dominated"] if r["concept"] == "dosal"]
    keys = ("tensor", "tower", "alignment", "importance")
    points = [(*(row[key] for key in keys), i < 2) for i, row in enumerate(rows)]
    few, many = (scatter(some, "", "t").count("<use") for some in (points[:4], points))
    assert many - few >= len(points) - 4


def test_a_forgetter_without_a_front_has_no_figure() -> None:
    assert pareto_fronts({}, "x") == pareto_fronts({"front": None, "choice": [3]}, "x") == []
    broken = {"front": [{"concept": "a", "alignment": None, "importance": 1.0}]}
    assert pareto_fronts(broken, "x") == []
