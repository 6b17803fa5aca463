"""LoRanPAC: ridge regression in the limit, and what can be deleted from it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import Ridge
from torch import Tensor

from clapforget.errors import UserError
from clapforget.posterior import Change
from clapforget.posterior.loranpac import LoRanPACHead, LoRanPACSettings
from clapforget.posterior.rivals import RanPACHead, RanPACSettings

D, CLASSES, EACH = 12, 6, 30


@pytest.fixture(scope="module")
def data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Text templates [C, 1, d], features [n, 2, d], labels and ids [n]."""
    rng = torch.Generator().manual_seed(0)
    text = F.normalize(torch.randn(CLASSES, 1, D, generator=rng), dim=-1)
    centre = F.normalize(torch.randn(CLASSES, D, generator=rng), dim=-1)
    labels = torch.arange(CLASSES).repeat_interleave(EACH)
    noise = 0.25 * torch.randn(len(labels), 2, D, generator=rng)
    return text, F.normalize(centre[labels][:, None] + noise, dim=-1), labels, torch.arange(len(labels))  # fmt: skip


def make(**settings: float) -> LoRanPACHead:
    return LoRanPACHead(D, 10.0, LoRanPACSettings(**{"features": 40, "rank": 500, **settings}), 3)


def learn(head, data, classes: list[int], rows: Tensor | None = None) -> None:
    text, v, labels, ids = data
    own = torch.isin(labels, torch.tensor(classes))
    own = own if rows is None else own & rows
    head.grow(classes, text[classes])
    head.learn(v[own], labels[own], ids[own], "tower")


def change(data, gone: list[int], memory: Tensor, tower: str = "tower") -> Change:
    _, v, labels, ids = data
    own = torch.isin(labels, torch.tensor(gone))
    return Change(gone, v[own], labels[own], ids[own], v[own], v[memory], v[memory],
                  labels[memory], tower, ids[memory])  # fmt: skip


@pytest.mark.parametrize("ridge", [1e-2, 1.0])
def test_with_nothing_cut_off_it_is_ranpacs_ridge_regression(data, ridge: float) -> None:
    head, ranpac = make(truncation=0.0, ridge=ridge), RanPACHead(D, 10.0, RanPACSettings(40), 3)
    ranpac.map = head.map  # the same random features
    for task in ([0, 1, 2], [3, 4, 5]):
        learn(head, data, task)
        learn(ranpac, data, task)
    ranpac.ridge.fill_(ridge)
    ranpac._solved = None
    v = data[1][:, 0]
    torch.testing.assert_close(head.logits(v), ranpac.logits(v), atol=1e-5, rtol=1e-5)
    phi = head.map(data[1]).flatten(0, 1)
    target = F.one_hot(data[2], CLASSES).double().repeat_interleave(2, 0)
    fit = Ridge(alpha=2 * ridge, fit_intercept=False).fit(phi.numpy(), target.numpy())
    expected = torch.from_numpy(fit.predict(phi[::2].numpy())).to(v)
    torch.testing.assert_close(head.logits(v), expected, atol=1e-4, rtol=1e-4)


def test_without_ridge_it_is_the_shortest_solution_of_least_squares(data) -> None:
    head = make(truncation=0.0, features=1500)
    learn(head, data, [0, 1], data[3] % 3 == 0)
    own = (data[2] < 2) & (data[3] % 3 == 0)
    phi = head.map(data[1][own]).flatten(0, 1)
    target = F.one_hot(data[2][own], 2).double().repeat_interleave(2, 0)
    torch.testing.assert_close(
        head.solve().T, torch.linalg.lstsq(phi, target, driver="gelsd").solution,
        atol=1e-6, rtol=1e-4,
    )  # fmt: skip


def test_truncated_it_learns_task_by_task(data) -> None:
    head = make(features=300)
    learn(head, data, [0, 1, 2])
    learn(head, data, [3, 4, 5])
    assert float(head.sums.lost) > 0 and len(head.sums.singular) == 225
    assert (head.logits(data[1][:, 0]).argmax(1) == data[2]).float().mean() > 0.9


def test_untruncated_a_class_is_subtracted(data) -> None:
    head, other = make(truncation=0.0), make(truncation=0.0)
    learn(head, data, [0, 1, 2, 3])
    none = torch.zeros(len(data[2]), dtype=torch.bool)
    assert head.forget(change(data, [2], none), None, None, torch.Generator()) == {}
    learn(other, data, [0, 1, 3])
    v = data[1][:, 0]
    torch.testing.assert_close(
        head.logits(v)[:, [0, 1, 3]], other.logits(v), atol=1e-5, rtol=1e-4
    )  # fmt: skip
    assert (head.logits(v)[:, 2] == -torch.inf).all()


def test_truncated_it_is_made_anew_from_the_exemplars_left(data) -> None:
    head, other = make(), make()
    learn(head, data, [0, 1, 2, 3])
    memory = (data[3] % 5 == 0) & torch.isin(data[2], torch.tensor([0, 1, 3]))
    note = head.forget(change(data, [2], memory), None, None, torch.Generator())
    assert note == {"relearned_from_exemplars": 18}
    other.grow([0, 1, 3], data[0][[0, 1, 3]])
    other.learn(data[1][memory], data[2][memory], data[3][memory], "tower")
    v = data[1][:, 0]
    torch.testing.assert_close(head.logits(v)[:, [0, 1, 3]], other.logits(v))
    assert head.sums.count.tolist() == [6, 6, 0, 6] and not head.sums.first[2].any()


def test_truncated_without_exemplars_it_refuses(data) -> None:
    head = make()
    learn(head, data, [0, 1, 2])
    with pytest.raises(UserError, match="no exemplars of 1 of the classes"):
        head.forget(change(data, [2], data[2] == 0), None, None, torch.Generator())


def test_state_comes_back(data) -> None:
    head, other = make(), make()
    learn(head, data, [0, 1, 2])
    other.load_state_dict(head.state_dict())
    v = data[1][:, 0]
    assert torch.equal(head.logits(v), other.logits(v))
    learn(other, data, [3, 4])
    learn(head, data, [3, 4])
    assert torch.equal(head.logits(v), other.logits(v))


@pytest.mark.parametrize(
    "wrong", [{"features": 0}, {"rank": 0}, {"truncation": 1.0}, {"ridge": -1.0}], ids=str
)
def test_impossible_numbers_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match="loranpac"):
        LoRanPACSettings(**wrong)
