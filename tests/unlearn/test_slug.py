from __future__ import annotations

import json
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from clapforget import lab
from clapforget.errors import UserError
from clapforget.unlearn import Pairs, Unlearned, make_forgetter

FEW = lab.class_names()[:20]
NONE = Pairs(torch.zeros(0, 3, 32, 32, dtype=torch.uint8), [])


def run(clip, task, name: str = "slug", **overrides) -> Unlearned:
    return make_forgetter(name, overrides).unlearn(clip, task)


def moved(clip, result: Unlearned) -> dict[str, Tensor]:
    before = clip.model.state_dict()
    after = result.clip.model.state_dict()
    return {n: after[n] - v for n, v in before.items() if not torch.equal(after[n], v)}


@pytest.fixture(scope="module")
def request_of():
    """``request_of(classes)``: forget them, keep six others, by a vocabulary of twenty names."""
    from clapforget.unlearn import ForgetTask

    def make(classes, **changes) -> ForgetTask:
        def pairs(labels, each: int) -> Pairs:
            index = [c + 100 * i for c in labels for i in range(each)]
            return Pairs(lab.draw("train", index), [lab.class_names()[i % 100] for i in index])

        options = {
            "forget": pairs(classes, 24), "retain": pairs([4, 6, 7, 11, 14, 15], 8),
            "templates": lab.TEMPLATES, "vocabulary": FEW, "seed": 0,
        } | changes  # fmt: skip
        return ForgetTask(**options)

    return make


@pytest.fixture(scope="module")
def result(lab_clip, request_of) -> Unlearned:
    return run(lab_clip, request_of([0]))


def test_exactly_one_tensor_differs_and_by_what_was_chosen(lab_clip, result) -> None:
    (choice,) = result.notes["choice"]
    change = moved(lab_clip, result)
    assert list(change) == [choice["tensor"]] and result.steps == 1
    share = change[choice["tensor"]].norm() / lab_clip.model.get_parameter(choice["tensor"]).norm()
    assert choice["relative_change"] == pytest.approx(share.item(), rel=1e-3)


def test_the_step_goes_up_the_forget_loss(lab_clip, request_of, result) -> None:
    """Along the chosen tensor's gradient, the matched cosine falls, the more the further."""
    (choice,) = result.notes["choice"]
    delta = moved(lab_clip, result)[choice["tensor"]]
    forget = request_of([0]).forget
    changed, cosines = lab_clip.trainable_copy([]), []
    parameter = changed.model.get_parameter(choice["tensor"])
    for share in (0, 0.001, 0.01, 0.02, 0.03):
        parameter.copy_(lab_clip.model.get_parameter(choice["tensor"]))
        parameter.add_(delta * (share / choice["relative_change"]))
        t = changed.encode_names(["dosal"], lab.TEMPLATES)[0]
        cosines.append((changed.encode_image(forget.images) @ t.T).mean().item())
    assert all(later < earlier for earlier, later in pairwise(cosines))


def test_every_candidate_on_the_front_is_evaluated_ten_times_from_ten_percent(result) -> None:
    notes = result.notes
    tensors = [row["tensor"] for row in notes["front"]]
    evaluated = [trial["tensor"] for trial in notes["evaluations"]]
    assert len(tensors) == len(set(tensors)) > 1
    assert evaluated == [name for name in tensors for _ in range(10)]
    for trial in notes["evaluations"][::10]:
        assert trial["relative_change"] == pytest.approx(0.1)
    assert not set(tensors) & {row["tensor"] for row in notes["dominated"]}


def test_the_choice_is_the_rule_over_all_evaluations(result) -> None:
    trials = result.notes["evaluations"]
    gone = [t for t in trials if t["forget_top1"] == 0]
    kept = max(t["retain_top1"] for t in gone)
    best = min((t for t in gone if t["retain_top1"] == kept), key=lambda t: t["relative_change"])
    assert result.notes["choice"] == [best | {"gone": True}]
    scores = ("forget_top1", "forget_top5", "retain_top1", "forget_lead")
    assert result.notes["after"] == pytest.approx({k: best[k] for k in scores}, abs=1e-3)
    assert result.notes["remarks"] == []


