from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.classification import multiclass_accuracy

from clapforget import lab
from clapforget.errors import UserError
from clapforget.seeding import generator_for
from clapforget.unlearn import Pairs
from clapforget.unlearn.search import Judge, Score, Trial, bisect, choose, hold_out, try_direction


@given(st.lists(st.sampled_from("abc"), min_size=2, max_size=40), st.floats(0.01, 0.99))
def test_held_out_pairs_are_a_share_of_every_name_and_no_pair_is_in_both(
    names: list[str], fraction: float
) -> None:
    images = torch.arange(len(names)).view(-1, 1, 1, 1).expand(-1, 3, 1, 1)
    seen, held = hold_out(Pairs(images, names), fraction, generator_for(0))
    ids = [part.images[:, 0, 0, 0].tolist() for part in (seen, held)]
    assert sorted(ids[0] + ids[1]) == list(range(len(names)))
    assert all(part.names == [names[i] for i in rows] for part, rows in zip((seen, held), ids))
    share = len(held) / len(names)
    assert len(held) == min(max(round(fraction * len(names)), 1), len(names) - 1)
    for name in set(names):
        assert abs(held.names.count(name) - share * names.count(name)) < 1.0001


def test_without_a_fraction_both_parts_are_the_whole_and_one_pair_has_no_parts() -> None:
    one = Pairs(torch.zeros(1, 3, 2, 2), ["a"])
    assert hold_out(one, 0.0, generator_for(0)) == (one, one)
    with pytest.raises(UserError, match=r"1 pair cannot be split.*validation=0"):
        hold_out(one, 0.5, generator_for(0))


def test_what_is_held_out_is_drawn_from_the_seed() -> None:
    pairs = Pairs(torch.arange(60).view(-1, 1, 1, 1).expand(-1, 3, 1, 1), ["a"] * 60)

    def ids(seed: int) -> list[int]:
        return hold_out(pairs, 0.25, generator_for(seed))[1].images[:, 0, 0, 0].tolist()

    assert ids(0) == ids(0) != ids(1)


@given(st.floats(0.01, 300))
def test_the_search_closes_in_on_a_threshold_from_both_sides(threshold: float) -> None:
    asked: list[float] = []

    def gone(step: float) -> bool:
        asked.append(step)
        return step >= threshold

    bisect(gone, 1.0, 10)
    assert len(asked) == 10 and asked[0] == 1.0
    above, below = ([s for s in asked if (s >= threshold) == side] for side in (True, False))
    if above and below:  # the bracket has been halved ever since there was one
        first = next(i for i, step in enumerate(asked) if step >= threshold)
        width = asked[first] - max([s for s in asked[:first] if s < threshold], default=0.0)
        assert min(above) - max(below) <= width / 2 ** (9 - first) * (1 + 1e-9)
    elif below:
        assert asked == [2.0**i for i in range(10)]


def trial(forget: float, retain: float, change: float, name: str = "t") -> Trial:
    return Trial("c", name, "text", 1.0, change, Score(forget, forget, retain))


def test_the_outcome_forgets_first_then_keeps_then_changes_least() -> None:
    assert choose([trial(0, 0.8, 0.1), trial(0, 0.9, 0.3), trial(0.1, 1.0, 0.01)]) == (
        trial(0, 0.9, 0.3), True,
    )  # fmt: skip
    assert choose([trial(0, 0.9, 0.3, "a"), trial(0, 0.9, 0.2, "b")])[0].tensor == "b"
    # Where nothing forgets all, the least left, however much that costs.
    assert choose([trial(0.5, 1.0, 0.1), trial(0.2, 0.3, 0.9)]) == (trial(0.2, 0.3, 0.9), False)


@pytest.fixture(scope="module")
def held() -> tuple[Pairs, Pairs]:
    def make(classes: list[int]) -> Pairs:
        index = [c + 100 * i for c in classes for i in range(5)]
        return Pairs(lab.draw("test", index), [lab.class_names()[i % 100] for i in index])

    return make([0, 1, 3]), make([4, 6, 7])


def test_accuracies_are_torchmetrics_on_all_names(lab_clip, held) -> None:
    judge = Judge(lab_clip, *held, lab.class_names(), lab.TEMPLATES)
    broken = lab_clip.trainable_copy([])
    torch.nn.init.normal_(broken.model.text_projection, generator=generator_for(1))
    t = broken.class_features(lab.class_names(), lab.TEMPLATES)
    whole = lab_clip.class_features(lab.class_names(), lab.TEMPLATES)
    for clip, names in ((lab_clip, whole), (broken, t)):
        score = judge(clip)
        logits = [clip.encode_image(part.images) @ names.T for part in held]
        labels = [torch.tensor([lab.class_names().index(n) for n in p.names]) for p in held]
        for part, k, got in (
            (0, 1, score.forget_top1), (0, 5, score.forget_top5), (1, 1, score.retain_top1),
        ):  # fmt: skip
            wanted = multiclass_accuracy(logits[part], labels[part], 100, "micro", top_k=k)
            assert got == pytest.approx(wanted.item())
    assert judge(lab_clip) != judge(broken)


def test_only_the_changed_tower_is_encoded_again(lab_clip, held) -> None:
    """Reusing the other tower's features changes no score, and does reuse them."""
    judge = Judge(lab_clip, *held, lab.class_names()[:20], lab.TEMPLATES)
    for tower, name in (("text", "text_projection"), ("image", "visual.attnpool.c_proj.weight")):
        changed = lab_clip.trainable_copy([])
        torch.nn.init.normal_(changed.model.get_parameter(name), generator=generator_for(2))
        assert judge.watching([name])(changed) == judge(changed) != judge(lab_clip)
        other = lab_clip.parameter_names("image" if tower == "text" else "text")
        assert judge.watching(other)(changed) == judge(lab_clip)


