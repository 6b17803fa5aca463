from __future__ import annotations

import pytest
import torch

from clapforget import lab
from clapforget.errors import UserError
from clapforget.unlearn import ForgetTask, Pairs, make_forgetter
from clapforget.unlearn.validation import Validation, hold_out_task


def content(pairs: Pairs) -> list[tuple[str, bytes]]:
    return [(name, image.numpy().tobytes()) for name, image in zip(pairs.names, pairs.images)]


@pytest.mark.parametrize(("fraction", "held"), [(0.25, (4, 8)), (0.01, (1, 1)), (0.99, (15, 29))])
def test_a_task_is_split_without_overlap_or_loss(task, fraction: float, held) -> None:
    request = task()
    train, rest = hold_out_task(request, fraction)
    assert (len(rest.forget), len(rest.retain)) == held
    for which in ("forget", "retain"):
        whole, one, other = (content(getattr(t, which)) for t in (request, train, rest))
        assert sorted(one + other) == sorted(whole) and not set(one) & set(other)
    assert train.templates == rest.templates == request.templates
    again, _ = hold_out_task(task(), fraction)
    assert content(again.retain) == content(train.retain)
    other, _ = hold_out_task(task(seed=1), 0.25)
    assert content(other.retain) != content(hold_out_task(task(), 0.25)[0].retain)


def test_an_empty_retain_set_stays_empty_and_one_pair_is_too_few(task) -> None:
    request = task()
    none = Pairs(request.retain.images[:0], [])
    train, held = hold_out_task(task(retain=none), 0.5)
    assert len(train.retain) == len(held.retain) == 0
    with pytest.raises(UserError, match="1 pair cannot be split"):
        hold_out_task(task(forget=Pairs(request.forget.images[:1], ["dosal"])), 0.5)


@pytest.mark.parametrize("frozen", [True, False])
def test_the_best_look_is_kept_and_put_back(lab_clip, task, frozen: bool) -> None:
    """Looks: the model as it is (1 − 1), one that calls everything the forgotten name (0 − 1), one
    that does not know it (1 − 0) twice, and the model as it is again."""
    request = task(vocabulary=())
    clip = lab_clip.trainable_copy(["text_projection"])
    chosen = {"text_projection": clip.model.text_projection}
    t = lab_clip.class_features(["dosal"], lab.TEMPLATES)[0]
    validation = Validation(lab_clip, request, lab_clip.parameter_names("text" if frozen else None))
    original = clip.model.text_projection.detach().clone()

    def set_to(value: torch.Tensor) -> None:
        with torch.no_grad():
            clip.model.text_projection.copy_(value)

    without = original - torch.outer(original @ t, t)
    for step, value in enumerate([original, -original, without, without + 1e-6, original], 1):
        set_to(value)
        validation.look(clip, step, chosen)
    rules = [x["retain_accuracy"] - x["forget_accuracy"] for x in validation.history]
    assert rules[0] == 0 and rules[1] <= 0 < rules[2] == max(rules)
    assert [x["step"] for x in validation.history] == [1, 2, 3, 4, 5]
    assert validation.best_step == 3
    validation.restore(chosen)
    assert torch.equal(clip.model.text_projection, without)


def test_accuracy_is_among_all_names_of_the_task(lab_clip, task, pairs) -> None:
    known = list(lab.known_classes())[:12]
    for vocabulary in ((), lab.class_names()):
        held = ForgetTask(pairs(known[:6], 3, "test"), pairs(known[6:], 2, "test"),
                          ("a {}",), vocabulary)  # fmt: skip
        clip = lab_clip.trainable_copy([])
        clip.model.text_projection.data *= torch.linspace(-1, 1, 128)  # right only sometimes
        validation = Validation(clip, held, changing=clip.parameter_names())
        validation.look(clip, 1, {})
        names = [*(lab.class_names()[c] for c in known), *vocabulary]
        t = clip.encode_text([f"a {name}" for name in names])
        wanted = []
        for part in (held.forget, held.retain):
            best = (clip.encode_image(part.images) @ t.T).argmax(1).tolist()
            hits = [names[i] == name for i, name in zip(best, part.names)]
            wanted.append(sum(hits) / len(hits))
        look = validation.history[0]
        got = [look["forget_accuracy"], look["retain_accuracy"]]
        assert got == pytest.approx(wanted, abs=1e-5)
        assert 0 < sum(wanted) < 2


def test_training_returns_the_best_epoch_and_never_sees_the_held_out_part(lab_clip, task) -> None:
    request = task(templates=("a {}",))
    options = {"steps": 8, "forget_batch": 4, "lr": 3e-3, "forgetting": "dot", "train": "text",
               "vocabulary_weight": 0.0}  # fmt: skip
    result = make_forgetter("cliperase", {**options, "validation": 0.25}).unlearn(lab_clip, request)
    history, best = result.notes["validation"], result.notes["best_step"]
    assert [look["step"] for look in history] == [3, 6, 8]
    rules = [look["retain_accuracy"] - look["forget_accuracy"] for look in history]
    assert best == history[rules.index(max(rules))]["step"] and best < 8
    assert result.steps == 8 == len(result.losses["forgetting"])
    train, _ = hold_out_task(request, 0.25)
    stopped = make_forgetter("cliperase", {**options, "steps": best}).unlearn(lab_clip, train)
    assert stopped.clip.fingerprint() == result.clip.fingerprint()
