"""Images under many changes: what each way makes of them, and which change is the best."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from clapforget.clip import Clip
from clapforget.verify import Subject
from clapforget.verify.material import Part
from clapforget.verify.witnesses.answers import hits, own_probability
from clapforget.verify.witnesses.changes import looked_at, surest, under_the_best
from clapforget.verify.witnesses.transforms import TRANSFORMS
from tests.verify.worlds import clip, material, subject

CHANGES = [*TRANSFORMS.values(), torch.zeros_like]


def headed() -> Subject:
    """A head that answers as bare CLIP does, with the last class's column for the first's."""
    text = clip().class_features(material().names, material().templates).detach()
    return Subject(clip(), lambda v, images: clip().scale * v @ text.roll(1, 0).T, range(len(text)))


@pytest.mark.parametrize("images", [3, 60, 300])
def test_every_change_is_looked_at_as_if_it_were_the_only_one(images: int) -> None:
    part = material().test["retain"]
    part = Part(part.images[:images], part.labels[:images])
    bare, head = looked_at(headed(), part, CHANGES, lambda way, x: own_probability(way, material(), x))
    assert bare.shape == head.shape == (len(CHANGES), len(part))
    for i, change in enumerate(CHANGES):
        changed = Part(change(part.unit), part.labels)
        for got, way in ((bare, subject()), (head, headed())):
            torch.testing.assert_close(got[i], own_probability(way.passing(), material(), changed))


def test_an_image_is_encoded_once_for_both_ways_and_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    part, looked = material().test["forget"], list[int]()
    look = Clip.encode_image
    monkeypatch.setattr(Clip, "encode_image", lambda self, x: looked.append(len(x)) or look(self, x))
    fresh = headed()
    surest(fresh, material(), part, CHANGES)
    assert sum(looked) == len(CHANGES) * len(part)
    assert len(looked) < len(CHANGES) / 2, "several changes in a batch"
    assert max(looked) <= 256 and not fresh._features


def test_all_images_choose_by_how_many_are_answered() -> None:
    m, part = material(), material().test["forget"]
    each = torch.stack([hits(subject().passing(), m, 1, Part(c(part.unit), part.labels)) for c in CHANGES])
    (got,) = under_the_best(subject(), m, part, CHANGES)
    assert got.mean() == each.mean(1).max() > each.mean(1).min()
    assert any(torch.equal(got, row) for row in each)


def test_few_images_choose_by_how_probable_the_answers_are() -> None:
    m, part = material(), material().test["forget"]
    few = part.first(2)
    likely = [own_probability(subject().passing(), m, Part(c(few.unit), few.labels)) for c in CHANGES]
    best = CHANGES[int(torch.stack(likely).mean(1).argmax())]
    (sure,) = surest(subject(), m, few, CHANGES)
    torch.testing.assert_close(sure, torch.stack(likely).clamp_min(1e-3).log().mean(1))
    (got,) = under_the_best(subject(), m, part, CHANGES, few)
    assert torch.equal(got, hits(subject().passing(), m, 1, Part(best(part.unit), part.labels)))


def test_each_way_has_a_best_change_of_its_own() -> None:
    m, part = material(), material().test["forget"]
    black, same = torch.zeros_like, torch.clone

    def answer(v: Tensor, images: Tensor) -> Tensor:
        """Knows the first class on black images alone."""
        logits = v.new_zeros(len(v), len(m.names))
        logits[images.amax((1, 2, 3)) == 0, m.forget[0]] = 9.0
        return logits

    head = Subject(clip(), answer, range(len(m.names)))
    own = Part(part.images[part.labels == m.forget[0]], part.labels[part.labels == m.forget[0]])
    for few in (None, own.first(2)):
        bare, answered = under_the_best(head, m, own, [black, same], few)
        assert answered.mean() == 1 and bare.mean() > 0.5
        (alone,) = under_the_best(subject(), m, own, [same])
        assert torch.equal(bare, alone)