def test_names_that_the_vocabulary_lacks_are_added(lab_clip, held) -> None:
    judge = Judge(lab_clip, *held, ["pafom"], lab.TEMPLATES)
    assert judge.names == list(dict.fromkeys(["pafom", *held[0].names, *held[1].names]))


def test_a_model_that_answers_nothing_is_right_nowhere(lab_clip, held) -> None:
    judge = Judge(lab_clip, *held, lab.class_names()[:20], lab.TEMPLATES)
    broken = lab_clip.trainable_copy([])
    broken.model.text_projection.fill_(math.nan)
    assert judge(broken) == Score(0.0, 0.0, 0.0)


def test_a_margin_asks_that_every_image_s_own_name_is_far_behind(lab_clip, held) -> None:
    def led(lead: float, retain: float) -> Trial:
        return Trial("c", "t", "text", 1.0, 0.1, Score(float(lead >= 0), 1.0, retain, lead))

    edge, far, kept = led(-0.1, 0.9), led(-4.0, 0.7), led(0.5, 1.0)
    assert choose([edge, far, kept]) == choose([edge, far, kept], 0.05) == (edge, True)
    assert choose([edge, far, kept], 3.0) == (far, True)
    assert choose([edge, led(-1.0, 0.2)], 3.0)[0].score.forget_lead == -1.0, "the nearest to it"
    assert choose([kept, led(2.0, 1.0)], 3.0) == (kept, False)

    judge = Judge(lab_clip, *held, lab.class_names(), lab.TEMPLATES)
    score = judge(lab_clip)
    logits = lab_clip.scale * judge.logits(lab_clip)[: len(held[0])]
    own = [lab.class_names().index(name) for name in held[0].names]
    leads = [row[i] - row[torch.arange(100) != i].max() for row, i in zip(logits, own)]
    assert score.forget_lead == pytest.approx(max(leads).item(), abs=1e-3) and score.forget_lead > 0


def test_a_search_with_a_margin_goes_beyond_the_edge(lab_clip, held) -> None:
    one = Pairs(held[0].images[:5], held[0].names[:5])
    assert len(set(one.names)) == 1
    judge = Judge(lab_clip, one, held[1], lab.class_names()[:20], lab.TEMPLATES)
    u = lab_clip.class_features(one.names[:1], ["a {}"])
    direction = -lab_clip.model.text_projection @ u.T @ u
    changed = lab_clip.trainable_copy([])
    found: list[float] = []
    margin = 0.0
    for _ in range(2):
        trials = try_direction(
            judge, changed, "c", "text_projection", "text", direction, 8, 1, margin=margin
        )
        trial, gone = choose(trials, margin)
        assert gone and trial.score.forget_lead <= -margin
        found.append(trial.relative_change)
        margin = 1 - trial.score.forget_lead
    assert found[0] < found[1]


@pytest.mark.parametrize("top", [1, 5])
def test_a_direction_is_tried_from_the_original_weights_and_they_come_back(
    lab_clip, held, top: int
) -> None:
    names = lab.class_names()[:20]
    judge = Judge(lab_clip, *held, names, lab.TEMPLATES)
    changed = lab_clip.trainable_copy([])
    original = lab_clip.model.text_projection
    basis = torch.linalg.qr(lab_clip.class_features([names[0], names[1], names[3]], ["a {}"]).T)[0]
    direction = -original @ basis @ basis.T
    trials = try_direction(
        judge, changed, "c", "text_projection", "text", direction, 6, top, tick=lambda: None
    )
    assert changed.fingerprint() == lab_clip.fingerprint()
    assert len(trials) == 6 and trials[0].relative_change == pytest.approx(0.1)
    for t in trials:
        again = lab_clip.trainable_copy([])
        again.model.text_projection.add_(t.step * direction)
        assert judge(again) == t.score
        share = (again.model.text_projection - original).norm() / original.norm()
        assert t.relative_change == pytest.approx(share.item(), rel=1e-4)
    left = [t.score.forget_top1 if top == 1 else t.score.forget_top5 for t in trials]
    first = left.index(0)  # doubled up to here, halved from here
    steps = [t.step / trials[0].step for t in trials]
    assert steps[: first + 1] == pytest.approx([2.0**i for i in range(first + 1)])
    assert first < 5 and all(steps[first - 1] <= step < steps[first] for step in steps[first + 1 :])
    assert json.loads(json.dumps(trials[0].as_json()))["forget_top1"] == trials[0].score.forget_top1


def test_with_five_names_the_first_rank_is_asked_for(lab_clip, held) -> None:
    """Every name is among the first five then, whatever is done."""
    forget = Pairs(held[0].images[:5], held[0].names[:5])
    judge = Judge(lab_clip, forget, Pairs(held[1].images, held[1].names), [], lab.TEMPLATES)
    assert len(judge.names) == 4
    changed = lab_clip.trainable_copy([])
    u = lab_clip.class_features(forget.names[:1], ["a {}"])
    direction = -lab_clip.model.text_projection @ u.T @ u
    trials = try_direction(judge, changed, "c", "text_projection", "text", direction, 8, 5)
    assert all(t.score.forget_top5 == 1 for t in trials)
    assert choose(trials)[1] and max(t.step for t in trials) < 2**7 * trials[0].step
