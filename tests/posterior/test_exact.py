"""The exact head: one pass, any order, deletion equal to never having learned."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor

from clapforget import Clip, UserError, lab
from clapforget.posterior import Predictive
from clapforget.posterior.exact import ExactHead, ExactSettings
from tests.posterior.worlds import SCALE, World, change, forget, learned, make_head, make_world

EVERY = range(5)
MODELS = [
    {"model": "discriminant"}, {"model": "discriminant", "features": 12}, {"model": "regression"},
    {"model": "regression", "features": 12}, {"model": "both"}, {"model": "both", "features": 12},
]  # fmt: skip
models = pytest.mark.parametrize(
    "settings", MODELS, ids=lambda s: f"{s['model']}-{s.get('features', 0)}"
)


def by_label(head: ExactHead, v: Tensor) -> Predictive:
    """The predictive with its columns in the order of the labels."""
    said = head.predict(v)
    order = head.labels.argsort()
    assert said.logits is not None
    said.probs, said.logits = said.probs[:, order], said.logits[:, order]
    return said


def assert_same_answers(one: ExactHead, other: ExactHead, v: Tensor, tolerance: float) -> None:
    a, b = by_label(one, v), by_label(other, v)
    for name in ("probs", "logits", "entropy", "expected_entropy", "mutual_information", "energy"):
        torch.testing.assert_close(
            getattr(a, name), getattr(b, name), atol=tolerance, rtol=tolerance
        )


def assert_same_posterior(one: ExactHead, other: ExactHead, tolerance: float) -> None:
    close = {"atol": tolerance, "rtol": tolerance}
    rows, others = one.labels.argsort(), other.labels.argsort()
    assert torch.equal(one.labels[rows], other.labels[others])
    assert len(one.parts) == len(other.parts)
    for mine, twins in zip(one.parts, other.parts):
        assert mine.rate == pytest.approx(twins.rate, rel=tolerance, abs=tolerance / twins.spread)
        a, b = mine.posterior, twins.posterior
        torch.testing.assert_close(a.factor @ a.factor.T, b.factor @ b.factor.T, **close)
        for name in ("mean", "kappa", "prior", "weight"):
            if hasattr(a, name):
                torch.testing.assert_close(
                    getattr(a, name)[rows], getattr(b, name)[others], **close
                )
        for name in ("nu", "kappa0", "noise", "ridge", "text"):
            if hasattr(a, name):
                assert getattr(a, name) == pytest.approx(getattr(b, name), rel=tolerance)
    torch.testing.assert_close(one.nats()[rows], other.nats()[others], **close)


@pytest.fixture(scope="module")
def lab_world(lab_clip: Clip) -> World:
    """Eight lab classes, 15 images each, by the built-in model."""
    classes = [2, 5, 8, 10, 13, 16, 20, 33]
    text = lab_clip.encode_names([lab.class_names()[c] for c in classes], lab.TEMPLATES)
    ids = torch.tensor([c + 100 * i for c in classes for i in range(15)])
    v = lab_clip.encode_image(lab.draw("train", ids.numpy()))
    return World(text, v[:, None], torch.arange(8).repeat_interleave(15), ids)


# ---- learning ------------------------------------------------------------------------------
@models
def test_the_order_of_tasks_and_samples_is_irrelevant(settings: dict) -> None:
    world = make_world(views=2, each=30)
    heads = []
    for seed, tasks in ((0, [[0, 1], [2, 3, 4]]), (1, [[4], [2, 0], [3], [1]])):
        head = make_head(world, **settings)
        for task in tasks:
            head.grow(task, world.text[task])
            rows = world.rows(task).nonzero()[:, 0]
            rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]
            for part in rows.chunk(2):
                head.learn(*world.data(part))
        heads.append(head)
    assert_same_posterior(*heads, 1e-9)
    assert_same_answers(*heads, world.v[:, 0], 1e-9)


def test_a_class_may_come_in_several_experiences() -> None:
    world = make_world()
    head = make_head(world, EVERY)
    head.learn(*world.data(torch.arange(60) % 2 == 0))
    head.grow([0, 1], world.text[:2])
    head.learn(*world.data(torch.arange(60) % 2 == 1))
    assert head.labels.dtype == torch.long
    assert_same_posterior(head, learned(world, EVERY), 1e-9)


def test_features_of_another_image_tower_are_refused() -> None:
    world = make_world()
    head = learned(world, [0, 1])
    head.grow([2], world.text[[2]])
    v, labels, ids, _ = world.data(world.rows([2]))
    with pytest.raises(UserError, match="another image tower"):
        head.learn(v, labels, ids, "changed")
    with pytest.raises(UserError, match="another image tower"):
        head.delete(*world.data(world.rows([0]))[:3], "changed")
    head.delete(*world.data(world.rows([0, 1])))
    head.learn(v, labels, ids, "changed")  # with nothing learned there is nothing stale


# ---- without data --------------------------------------------------------------------------
@pytest.mark.parametrize("model", ["discriminant", "regression"])
@pytest.mark.parametrize("features", [0, 100])
def test_with_no_data_it_is_zero_shot_clip(lab_clip: Clip, model: str, features: int) -> None:
    head = ExactHead(
        lab_clip.width, float(lab_clip.scale), ExactSettings(model=model, features=features)
    )
    names = lab.class_names()
    head.grow(list(range(100)), lab_clip.encode_names(names, lab.TEMPLATES))
    v = lab_clip.encode_image(lab.draw("test", np.arange(200)))
    zero_shot = (float(lab_clip.scale) * v @ head.text.T).softmax(1)
    probs = head.predict(v).probs
    assert torch.equal(probs.argmax(1), zero_shot.argmax(1))
    torch.testing.assert_close(probs, zero_shot, atol=1e-5, rtol=1e-4)
    assert head.nats().abs().max() < 1e-9


def test_nats_are_zero_for_classes_without_data() -> None:
    world = make_world()
    for settings in MODELS:
        head = make_head(world, EVERY, **settings)
        head.learn(*world.data(world.rows([0, 1, 2])))
        forget(head, change(world, [1], world.rows([0])))
        nats = head.nats()
        assert nats[[1, 3, 4]].abs().max() < 1e-9 and nats[[0, 2]].min() > 0.5


# ---- uncertainty ---------------------------------------------------------------------------
def test_far_from_the_data_density_is_low_and_draws_differ() -> None:
    world = make_world(each=40)
    head = learned(world, [0, 1, 2])
    posterior = head.parts[0].posterior
    own, unseen = world.v[world.rows([0, 1, 2]), 0], world.v[world.rows([3, 4]), 0]
    for near, far in ((own, unseen), (unseen, 5 * unseen)):
        a, b = posterior.scores(posterior.whiten(near)), posterior.scores(posterior.whiten(far))
        assert a[0].logsumexp(1).mean() > b[0].logsumexp(1).mean()
        assert a[1].mean() < b[1].mean()
    assert head.predict(own).energy.mean() > head.predict(unseen).energy.mean()


@models
def test_more_data_leave_less_doubt(settings: dict) -> None:
    """A hundred times the data: the draws of each part all but agree (the parts themselves differ in
    their models, which no data change)."""
    settings = {"spherical": 0.0, **settings}
    few, many = (make_world(each=n, width=4) for n in (4, 400))
    at = many.v[::7, 0]
    doubt = [
        learned(w, EVERY, **settings).predict(at).mutual_information.mean() for w in (few, many)
    ]
    assert doubt[1] < 0.3 * doubt[0]


def test_uncertainties_fit_each_other() -> None:
    world = make_world()
    said = learned(world, EVERY, features=12).predict(world.v[:, 0])
    torch.testing.assert_close(said.probs.sum(1), torch.ones(60).double())
    torch.testing.assert_close(said.entropy, said.expected_entropy + said.mutual_information)
    assert (said.mutual_information >= 0).all() and (said.entropy <= np.log(5)).all()


@models
def test_probabilities_alone_are_those_of_the_predictive(settings: dict) -> None:
    world = make_world()
    head = learned(world, EVERY, **settings)
    head.hide([2])
    v = world.v[:, 0]
    assert torch.equal(head.probs(v), head.predict(v).probs)
    torch.testing.assert_close(head.probs(v, batch_size=7), head.probs(v))


def test_a_hidden_class_is_never_answered() -> None:
    world = make_world()
    head = learned(world, EVERY)
    head.hide([2])
    said = head.predict(world.v[world.rows([2]), 0])
    assert not said.probs[:, 2].any() and said.entropy.isfinite().all()


def test_the_seed_decides_everything_random() -> None:
    world = make_world()

    def said(seed: int) -> Predictive:
        head = ExactHead(6, SCALE, ExactSettings(features=12), seed=seed)
        head.grow([0, 1, 2], world.text[:3])
        head.learn(*world.data(world.rows([0, 1, 2])))
        return head.predict(world.v[:, 0])

    one, again, other = said(1), said(1), said(2)
    assert torch.equal(one.probs, again.probs) and torch.equal(one.entropy, again.entropy)
    assert not torch.equal(one.probs, other.probs)


# ---- deletion ------------------------------------------------------------------------------
@models
@pytest.mark.parametrize("by_class", [False, True])
def test_after_a_hundred_mixed_requests_it_is_the_twins(settings: dict, by_class: bool) -> None:
    """Learn and delete in small lots, by sample and by class; classes come back; then compare with
    a head that learned what remains, in one go."""
    world = make_world(each=40, views=2)
    rng = torch.Generator().manual_seed(5)
    options = {**settings, "by_class": by_class, "reservoir": 40}
    head, held = make_head(world, **options), torch.zeros(len(world.v), dtype=torch.bool)

    def some(rows: Tensor, share: float) -> Tensor:
        return rows & (torch.rand(len(rows), generator=rng) < share)

    kinds = []
    for step in range(100):
        kind = int(torch.randint(10, (1,), generator=rng)) if step > 4 else 0
        label = int(torch.randint(5, (1,), generator=rng)) if step > 4 else step
        if kind < 5:
            rows = some(world.rows([label]) & ~held, 0.5)
            head.grow([label], world.text[[label]])
            head.learn(*world.data(rows))
            held |= rows
        elif kind < 8:
            rows = some(held, 0.1)
            head.delete(*world.data(rows))
            held &= ~rows
        else:
            rows = held & world.rows([label])
            forget(head, change(world, [label], held & ~rows, forget=rows))
            held &= ~rows
        kinds.append(kind)
    assert min(np.bincount(kinds, minlength=10)) > 2
    assert 20 < held.sum() < 180
    twin = make_head(world, head.labels.tolist(), **options)
    twin.retire(head.labels[head.retired].tolist())
    twin.learn(*world.data(held))
    assert torch.equal(head.sums.count, twin.sums.count)
    assert_same_posterior(head, twin, 1e-6)
    assert_same_answers(head, twin, world.v[:, 0], 1e-6)


@models
def test_a_forgotten_class_is_but_a_column_more(settings: dict) -> None:
    """Everything else is as in the head that never had a column for it."""
    world = make_world()
    near = world.v[world.rows([0])].mean(0)
    world.text[1] = near / near.norm()  # bare CLIP would take images of 0 for it
    head = learned(world, EVERY, **settings)
    forget(head, change(world, [1], world.rows([0])))
    twin = learned(world, [0, 2, 3, 4], **settings)
    mine, twins = by_label(head, world.v[:, 0]), by_label(twin, world.v[:, 0])
    stay = [0, 2, 3, 4]
    torch.testing.assert_close(mine.logits[:, stay], twins.logits, atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(mine.energy, twins.energy, atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(head.nats()[stay], twin.nats(), atol=1e-8, rtol=1e-8)
    for a, b in zip(head.parts, twin.parts):
        assert a.rate == pytest.approx(b.rate, rel=1e-8, abs=1e-8 / b.spread)


def test_a_class_without_its_data_needs_moments_by_class() -> None:
    world = make_world()
    request = change(world, [3], world.rows([0]), forget=world.rows([]))
    head = learned(world, EVERY, by_class=True)
    forget(head, request)
    twin = learned(world, EVERY, world.rows([0, 1, 2, 4]), by_class=True)
    twin.retire([3])
    twin._solved = None
    assert_same_posterior(head, twin, 1e-9)
    head = learned(world, EVERY)
    before = copy.deepcopy(head.state_dict())
    with pytest.raises(UserError, match=r"without all the images .*exact\.by_class=true"):
        forget(head, request)
    assert all(torch.equal(v, before[k]) for k, v in head.state_dict().items())


def test_what_was_not_learned_cannot_be_deleted() -> None:
    world, stranger = make_world(), make_world(seed=1)
    head = learned(world, EVERY)
    before = copy.deepcopy(head.state_dict())
    own = world.rows([1])
    twice = torch.cat([own.nonzero()[:, 0], own.nonzero()[:1, 0]])
    with pytest.raises(UserError, match="class 1: 13 samples to delete, 12 learned"):
        head.delete(*world.data(twice))
    with pytest.raises(UserError, match="class 1: the images to delete are not those"):
        head.delete(*stranger.data(own))
    one_other = world.v.clone()
    one_other[own.nonzero()[0]] = stranger.v[0]
    with pytest.raises(UserError, match="class 1: the images to delete are not those"):
        forget(head, change(World(world.text, one_other, world.labels, world.ids), [1], own))
    assert all(torch.equal(v, before[k]) for k, v in head.state_dict().items())


def test_to_forget_twice_or_what_was_never_met_is_nothing() -> None:
    world = make_world()
    head = learned(world, [0, 1, 2])
    forget(head, change(world, [1], world.rows([0])))
    before = copy.deepcopy(head.state_dict())
    forget(head, change(world, [1, 4], world.rows([0])))
    assert all(torch.equal(v, before[k]) for k, v in head.state_dict().items())


@pytest.mark.parametrize("by_class", [False, True])
def test_nothing_of_a_deleted_class_stays_in_the_state(by_class: bool) -> None:
    world = make_world(each=30)
    head = learned(world, EVERY, by_class=by_class)
    marks = {float(x) for x in world.v[world.rows([2])].flatten()}
    assert marks & {float(x) for x in head.reservoir.v.flatten()}
    forget(head, change(world, [2], world.rows([0])))
    for name, value in head.state_dict().items():
        assert not marks & {float(x) for x in value.double().flatten()}, name
    gone = {int(i) for i in world.ids[world.rows([2])]}
    assert not gone & {int(i) for i in head.reservoir.ids}
    assert 2 not in head.reservoir.labels and 2 not in head.reservoir.limit_labels
    column = head.columns([2])[0]
    assert head.sums.count[column] == 0
    assert (
        not head.sums.first[column].any() and not head.sums.class_packed[column : column + 1].any()
    )
    # and along the class's own mean, the sums over all classes are those of the others
    rest = world.v[world.rows([0, 1, 3, 4]), 0]
    torch.testing.assert_close(head.sums.second, rest.T @ rest, atol=1e-12, rtol=0)


# ---- saved state ---------------------------------------------------------------------------
@models
def test_a_saved_state_goes_on_where_it_was(settings: dict) -> None:
    world = make_world(views=2)
    head = learned(world, [0, 1, 2], **settings)
    forget(head, change(world, [1], world.rows([0])))
    other = make_head(world, [4], **settings)
    assert other.predict(world.v[:3, 0]).probs.shape == (3, 1)
    other.load_state_dict(head.state_dict())
    assert torch.equal(head.predict(world.v[:, 0]).probs, other.predict(world.v[:, 0]).probs)
    for each in (head, other):
        each.grow([3, 1], world.text[[3, 1]])
        assert each.predict(world.v[:3, 0]).probs.shape == (3, 4)
        each.learn(*world.data(world.rows([3, 1])))
    said, again = head.predict(world.v[:, 0]), other.predict(world.v[:, 0])
    for name, value in vars(said).items():
        assert value is None or torch.equal(value, getattr(again, name)), name


def test_a_state_made_with_other_random_numbers_or_sums_is_refused() -> None:
    world = make_world()
    state = learned(world, [0, 1]).state_dict()
    for settings, seed in (({"features": 12}, 4), ({"by_class": True}, 4), ({}, 5)):
        head = ExactHead(6, SCALE, ExactSettings(**{"features": 0, **settings}), seed)
        with pytest.raises(UserError, match="made with another seed or"):
            head.load_state_dict(state)


def test_single_images_do_not_decide_how_much_images_count() -> None:
    """Left out, the only sample of a class leaves its text: with images far from their texts that once
    chose the strongest text prior, and zero-shot answers. Classes with two samples or more decide."""
    world = make_world(each=6)
    world.v = world.v.roll(6, 0)  # every class looks as another one's text says
    first = torch.arange(len(world.v)) % 6 == 0
    one = learned(world, EVERY, first)
    assert one.parts[0].posterior.kappa0 == 1.0
    assert learned(world, EVERY).parts[0].posterior.kappa0 < 1.0


# ---- lab features --------------------------------------------------------------------------
@models
def test_on_lab_features_it_learns_well_and_forgets_exactly(
    lab_world: World, settings: dict
) -> None:
    world = lab_world
    even = world.ids // 100 % 2 == 0
    head = make_head(world, **settings)
    head.templates = head.templates.float()
    for task in ([0, 1, 2, 3], [4, 5, 6, 7]):
        head.grow(task, world.text[task])
        head.learn(*world.data(world.rows(task) & even))
    said = head.predict(world.v[~even, 0])
    right = (head.labels[said.probs.argmax(1)] == world.labels[~even]).double().mean()
    assert right > 0.85
    forget(head, change(world, [1, 6], world.rows([0]), forget=world.rows([1, 6]) & even))
    twin = make_head(world, head.labels.tolist(), **settings)
    twin.templates = twin.templates.float()
    twin.retire([1, 6])
    twin.learn(*world.data(even & ~world.rows([1, 6])))
    assert_same_posterior(head, twin, 1e-6)
    assert_same_answers(head, twin, world.v[:, 0], 1e-6)
