"""How the exact head gets from its sums to a predictive: pools, rates, weights."""

from __future__ import annotations

import torch
from torch import Tensor

from clapforget.posterior.keys import normal_of
from clapforget.posterior.witness import refit_difference
from clapforget.uncertainty import expected_entropy, predictive_entropy
from tests.posterior.worlds import learned, make_world

EVERY = range(5)


def test_left_out_errors_are_the_weight_of_the_spherical_part() -> None:
    """On classes far apart none; on classes that coincide, that of guessing."""
    apart, mixed = make_world(), make_world(each=40)
    apart.v = apart.v * 0.01 + 3 * torch.eye(5, 6).double()[apart.labels][:, None]
    mixed.v = mixed.v[torch.randperm(len(mixed.v), generator=torch.Generator().manual_seed(0))]
    weight = [pool.weight for pool in learned(apart, EVERY, calibrate_on="all").solution.pools]
    assert weight == [1.0]
    weight = [pool.weight for pool in learned(mixed, EVERY, calibrate_on="all").solution.pools]
    assert weight[0] == 1.0 and 0.3 < weight[1] <= 0.5
    given = learned(mixed, EVERY, model="both", features=12, spherical=0.25).solution.pools
    assert [(len(pool.parts), pool.weight) for pool in given] == [(3, 1.0), (1, 0.25)]


def test_the_predictive_is_the_average_of_log_linear_pools() -> None:
    """Written out: scores times rates in a pool, softmax, weights."""
    world = make_world(each=40)
    head = learned(world, EVERY, model="both", features=12, spherical=0.25)
    phi = head.map(world.v[:, 0])
    probs = []
    for pool in head.solution.pools:
        logits = [
            part.rate * part.posterior.scores(part.posterior.whiten(phi[:, : part.size]))[0]
            for part in pool.parts
        ]
        probs.append(torch.stack(logits).sum(0).softmax(1))
    said = head.predict(world.v[:, 0])
    torch.testing.assert_close(said.probs, (probs[0] + 0.25 * probs[1]) / 1.25)


def test_draws_lie_around_the_pool_by_the_sum_of_its_parts_deviations() -> None:
    world = make_world(each=40)
    head = learned(world, EVERY, model="both", features=12, spherical=0.0)
    phi = head.map(world.v[:, 0])
    scores = [
        (part.rate, *part.posterior.scores(part.posterior.whiten(phi[:, : part.size])))
        for part in head.parts
    ]
    mean, spread = (sum(one[0] * one[k] for one in scores) for k in (1, 2))
    noise = normal_of(head.labels, head.settings.samples, 2 * head.seed)[:, None]
    said, drawn = head.predict(world.v[:, 0]), (mean + spread * noise).softmax(-1)
    torch.testing.assert_close(said.entropy, predictive_entropy(drawn))
    torch.testing.assert_close(said.expected_entropy, expected_entropy(drawn))
    assert said.mutual_information.mean() > 1e-3


def test_the_rates_are_those_of_the_least_left_out_loss() -> None:
    """At any other rates the left-out samples are less likely (one row of doubt among them)."""
    world = make_world(each=40)
    fixed = {"features": 12, "strength": 1.0, "spread": 0.3, "ridge": 1.0, "calibrate_on": "all"}
    head = learned(world, EVERY, model="both", spherical=0.0, **fixed)
    assert all(part.rate >= 0 for part in head.parts) and sum(part.rate for part in head.parts) > 0
    v, labels = head.reservoir.sample(2000)
    scores = torch.stack([
        part.posterior.left_out(part.posterior.whiten(head.map(v)[..., : part.size]), labels) for part in head.parts
    ])  # fmt: skip
    rates = torch.tensor([part.rate for part in head.parts]).double()
    target = 1 / (len(labels) + 1)

    def loss(rates: Tensor) -> float:
        pooled = torch.einsum("k,knc->nc", rates, scores)
        return float(torch.nn.functional.cross_entropy(pooled, labels, label_smoothing=target))

    for part in range(3):
        for factor in (0.9, 1.1):
            other = rates.clone()
            other[part] = other[part] * factor if rates[part] else 0.01 / head.parts[part].spread
            assert loss(rates) < loss(other)


def test_where_nothing_tells_the_classes_apart_every_answer_is_as_likely() -> None:
    """The same image and text for all: no rate, and still a proof of what was deleted."""
    world = make_world(each=10)
    world.v[:], world.text[:] = world.v[0].clone(), world.text[0].clone()
    head = learned(world, EVERY, spherical=0.0)
    torch.testing.assert_close(head.probs(world.v[:1, 0]), torch.full((1, 5), 0.2).double())
    assert refit_difference(head, *world.data(torch.ones(50, dtype=torch.bool))[:3]) < 1e-9
