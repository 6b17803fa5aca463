"""Three signs of familiarity, by hand."""

from __future__ import annotations

import pytest
import torch
from sklearn.preprocessing import StandardScaler

from clapforget.posterior.familiarity import Scale, signs
from tests.posterior.worlds import learned, make_world


def test_the_signs_are_density_and_the_nearest_cosines() -> None:
    v = torch.tensor([[1.0, 0, 0], [0, 0.6, 0.8]]).double()
    first = torch.tensor([[5.0, 0, 0], [0, 3, 0]]).double()
    text = torch.tensor([[0.0, 0, 1], [1, 0, 0]]).double()
    found = signs(torch.tensor([-4.0, -9.0]).double(), v, first, text)
    expected = torch.tensor([[-4.0, -9.0], [1.0, 0.6], [1.0, 0.8]]).double()
    torch.testing.assert_close(found, expected)
    nothing = signs(torch.zeros(2).double(), v, first[:0], text[:0])
    assert torch.equal(nothing, torch.zeros(3, 2).double())


def test_each_sign_is_on_the_scale_of_learned_samples() -> None:
    rng = torch.Generator().manual_seed(0)
    old, new = (torch.randn(3, n, generator=rng).double() * 7 + 2 for n in (40, 9))
    scaler = StandardScaler().fit(old.T.numpy())
    expected = torch.from_numpy(scaler.transform(new.T.numpy())).mean(1) * (39 / 40) ** 0.5
    torch.testing.assert_close(Scale.of(old)(new), expected)
    assert Scale.of(old[:, :1])(new).tolist() == pytest.approx(new.mean(0).tolist())
    flat = torch.ones(3, 5).double()
    assert Scale.of(flat)(flat).tolist() == [0.0] * 5


def test_the_text_helps_where_it_is_right_and_learned_images_average_zero() -> None:
    """Images near a learned class's text are more familiar than others as far from the data."""
    world = make_world(width=8, each=40)
    head = learned(world, [0, 1, 2])
    inside = world.v[world.rows([0, 1, 2]), 0]
    outside = world.v[world.rows([3, 4]), 0]
    assert head.predict(inside).energy.mean() > head.predict(outside).energy.mean()
    held, _ = head.reservoir.sample(2000)
    assert abs(float(head.predict(held[:, 0]).energy.mean())) < 1e-6
    at_text = torch.nn.functional.normalize(world.text[0] + 0.1, dim=-1)
    away = torch.nn.functional.normalize(-world.text[0] + 0.1, dim=-1)
    assert head.predict(at_text).energy > head.predict(away).energy
