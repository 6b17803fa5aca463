from __future__ import annotations

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F

from clapforget import lab
from clapforget.unlearn import FORGETTERS, ForgetTask, Pairs, make_forgetter
from clapforget.unlearn.batches import Batches

EMPTY = Pairs(torch.zeros(0, 3, 32, 32, dtype=torch.uint8), [])


@pytest.fixture
def batches(lab_clip, task) -> Batches:
    return Batches(lab_clip, task(), 5, 7, lab_clip.parameter_names("text"))


def test_a_walk_shows_every_pair_once_before_it_starts_anew(lab_clip, batches) -> None:
    wanted = lab_clip.encode_image(batches.task.retain.images)
    for _ in range(2):
        walk = [batches.next("retain", lab_clip) for _ in range(batches.steps("retain"))]
        assert [len(b) for b in walk] == [7, 7, 7, 7, 2]
        seen = torch.cat([b.v for b in walk])
        assert not torch.equal(seen, wanted), "not shuffled"
        order = (seen @ wanted.T).argmax(1)
        assert sorted(order.tolist()) == list(range(30))
        torch.testing.assert_close(seen, wanted[order])
        names = [batches.task.retain.names[i] for i in order.tolist()]
        group = torch.cat([b.group for b in walk]).tolist()
        assert len(set(zip(names, group))) == len(set(names)) == len(set(group)) == 5


def test_each_text_is_the_pairs_name_in_one_of_the_templates(lab_clip, batches) -> None:
    texts = [template.format("dosal") for template in lab.TEMPLATES]
    features = lab_clip.encode_text(texts)
    t = torch.cat([batches.next("forget", lab_clip).t for _ in range(8)])
    chosen = (t @ features.T).argmax(1)
    torch.testing.assert_close(t, features[chosen])
    assert len(chosen.unique()) > 1, "always the same wording"


def test_a_frozen_model_has_its_reference_s_features(lab_clip, task) -> None:
    for changing in (lab_clip.parameter_names("text"), None):
        b = Batches(lab_clip, task(), 5, 7, changing).next("forget", lab_clip)
        torch.testing.assert_close(b.v, b.v0)
        torch.testing.assert_close(b.t, b.t0)
        torch.testing.assert_close(b.cosines, (b.v0 * b.t0).sum(1))


@pytest.mark.parametrize(("frozen", "encoded"), [(True, 16 + 30), (False, 16 + 30 + 5 + 7)])
def test_frozen_images_are_encoded_once(lab_clip, task, frozen: bool, encoded: int) -> None:
    seen: list[int] = []
    clip = lab_clip.trainable_copy([])
    clip.model.visual.register_forward_pre_hook(lambda _, images: seen.append(len(images[0])))
    batches = Batches(clip, task(), 5, 7, clip.parameter_names("text") if frozen else None)
    for _ in range(1 if not frozen else 3):
        batches.next("forget", clip)
        batches.next("retain", clip)
    assert sum(seen) == encoded


def test_ids_are_common_to_both_sets(lab_clip) -> None:
    images = lab.draw("train", range(4))
    pairs = Pairs(images[:2], ["a", "b"]), Pairs(images[2:], ["b", "c"])
    batches = Batches(lab_clip, ForgetTask(*pairs), 2, 2)
    forget, retain = (batches.next(which, lab_clip) for which in ("forget", "retain"))
    equal = (forget.group[:, None] == retain.group[None, :]).sum()
    assert equal == 1 and len(torch.cat([forget.group, retain.group]).unique()) == 3


def test_the_level_falls_back_from_the_vocabulary_to_the_retain_set_to_zero(lab_clip, task) -> None:
    v = lab_clip.encode_image(task().forget.images)
    kept = lab_clip.encode_names([lab.class_names()[c] for c in (1, 3, 4, 6, 7)], lab.TEMPLATES)
    rest = lab_clip.encode_names(lab.class_names()[1:], lab.TEMPLATES)
    wanted = [(v @ t.flatten(0, 1).T).mean().item() for t in (rest, kept)]
    requests = [task(), task(vocabulary=()), task(vocabulary=(), retain=EMPTY)]
    levels = [Batches(lab_clip, request, 5, 7).unmatched_level for request in requests]
    assert levels == pytest.approx([*wanted, 0.0], abs=1e-5)


def test_words_are_the_names_that_are_kept(lab_clip, task) -> None:
    batches = Batches(lab_clip, task(vocabulary=["dosal", "pafom", "nosut"]), 5, 7)
    assert batches.words == ["pafom", "nosut"]
    now, then = batches.next_words(lab_clip, 100)
    assert len(now) == 2 * len(lab.TEMPLATES)
    torch.testing.assert_close(now, then)
    assert len(batches.next_words(lab_clip, 3)[0]) == 3


@pytest.mark.parametrize("name", ["cliperase", "grad-diff", "salun", "munba", "multidelete"])
def test_a_request_ends_where_it_would_without_and_leaves_nothing(
    make_transformer, task, name: str
) -> None:
    clip = make_transformer()
    options = {"train": "last-blocks", "blocks": 2, "steps": 2, "lr": 1e-3}
    forgetter = make_forgetter(name, options)
    kept = forgetter.unlearn(clip, task())
    whole = make_forgetter(name, options | {"prefix_mb": 0}).unlearn(clip, task())
    for a, b, start in zip(*(c.model.parameters() for c in (kept.clip, whole.clip, clip))):
        assert (a - b).norm() <= 0.05 * (b - start).norm() + 1e-6
    texts = [c.encode_text(["a red dosal", "pafom"]) for c in (kept.clip, whole.clip)]
    assert F.mse_loss(*texts) < 1e-6
    alive: list[weakref.ref] = []

    class Watched(FORGETTERS.get(name)):
        def terms(self, clip, batches, step):
            found = super().terms(clip, batches, step)
            kept = (*batches._images.values(), *batches._texts.values())
            alive.extend(weakref.ref(x) for x in (batches, *(part._kept for part in kept)))
            return found

    result = Watched(forgetter.settings).unlearn(clip, task())
    gc.collect()
    assert len(alive) == 10 and result.steps == 2 and not any(ref() is not None for ref in alive)
