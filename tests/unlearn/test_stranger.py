from __future__ import annotations

import gc
import weakref

import pytest
import torch

from clapforget import lab
from clapforget.errors import UserError
from clapforget.unlearn import Pairs, make_forgetter
from clapforget.unlearn import stranger as module
from clapforget.unlearn.strangers import text_tokens

NAMES = lab.class_names()


def right(clip, images, labels, template: str = "a {}") -> float:
    best = (clip.encode_image(images) @ clip.class_features(NAMES, [template]).T).argmax(1)
    return (best == torch.tensor(labels)).float().mean().item()


def test_the_name_is_forgotten_in_every_wording_and_no_other_text_moves_at_all(
    lab_clip, task
) -> None:
    request = task()
    result = make_forgetter("stranger").unlearn(lab_clip, request)
    images = request.forget.images
    for template in (*lab.TEMPLATES, "a small red {} on a navy background"):
        assert right(lab_clip, images, [0] * 16, template) > 0.9
        assert right(result.clip, images, [0] * 16, template) == 0
    others = [f"a large red {name} on a black background" for name in NAMES[1:]]
    assert torch.equal(result.clip.encode_text(others), lab_clip.encode_text(others))
    assert result.clip.fingerprint("image") == lab_clip.fingerprint("image")
    assert result.notes["by_rows"] == ["dosal"] and result.steps == 0