def test_it_forgets_images_it_never_saw(lab_clip, result) -> None:
    images = lab.draw("test", [100 * i for i in range(20)])

    def accuracy(clip) -> float:
        names = clip.class_features(FEW, lab.TEMPLATES)
        return ((clip.encode_image(images) @ names.T).argmax(1) == 0).float().mean().item()

    assert accuracy(lab_clip) > 0.9
    assert accuracy(result.clip) < 0.5


def test_notes_are_plain_json(result) -> None:
    assert json.loads(json.dumps(result.notes)) == result.notes
    assert result.notes["held_out"] == {"forget": 6, "retain": 12}
    assert set(result.notes["front"][0]) == {
        "concept", "tensor", "tower", "importance", "alignment"
    }  # fmt: skip


def test_the_original_is_untouched_and_nothing_trains(lab_clip, result) -> None:
    from clapforget import load_clip

    assert lab_clip.fingerprint() == load_clip("lab-tiny").fingerprint()
    assert not any(p.requires_grad or p.grad is not None for p in lab_clip.model.parameters())
    assert not any(p.requires_grad for p in result.clip.model.parameters())
    assert not result.clip.model.training


@pytest.mark.parametrize(("tower", "preset"), [("image", "slug:published"), ("text", "slug")])
def test_only_the_chosen_tower_and_the_seed_decides(
    lab_clip, request_of, tower: str, preset: str
) -> None:
    options = {"towers": tower, "evaluations": 1}
    torch.manual_seed(0)
    first = run(lab_clip, request_of([0]), preset, **options)
    torch.manual_seed(1)
    again = run(lab_clip, request_of([0]), preset, **options)
    assert {row["tower"] for row in first.notes["front"] + first.notes["dominated"]} == {tower}
    assert set(moved(lab_clip, first)) <= set(lab_clip.parameter_names(tower))  # no statistics
    assert first.notes == again.notes and first.clip.fingerprint() == again.clip.fingerprint()
    other = run(lab_clip, request_of([0], seed=1), preset, **options)
    assert other.notes["front"] != first.notes["front"]


def test_train_mode_and_positives_have_other_gradients(lab_clip, request_of) -> None:
    """The retain gradient alone knows of positives: importance stays, alignment does not."""
    request = request_of([0])
    rows = [
        run(lab_clip, request, evaluations=1, **options).notes
        for options in ({}, {"positives": "diagonal"}, {"mode": "train"})
    ]

    def column(notes, key: str) -> dict[str, float]:
        return {row["tensor"]: row[key] for row in notes["front"] + notes["dominated"]}

    plain, diagonal, train = rows
    assert column(plain, "importance") == column(diagonal, "importance")
    assert column(plain, "alignment") != column(diagonal, "alignment")
    assert column(plain, "importance") != column(train, "importance")


def test_two_concepts_are_both_found_on_the_original_model_and_applied_at_once(
    lab_clip, request_of
) -> None:
    options = {"evaluations": 3, "top": 1, "towers": "text"}
    both = run(lab_clip, request_of([0, 12]), **options).notes
    alone = run(lab_clip, request_of([0]), **options).notes

    def importance(notes) -> dict[str, float]:
        rows = notes["front"] + notes["dominated"]
        return {row["tensor"]: row["importance"] for row in rows if row["concept"] == "dosal"}

    assert importance(both) == importance(alone)
    assert [c["concept"] for c in both["choice"]] == ["dosal", FEW[12]]
    assert len(both["evaluations"]) == 3 * len(both["front"])
    assert both["held_out"]["forget"] == 2 * alone["held_out"]["forget"]


