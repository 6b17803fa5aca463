from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from scipy import stats

from clapforget import lab
from clapforget.bench.forgetters import MUST_HOLD, _table, compare, markdown, measure
from clapforget.bench.twin_request import AT, Look, TwinRequest, curve_area, lab_request, pairs_of
from clapforget.errors import UserError
from clapforget.scenarios.lab_data import lab as lab_data


@pytest.fixture(scope="module")
def request_one() -> TwinRequest:
    """Two classes to forget."""
    return lab_request(1)


@pytest.fixture(scope="module")
def before(lab_clip, request_one) -> Look:
    return request_one.look(lab_clip)


def test_what_a_method_is_shown_and_what_it_is_judged_by(request_one) -> None:
    r, known = request_one, set(lab.known_classes())
    assert len(r.forget) == 2 and len(r.memory) == 18 and len(r.bystanders) == 40
    assert {*r.forget, *r.memory, *r.bystanders} == known
    assert set(r.neighbours) <= known - set(r.forget) and r.neighbours
    assert len(r.task.forget) == 200 and len(r.task.retain) == 18 * 20
    names = [lab.class_names()[c] for c in r.memory]
    assert set(r.task.retain.names) == set(names)
    shown = {image.numpy().tobytes() for image in torch.cat([r.task.forget.images, r.task.retain.images])}  # fmt: skip
    assert not any(image.numpy().tobytes() in shown for image in r._images)
    assert [len(lab_request(seed).forget) for seed in (0, 2)] == [1, 3]


def test_the_built_in_model_knows_all_of_it(before) -> None:
    assert min(before.forget, before.retain, before.neighbours, before.bystanders) > 0.98
    assert min(before.captioned, before.retrieval, before.trained_forget) > 0.95
    assert before.cosine > 0.6 and before.curve[0] == before.forget and len(before.curve) == len(AT)


def test_harm_shows_where_it_was_done(lab_clip, request_one, before) -> None:
    """A bystander's name that is lost shows as a bystander, and nowhere else."""
    broken = lab_clip.trainable_copy([])
    alone = next(c for c in request_one.bystanders if c not in request_one.neighbours)
    ids = broken.tokenize([lab.class_names()[alone]])[0, 1:3]
    broken.model.token_embedding.weight[ids] = 0
    after = request_one.look(broken)
    assert before.bystanders - after.bystanders == pytest.approx(1 / 40, abs=0.01)
    assert after.retain == before.retain and after.forget == before.forget
    assert after.retrieval < before.retrieval


def test_each_figure_is_the_difference_that_it_says() -> None:
    twin = Look(0.0, 1.0, 1.0, 1.0, 0.0, 0.3, 1.0, 0.0, [0, 0, 1, 1, 1])
    start = replace(twin, forget=1.0, bystanders=0.9)
    ours = Look(0.1, 0.9, 0.8, 0.7, 0.2, 0.1, 0.6, 0.3, [0, 0.5, 1, 1, 1])
    row = compare(start, ours, twin, 0.05)
    wanted = {
        "forget": 0.1, "captioned": 0.2, "retain": 0.1, "neighbours": 0.2, "bystanders": 0.2,
        "cosine": 0.2, "relearning": 0.5 * 4 / 32, "retrieval": 0.4, "seconds": 0.05,
        "gap": (0.3 + 0.1 + (0.1 + 2 * 0.3) / 3 + 0.5 * 4 / 32) / 4,
    }  # fmt: skip
    assert row == pytest.approx(wanted)
    assert compare(twin, twin, twin, 0.0) == dict.fromkeys(wanted, 0.0)
    assert curve_area([1] * 5) == 1 and curve_area([0, 0, 0, 0, 1]) == pytest.approx(0.25)
    assert set(asdict(twin)) >= {"forget", "curve"}


def test_the_table_has_intervals_and_marks_what_fails() -> None:
    rows = {
        "good": [dict.fromkeys([*MUST_HOLD, "gap"], 0.0)] * 3,
        "bad": [dict.fromkeys([*MUST_HOLD, "gap"], x) for x in (0.2, 0.3, 0.7)],
    }
    table = _table(rows)
    assert list(table) == ["good", "bad"] and table["good"]["fails"] == []
    assert table["bad"]["fails"] == list(MUST_HOLD)
    low, high = stats.t.interval(0.95, 2, 0.4, stats.sem([0.2, 0.3, 0.7]))
    cell = table["bad"]["forget"]
    assert [cell["mean"], cell["low"], cell["high"]] == pytest.approx([0.4, low, high], abs=1e-4)
    lines = markdown({"table": table}).splitlines()
    assert len(lines) == 5 and "**0.400 ±" in lines[4] and "**" not in lines[3]
    assert np.all([line.count("|") == len(MUST_HOLD) + 3 for line in lines])


def test_data_without_captions_has_no_column_of_them(lab_clip) -> None:
    data = replace(lab_data(110, 5, seed=2), captions=None)
    request = TwinRequest(data, 1)
    seen = request.look(lab_clip)
    assert seen.captioned is None and seen.retrieval is None and seen.forget > 0.9
    row = compare(seen, seen, seen, 0.0)
    assert set(MUST_HOLD) - set(row) == {"captioned", "retrieval"}
    lines = markdown({"table": _table({"nothing": [row] * 2})}).splitlines()
    assert "captioned" not in lines[0] and len({line.count("|") for line in lines}) == 1


def test_images_to_relearn_from_are_not_those_that_were_given(request_one) -> None:
    data, classes = request_one.data, request_one.forget
    given, later = pairs_of(data, classes, 100), pairs_of(data, classes, 5, 100)
    assert later.names == [data.class_names[c] for c in classes for _ in range(5)]
    shown = {image.numpy().tobytes() for image in given.images}
    assert not any(image.numpy().tobytes() in shown for image in later.images)


def test_an_unknown_world_is_refused_before_anything_is_trained(tmp_path) -> None:
    with pytest.raises(UserError, match="folder"):
        measure([0], tmp_path, scenario="folder")
    with pytest.raises(UserError, match="nonesuch"):
        measure([0], tmp_path, ["nonesuch"])