def test_only_rows_of_own_tokens_change_and_the_old_ones_are_gone(lab_clip, task) -> None:
    result = make_forgetter("stranger").unlearn(lab_clip, task())
    old, new = lab_clip.token_table.weight, result.clip.token_table.weight
    moved = (old != new).any(1).nonzero().flatten()
    assert torch.equal(moved, text_tokens(lab_clip, ["dosal"]))
    nearest = torch.cdist(new[moved], torch.cat([old, new[:: len(new) // 2000]])).min(1).values
    assert (nearest > 0.1 * old[moved].norm(dim=1)).all(), "a row that is another's gives it away"
    rest = [(n, p) for n, p in result.clip.model.named_parameters() if p.shape != new.shape]
    assert all(torch.equal(p, lab_clip.model.get_parameter(n)) for n, p in rest)


def test_the_cosine_ends_where_names_never_met_are(lab_clip, task, pairs) -> None:
    """The lab's 40 new names were never met: what they make of class 3 is what is aimed at."""
    request = task(forget=pairs([3], 16), retain=pairs([1, 4], 6))
    result = make_forgetter("stranger").unlearn(lab_clip, request)
    v = lab_clip.encode_image(pairs([3], 30, "test").images)
    new = [NAMES[c] for c in lab.new_classes()]
    met = (v @ lab_clip.class_features(new, lab.TEMPLATES).T).mean(0)
    after = (v @ result.clip.class_features([NAMES[3]], lab.TEMPLATES).T).mean().item()
    assert abs(after - met.mean().item()) < 0.1 < met.std().item() * 2
    assert result.notes["levels"][NAMES[3]] == pytest.approx(met.mean().item(), abs=0.1)


def test_names_without_own_tokens_are_trained_towards_a_stranger(lab_clip, task) -> None:
    """ "dosal" is not a token of its own where another name to keep is made of it."""
    request = task(vocabulary=(*NAMES, "dosal pafom"))
    result = make_forgetter("stranger").unlearn(lab_clip, request)
    assert result.notes["trained"] == ["dosal"] and result.steps == 80
    assert result.losses["forgetting"][-1] < 0.1 * result.losses["forgetting"][0]
    for template in ("a {}", "a small red {} on a navy background"):
        assert right(result.clip, request.forget.images, [0] * 16, template) == 0
    kept = lab.draw("test", range(1, 100))
    known = torch.tensor([c for c in range(1, 100) if c in lab.known_classes()])
    assert right(result.clip, kept[known - 1], known.tolist()) == 1
    result = make_forgetter("stranger", {"rows": False, "steps": 1}).unlearn(lab_clip, task())
    assert result.notes["trained"] == ["dosal"]


def test_a_name_that_stays_in_the_retain_set_stays(lab_clip, task, pairs) -> None:
    request = task(forget=pairs([0, 3], 4), retain=pairs([0, 1], 3))
    result = make_forgetter("stranger").unlearn(lab_clip, request)
    assert result.notes["by_rows"] == [NAMES[3]] and "dosal" in result.notes["remarks"][0]
    same = [name for name in NAMES if name != NAMES[3]]
    assert torch.equal(result.clip.encode_text(same), lab_clip.encode_text(same))
    nothing = make_forgetter("stranger").unlearn(lab_clip, task(retain=pairs([0, 1], 3)))
    assert nothing.clip.fingerprint() == lab_clip.fingerprint()


def test_captions_are_one_concept_and_what_few_of_them_say_stays(lab_clip, task, pairs) -> None:
    captions = ["a red dosal", "the blue dosal on navy", "one more dosal", "dosal and pafom"]
    request = task(
        forget=Pairs(pairs([0], 4).images, captions), templates=("{}",), vocabulary=(),
        retain=Pairs(pairs([1, 3], 2).images, ["a blue katut", "a red katut", "the girel", "on a"]),
    )  # fmt: skip
    result = make_forgetter("stranger").unlearn(lab_clip, request)
    assert result.notes["by_rows"] == captions[:1] and not result.notes["trained"]
    same = ["a small pafom", "one more"]
    assert torch.equal(result.clip.encode_text(same), lab_clip.encode_text(same))
    moved = (result.clip.encode_text(captions) * lab_clip.encode_text(captions)).sum(1)
    assert (moved < 0.9).all()


def test_captions_said_twice_are_still_one_concept(lab_clip, task, pairs) -> None:
    captions = ["a red dosal", "a red dosal", "one more dosal", "one more dosal"]
    request = task(
        forget=Pairs(pairs([0], 4).images, captions), templates=("{}",), vocabulary=(),
        retain=Pairs(pairs([1], 2).images, ["a blue katut", "a katut"]), captions=True,
    )  # fmt: skip
    result = make_forgetter("stranger").unlearn(lab_clip, request)
    assert result.notes["by_rows"] == captions[:1]
    same = ["a red katut", "one more"]
    assert torch.equal(result.clip.encode_text(same), lab_clip.encode_text(same))


def test_names_of_one_image_each_are_names_and_no_captions(lab_clip, task, pairs) -> None:
    request = task(forget=pairs([0, 3, 4], 1), retain=pairs([1, 6], 2))
    result = make_forgetter("stranger").unlearn(lab_clip, request)
    assert result.notes["by_rows"] == [NAMES[c] for c in (0, 3, 4)]
    others = [name for i, name in enumerate(NAMES) if i not in (0, 3, 4)]
    assert torch.equal(result.clip.encode_text(others), lab_clip.encode_text(others))


@pytest.mark.parametrize("rows", [True, False])
def test_a_stranger_is_chosen_by_a_few_captions_and_few_are_all(
    lab_clip, task, pairs, monkeypatch, rows: bool
) -> None:
    captions = [f"a {c} dosal on {b}" for c in ("red", "blue", "pink") for b in ("navy", "gray")]
    request = task(
        forget=Pairs(pairs([0], 6).images, captions), templates=("{}",), vocabulary=(),
        retain=Pairs(pairs([1], 2).images, ["a blue katut", "a red katut"]),
    )  # fmt: skip
    chosen = module._choose
    shapes: list[tuple[int, int]] = []

    def watched(concepts, features, count, rest):
        shapes.append((len(concepts[0].texts), len(features(0)[0])))
        return chosen(concepts, features, count, rest)

    monkeypatch.setattr(module, "_choose", watched)
    settings = {"rows": rows, "steps": 2, "strangers": 6}
    prints = []
    for asked in (4, 6, 100):
        method = make_forgetter("stranger", {**settings, "asked": asked})
        prints.append(method.unlearn(lab_clip, request).clip.fingerprint("text"))
    assert shapes == [(6, 4), (6, 6), (6, 6)] and prints[1] == prints[2]
    assert module._spread(captions, 4) == [captions[i] for i in (0, 1, 3, 5)]


def test_the_same_seed_draws_the_same_and_another_another(lab_clip, task) -> None:
    prints = [
        make_forgetter("stranger").unlearn(lab_clip, task(seed=seed)).clip.fingerprint("text")
        for seed in (0, 0, 1)
    ]
    assert prints[0] == prints[1] != prints[2]


def test_nothing_of_the_request_outlives_it(lab_clip, task, monkeypatch) -> None:
    alive: list[weakref.ref] = []

    class Watched(module._Concept):
        def __init__(self, texts, images, own) -> None:
            super().__init__(texts, images, own)
            alive.append(weakref.ref(self.images))

    monkeypatch.setattr(module, "_Concept", Watched)
    result = make_forgetter("stranger").unlearn(lab_clip, task())
    gc.collect()
    assert len(alive) == 1 and alive[0]() is None and result.clip is not None


@pytest.mark.parametrize("setting", ["strangers", "asked", "steps", "batch", "lr"])
def test_numbers_that_cannot_work_are_refused(setting: str) -> None:
    with pytest.raises(UserError, match=f"setting {setting}="):
        make_forgetter("stranger", {setting: 0})
    with pytest.raises(UserError, match="keep_weight"):
        make_forgetter("stranger", {"keep_weight": -1.0})


def test_an_empty_forget_set_is_refused(lab_clip, task) -> None:
    empty = Pairs(torch.zeros(0, 3, 32, 32, dtype=torch.uint8), [])
    with pytest.raises(UserError, match="forget set is empty"):
        make_forgetter("stranger").unlearn(lab_clip, task(forget=empty))