def test_updates_of_different_tensors_add_up(lab_clip, request_of) -> None:
    result = run(lab_clip, request_of([0, 12]), evaluations=2, towers="both", top=1)
    choices = {choice["tensor"]: choice for choice in result.notes["choice"]}
    assert len(choices) == 2 and not result.notes["common_scale"], "both chose one tensor"
    change = moved(lab_clip, result)
    assert set(change) == set(choices)
    for name, delta in change.items():
        share = (delta.norm() / lab_clip.model.get_parameter(name).norm()).item()
        assert share == pytest.approx(choices[name]["relative_change"], rel=1e-3)


def test_concepts_that_choose_one_tensor_share_a_scale(lab_clip, request_of) -> None:
    """The same images under one name in two spellings want the same tensor."""
    images = request_of([0]).forget.images[:12]
    names = ["dosal"] * 12 + ["dosal "] * 12  # the tokeniser strips: one text, two concepts
    twins = request_of([0], forget=Pairs(torch.cat([images, images]), names))
    result = run(lab_clip, twins, evaluations=4, top=1, towers="text", validation=0.0)
    tensors = {choice["tensor"] for choice in result.notes["choice"]}
    assert len(tensors) == 1
    shared = result.notes["common_scale"]
    assert len(shared) == 4 and shared[0]["step"] == 1.0
    assert {trial["tensor"] for trial in shared} == tensors == set(moved(lab_clip, result))
    best = min(shared, key=lambda t: (t["forget_top1"], -t["retain_top1"], t["relative_change"]))
    assert best["step"] < 1, "each update alone suffices, so less than both together does"
    (change,) = moved(lab_clip, result).values()
    share = change.norm() / lab_clip.model.get_parameter(best["tensor"]).norm()
    assert share.item() == pytest.approx(best["relative_change"], rel=1e-3)


def test_captions_are_one_concept_unless_told_otherwise(lab_clip, request_of) -> None:
    index = [100 * i for i in range(4)]
    texts = lab.captions("train", index, variant=0)
    assert len(set(texts)) > 2
    request = request_of([0], forget=Pairs(lab.draw("train", index), texts), templates=("{}",))
    result = run(lab_clip, request, evaluations=1, towers="text")
    assert [c["concept"] for c in result.notes["choice"]] == ["the forget set"]
    with pytest.raises(UserError, match="1 pair cannot be split"):
        run(lab_clip, request, concepts="names")
    twice = Pairs(lab.draw("train", index), texts[:2] * 2)
    told = request_of([0], forget=twice, templates=("{}",), captions=True)
    result = run(lab_clip, told, evaluations=1, towers="text")
    assert [c["concept"] for c in result.notes["choice"]] == ["the forget set"]


def test_a_step_too_small_is_said(lab_clip, request_of) -> None:
    result = run(lab_clip, request_of([0]), evaluations=1, towers="text", norms=False)
    (choice,) = result.notes["choice"]
    assert choice["gone"] == (choice["forget_top1"] == 0)
    assert len(result.notes["remarks"]) == (not choice["gone"])
    least = min(t["forget_top1"] for t in result.notes["evaluations"])
    assert choice["forget_top1"] == least


def test_progress_is_told_every_evaluation(lab_clip, request_of) -> None:
    told: list[tuple[int, int]] = []
    request = request_of([0], progress=lambda *step: told.append(step))
    result = run(lab_clip, request, evaluations=2, towers="text")
    total = 2 * len(result.notes["front"])
    assert told == [(i + 1, total) for i in range(total)]


def test_both_sets_are_needed(lab_clip, request_of) -> None:
    with pytest.raises(UserError, match="forget set is empty"):
        run(lab_clip, request_of([0], forget=NONE))
    with pytest.raises(UserError, match="retain set is empty"):
        run(lab_clip, request_of([0], retain=NONE))


@pytest.mark.parametrize(
    "wrong",
    [{"batch_size": 0}, {"evaluations": 0}, {"top": 3}, {"validation": 1.0}, {"validation": -0.1}],
)
def test_numbers_that_cannot_work_are_refused(wrong: dict) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        make_forgetter("slug", wrong)
