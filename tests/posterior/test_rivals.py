"""The heads this project is compared with, against sklearn and refitting."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.linear_model import Ridge

from clapforget.errors import UserError
from clapforget.posterior import HEADS, Change
from clapforget.posterior.rivals import RanPACHead, RanPACSettings
from clapforget.seeding import generator_for

D, TEMPLATES = 12, 3
NAMES = ["zero-shot", "nearest-mean", "ranpac"]


def world(classes: int = 6, each: int = 40, seed: int = 0):
    """Text templates [C, L, d], features [n, 2, d] near them, labels, ids."""
    rng = torch.Generator().manual_seed(seed)
    text = F.normalize(torch.randn(classes, TEMPLATES, D, generator=rng), dim=-1)
    centre = F.normalize(torch.randn(classes, D, generator=rng), dim=-1)
    labels = torch.arange(classes).repeat_interleave(each)
    noise = 0.25 * torch.randn(len(labels), 2, D, generator=rng)
    return (
        text,
        F.normalize(centre[labels][:, None] + noise, dim=-1),
        labels,
        torch.arange(len(labels)),
    )


def make(name: str):
    cls = HEADS.get(name)
    return cls(D, 10.0, RanPACSettings(features=30) if name == "ranpac" else None, seed=3)


def learn(head, data, classes) -> None:
    text, v, labels, ids = data
    rows = torch.isin(labels, torch.tensor(classes))
    head.grow(classes, text[classes])
    head.learn(v[rows], labels[rows], ids[rows], "tower")


def change(data, gone, kept, after=None) -> Change:
    _, v, labels, ids = data
    own, rest = torch.isin(labels, torch.tensor(gone)), torch.isin(labels, torch.tensor(kept))
    tower = "tower" if after is None else "changed"
    after = v if after is None else after
    return Change(
        gone, v[own], labels[own], ids[own], after[own], v[rest], after[rest], labels[rest], tower,
        ids[rest],
    )  # fmt: skip


def test_zero_shot_is_the_nearest_text() -> None:
    data = world()
    head = make("zero-shot")
    learn(head, data, [0, 1, 2])
    v = data[1][:, 0]
    expected = (10 * v @ F.normalize(data[0][:3].mean(1), dim=-1).T).softmax(-1)
    torch.testing.assert_close(head.predict(v).probs, expected)


def test_nearest_mean_is_the_cosine_with_the_mean_of_all_views() -> None:
    data = world()
    head = make("nearest-mean")
    learn(head, data, [0, 1, 2])
    learn(head, data, [3, 4, 5])
    mean = torch.stack([data[1][data[2] == c].flatten(0, 1).double().mean(0) for c in range(6)])
    v = data[1][:, 0]
    expected = (10 * v.double() @ F.normalize(mean, dim=1).T).softmax(-1)
    torch.testing.assert_close(head.predict(v).probs.double(), expected, atol=1e-5, rtol=1e-4)


def test_ranpac_is_ridge_regression_on_one_hot_targets() -> None:
    data = world()
    head = make("ranpac")
    learn(head, data, [0, 1, 2])
    learn(head, data, [3, 4, 5])
    phi = head.map(data[1]).flatten(0, 1)
    target = F.one_hot(data[2], 6).double().repeat_interleave(2, 0)
    # each of an image's two views counts half in the sums, so λ is twice as large for sklearn
    ridge = Ridge(alpha=2 * float(head.ridge), fit_intercept=False).fit(phi.numpy(), target.numpy())
    scores = head.logits(data[1][:, 0])
    expected = torch.from_numpy(ridge.predict(phi[::2].numpy())).to(scores)
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-3)
    assert (scores.argmax(1) == data[2]).float().mean() > 0.9


def test_ranpac_takes_the_ridge_with_the_smallest_held_out_error() -> None:
    text, v, labels, ids = world(each=12)
    noise = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    clean, wild = (
        RanPACHead(D, 10.0, RanPACSettings(features=400), 0),
        RanPACHead(D, 10.0, RanPACSettings(features=400), 0),
    )
    for head, y in ((clean, labels), (wild, labels[noise])):
        head.grow(list(range(6)), text)
        head.learn(v, y, ids, "tower")
    assert float(wild.ridge) > 10 * float(clean.ridge), (
        "labels without structure need a strong ridge"
    )


def test_a_calibrated_ranpac_has_the_temperature_of_least_held_out_likelihood() -> None:
    """By scipy, on the part that λ is chosen on, with a ridge by sklearn on the other part."""
    text, v, labels, ids = world(each=12)
    settings = RanPACSettings(features=30, validation=0.3)
    plain, calibrated = (RanPACHead(D, 10.0, s, 3) for s in (settings, replace(settings, calibrated=True)))
    for head in (plain, calibrated):
        head.grow(list(range(6)), text)
        order = torch.randperm(len(v), generator=generator_for(3, 24, head.tasks))
        head.learn(v, labels, ids, "tower")
    cut = round(0.7 * len(v))
    phi = [plain.map(v[rows]).flatten(0, 1).numpy() for rows in (order[:cut], order[cut:])]
    y = [labels[rows].repeat_interleave(v.shape[1]).numpy() for rows in (order[:cut], order[cut:])]
    ridge = Ridge(alpha=v.shape[1] * float(plain.ridge), fit_intercept=False)
    held = ridge.fit(phi[0], np.eye(6)[y[0]]).predict(phi[1])

    def loss(log_t: float) -> float:
        return -log_softmax(held / np.exp(log_t), axis=1)[np.arange(len(held)), y[1]].mean()

    wanted = float(np.exp(minimize_scalar(loss, bounds=(-6, 2), method="bounded").x))
    assert float(calibrated.temperature) == pytest.approx(wanted, rel=1e-3) and wanted < 0.5
    torch.testing.assert_close(calibrated.logits(v[:, 0]) * wanted, plain.logits(v[:, 0]), rtol=2e-3, atol=1e-4)
    assert float(plain.temperature) == 1


@pytest.mark.parametrize("name", NAMES)
def test_a_forgotten_class_leaves_what_never_having_learned_it_leaves(name: str) -> None:
    data = world()
    head, other = make(name), make(name)
    learn(head, data, [0, 1, 2, 3])
    head.forget(change(data, [2], [0, 1, 3]), None, None, torch.Generator())
    learn(other, data, [0, 1, 3])
    if name == "ranpac":
        other.ridge.copy_(head.ridge)  # chosen while the class was there: a number that stays
        other._solved = None
    v = data[1][:, 0]
    mine, twin = head.predict(v).probs[:, [0, 1, 3]], other.predict(v).probs
    if name == "zero-shot":  # its column stays among the answers
        mine = mine / mine.sum(1, keepdim=True)
    torch.testing.assert_close(mine, twin, atol=1e-6, rtol=1e-5)
    assert head.retired.tolist() == [False, False, True, False]


@pytest.mark.parametrize("name", ["nearest-mean", "ranpac"])
def test_after_a_changed_image_tower_it_knows_the_exemplars_alone(name: str) -> None:
    data = world()
    head, other = make(name), make(name)
    learn(head, data, [0, 1, 2])
    turned = data[1].flip(-1)
    note = head.forget(change(data, [2], [0, 1], turned), None, None, torch.Generator())
    assert note == {"relearned_from_exemplars": 80}
    learn(other, (data[0], turned, *data[2:]), [0, 1])
    if name == "ranpac":
        other.ridge.copy_(head.ridge)
        other._solved = None
    v = turned[:, 0]
    torch.testing.assert_close(
        head.predict(v).probs[:, :2], other.predict(v).probs, atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("name", ["nearest-mean", "ranpac"])
def test_a_class_known_from_exemplars_alone_is_forgotten_with_them(name: str) -> None:
    """After the image tower changed, the request's images are more than what the sums are made of."""
    data = world()
    head, other = make(name), make(name)
    learn(head, data, [0, 1, 2, 3])
    text, turned, labels, ids = data[0], data[1].flip(-1), *data[2:]
    few = ids % 40 < 6  # the exemplars: six a class
    for gone, kept in ((2, [0, 1, 3]), (1, [0, 3])):
        own, rest = labels == gone, few & torch.isin(labels, torch.tensor(kept))
        before = data[1] if gone == 2 else turned
        head.forget(
            Change([gone], before[own], labels[own], ids[own], turned[own], before[rest],
                   turned[rest], labels[rest], "changed", ids[rest]),
            None, None, torch.Generator(),
        )  # fmt: skip
    kept = few & torch.isin(labels, torch.tensor([0, 3]))
    other.grow([0, 3], text[[0, 3]])
    other.learn(turned[kept], labels[kept], ids[kept], "changed")
    if name == "ranpac":
        other.ridge.copy_(head.ridge)
        other._solved = None
    columns = head.columns([0, 3])
    assert head.sums.count.tolist() == [6, 0, 0, 6]
    torch.testing.assert_close(
        head.predict(turned[:, 0]).probs[:, columns], other.predict(turned[:, 0]).probs,
        atol=1e-5, rtol=1e-4,
    )  # fmt: skip
    with pytest.raises(UserError, match="another image tower"):
        head.learn(data[1][:1], labels[:1], ids[:1], "tower")


@pytest.mark.parametrize("name", NAMES)
def test_a_class_learned_again_has_one_column(name: str) -> None:
    data = world()
    head = make(name)
    learn(head, data, [0, 1])
    head.forget(change(data, [1], [0]), None, None, torch.Generator())
    learn(head, data, [1, 2])
    assert sorted(head.labels.tolist()) == [0, 1, 2] and not head.retired.any()
    right = head.labels[head.predict(data[1][:120, 0]).probs.argmax(1)] == data[2][:120]
    assert name == "zero-shot" or right.float().mean() > 0.9


@pytest.mark.parametrize("name", NAMES)
def test_state_comes_back(name: str) -> None:
    data = world()
    head, other = make(name), make(name)
    learn(head, data, [0, 1, 2])
    other.load_state_dict(head.state_dict())
    v = data[1][:, 0]
    assert torch.equal(head.predict(v).probs, other.predict(v).probs)


def test_impossible_numbers_are_refused() -> None:
    for wrong in ({"features": 0}, {"validation": 1.0}):
        with pytest.raises(UserError):
            RanPACSettings(**wrong)
