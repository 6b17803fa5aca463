from __future__ import annotations

import copy
from dataclasses import fields

import pytest
import scipy.special
import scipy.stats
import torch
import torch.nn.functional as F

from clapforget.posterior import ClapSettings, Predictive, VariationalHead


def assert_same(left: Predictive, right: Predictive, rows=slice(None), **tolerance) -> None:
    for field in fields(Predictive):
        one, other = getattr(left, field.name), getattr(right, field.name)
        assert (one is None) == (other is None), field.name
        if one is not None:
            torch.testing.assert_close(one[rows], other, **tolerance)


@pytest.mark.parametrize("predictive", ["mean-softmax", "mean-logit"])
def test_with_the_memory_as_context_batch_mates_do_not_matter(make, features, predictive) -> None:
    head, v = make((3, 1, 4), predictive=predictive), features(30)
    whole, order = head.predict(v), torch.randperm(30)
    assert_same(whole, head.predict(v[order]), order)
    assert_same(whole, head.predict(v, batch_size=7))
    assert_same(whole, head.predict(v[[4]]), [4])
    assert_same(whole, head.predict(torch.cat([v[:3], features(9, seed=8)])[:3]), slice(0, 3))


VARIANTS = [
    {}, {"tokens": True}, {"hierarchical": True, "top_samples": 3}, {"normalise": "weights"},
    {"normalise": "guidance"}, {"latent": "point"}, {"uncertainty": "closed-form"},
]  # fmt: skip


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_batch_mates_change_answers_under_batch_and_no_other_policy(
    make, features, options
) -> None:
    for context in ("memory", "single", "batch"):
        head, v = make((3, 1, 4), context=context, **options), features(12)
        other = torch.cat([v[:6], features(6, seed=8)])
        mine, theirs = (head.predict(x).probs[:6] for x in (v, other))
        if context == "batch":
            assert (mine - theirs).abs().max() > 1e-3
        else:
            torch.testing.assert_close(mine, theirs)
            torch.testing.assert_close(head.predict(v, batch_size=5).probs[:6], mine)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_alone_an_image_is_answered_as_in_a_batch_of_one(make, features, options) -> None:
    alone, one = (
        make((3, 1, 4), (1,), context=c, context_batch=1, **options) for c in ("single", "batch")
    )
    v = features(5)
    assert_same(alone.predict(v), one.predict(v))


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_under_batch_so_many_images_in_turn_are_a_context_whatever_the_caller_asks_at_once(
    make, features, options
) -> None:
    head, v = make((3, 1, 4), context="batch", context_batch=4, **options), features(10)
    by_hand = Predictive.cat([head.predict(part) for part in (v[:4], v[4:8], v[8:])])
    for batch_size in (1, 3, 8, 1024):
        assert_same(head.predict(v, batch_size=batch_size), by_hand)
    other = make((3, 1, 4), context="batch", **options)
    assert other.settings.context_batch == 32, "as released"
    assert (other.predict(v).probs - by_hand.probs).abs().max() > 1e-3


def test_each_image_has_room_of_its_own_however_many_there_are(make, features, monkeypatch) -> None:
    head, v = make((3, 1, 4), context="single"), features(20)
    whole = head.predict(v)
    monkeypatch.setattr("clapforget.posterior.predicting._ROOM", 3 * 8 * 16)
    assert_same(whole, head.predict(v))


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_shapes_are_as_documented(make, features, options) -> None:
    head, v, g = make((3, 1, 4), **options), features(7), options.get("top_samples")
    above = (g,) if g else ()
    weights, top = head.posterior(head.inputs(v))
    assert weights.mu.shape == weights.sigma.shape == (*above, 8, 16)
    assert weights.x.shape == (*above, 8, 16)
    assert (top is None) == (g is None)
    mean, std = head.logits(weights, v)
    assert mean.shape == std.shape == (*above, 7, 8)
    noise = head.draw(v, "all", torch.Generator())
    draws = 1 if head.settings.latent == "point" else 6
    assert noise.logits.shape == (*above, draws, 7, 8)
    assert noise.mean_latent.shape == (*above, 8, 16)
    out = head.predict(v)
    assert out.probs.shape == (7, 8) and out.mutual_information.shape == (7,)
    assert head.nats().shape == (8,)
    assert head.inputs(v[:, None]).shape == (7, 8, 16)


def test_normalising_puts_logits_on_the_scale_it_says(make, features) -> None:
    v = features(50)
    size = {
        kind: head.logits(head.weights(), v)[0].abs().max().item() / head.scale
        for kind in ("none", "guidance", "weights")
        for head in [make((3, 2), normalise=kind)]
    }
    assert size["weights"] <= 1
    head = make((3, 2), normalise="weights")
    weights = head.weights()
    mean = weights.x + weights.mu
    torch.testing.assert_close(
        head.logits(weights, v)[0], head.scale * v @ F.normalize(mean, dim=1).T
    )
    length = (make((3, 2), normalise="guidance").inputs() - head.text).norm(dim=1)
    torch.testing.assert_close(length, torch.ones(5).double())


def test_a_global_latent_is_averaged_over_like_any_other(make, features) -> None:
    """Against plain draws of z' and z in weight space."""
    head = make((3, 2), hierarchical=True, top_samples=400, samples=50)
    head.scale, v = 3.0, features(6)
    out, rng = head.predict(v), torch.Generator().manual_seed(3)
    x = head.inputs()
    mu, sigma = head.top(x)
    p = torch.zeros(6, 5).double()
    for _ in range(4000):
        u = x + mu + sigma * torch.randn(5, 16, generator=rng).double()
        mean, std = head.latent(u)
        w = u + mean + std * torch.randn(5, 16, generator=rng).double()
        p += (head.scale * v @ w.T).softmax(-1).detach() / 4000
    torch.testing.assert_close(out.probs, p, atol=0.04, rtol=0)


def test_a_point_has_no_doubt_of_its_own(make, features) -> None:
    out = make((3, 2), latent="point").predict(features(9))
    assert not out.mutual_information.any() and not out.variance.any()


def test_one_template_is_enough(make, features) -> None:
    head = make((3, 2), templates=1)
    head.grow([70, 80], text_for(2)[:, :1])
    assert not head.adapters.open_weight[0, 16:].any()
    v, y = features(6), torch.arange(6)
    head.train_only("newest")
    head.loss(head.weights(v), v, y, "newest", head.draw(v, "newest", torch.Generator())).backward()
    assert all(p.grad.isfinite().all() for p in head.parameters() if p.grad is not None)
    assert head.predict(v).probs.isfinite().all()


def test_the_neural_process_prior_is_guided_by_two_thirds_of_the_batch_rounded_up(make, features) -> None:  # fmt: skip
    head = make((3, 2), prior="neural-process")
    for n, rows in ((1, 1), (3, 3), (32, 22), (100, 67)):
        subset = head.draw(features(n), "all", torch.Generator()).subset
        assert len(subset) == rows and len(subset.unique()) == rows and subset.max() < n


def test_with_the_batch_as_context_they_do(make, features) -> None:
    head, v = make((3, 1, 4), context="batch"), features(30)
    whole = head.predict(v)
    order = torch.randperm(30)
    assert_same(whole, head.predict(v[order]), order)  # the same images, in any order
    parts = make((3, 1, 4), context="batch", context_batch=7).predict(v)
    assert (parts.probs - whole.probs).abs().max() > 1e-3


def test_the_context_guides_the_predictions(make, features) -> None:
    head, v = make((3, 2)), features(10)
    before = head.predict(v).probs
    head.context = features(5, seed=9)
    assert (head.predict(v).probs - before).abs().max() > 1e-3
    assert torch.equal(head.predict(v).probs, head.predict(v).probs)


@pytest.mark.parametrize("predictive", ["mean-softmax", "mean-logit"])
@pytest.mark.parametrize("retired", [(), (1, 4)])
def test_probabilities_sum_to_one_over_all_columns(make, features, predictive, retired) -> None:
    p = make((3, 2), retired, predictive=predictive).predict(features(20)).probs
    assert p.shape == (20, 5)
    torch.testing.assert_close(p.sum(1), torch.ones(20).double())
    assert (p > 0).all(), "a forgotten class stays a column: that it is not predicted must show"


def test_doubts_are_scipys(make, features) -> None:
    """The predictive rebuilt from its definition, with the documented noise: one draw [M, C]."""
    head, v = make((3, 2), seed=5), features(9)
    weights = head.weights()
    mean = weights.mean_logits(v, head.scale).detach()
    std = weights.std_logits(v, head.scale).detach()
    noise = torch.randn(6, 1, 5, generator=torch.Generator().manual_seed(5)).double()
    p = scipy.special.softmax((mean + std * noise).numpy(), axis=-1)
    out = head.predict(v)
    wanted = {
        "probs": p.mean(0),
        "entropy": scipy.stats.entropy(p.mean(0), axis=-1),
        "expected_entropy": scipy.stats.entropy(p, axis=-1).mean(0),
        "variance": p.var(0).sum(-1),
        "energy": scipy.special.logsumexp(mean.numpy(), axis=-1),
        "variance_of_entropy": scipy.stats.entropy(p, axis=-1).var(0),
        "expected_energy": scipy.special.logsumexp((mean + std * noise).numpy(), axis=-1).mean(0),
        "logits": mean.numpy(),
    }
    wanted["mutual_information"] = wanted["entropy"] - wanted["expected_entropy"]
    for name, value in wanted.items():
        torch.testing.assert_close(
            getattr(out, name), torch.from_numpy(value), atol=1e-9, rtol=1e-7
        )
    assert (out.mutual_information >= 0).all()
    assert torch.equal(out.score("energy"), out.energy)
    object.__setattr__(head.settings, "predictive", "mean-logit")
    wanted["probs"] = scipy.special.softmax(mean.numpy(), axis=-1)
    wanted["entropy"] = scipy.stats.entropy(wanted["probs"], axis=-1)
    out = head.predict(v)
    for name, value in wanted.items():
        torch.testing.assert_close(
            getattr(out, name), torch.from_numpy(value), atol=1e-9, rtol=1e-7
        )


@pytest.mark.parametrize(
    "options", [{"uncertainty": "closed-form"}, {"hierarchical": True, "top_samples": 3}], ids=str
)
def test_entropy_is_of_what_is_predicted_and_other_doubts_are_of_the_samples(
    make, features, options
) -> None:
    v = features(9)
    logit, softmax = (
        make((3, 2), predictive=name, **options).predict(v)
        for name in ("mean-logit", "mean-softmax")
    )
    for out in (logit, softmax):
        wanted = scipy.stats.entropy(out.probs.numpy(), axis=-1)
        torch.testing.assert_close(out.entropy, torch.from_numpy(wanted))
    assert (logit.entropy - softmax.entropy).abs().max() > 0.01
    for name in ("expected_entropy", "mutual_information", "variance", "energy"):
        torch.testing.assert_close(getattr(logit, name), getattr(softmax, name))


def test_a_certain_posterior_has_no_epistemic_doubt(make, features) -> None:
    head = make((3, 2))
    with torch.no_grad():
        for weight, bias in (("weight", "bias"), ("open_weight", "open_bias")):
            getattr(head.adapters, weight)[:, head.width :] = 0
            getattr(head.adapters, bias)[:, head.width :] = -100
    narrow, wide = head.predict(features(20)), make((3, 2)).predict(features(20))
    assert narrow.mutual_information.mean() < 0.01 * wide.mutual_information.mean()


def test_predicting_leaves_the_mode_the_weights_and_the_generator(make, features) -> None:
    head, v = make((3, 2), dropout=0.5), features(5)
    state = copy.deepcopy(head.state_dict())
    torch.manual_seed(3)
    wanted = torch.rand(1)
    for mode in (True, False):
        head.train(mode)
        torch.manual_seed(3)
        first, second = head.predict(v), head.predict(v)
        assert torch.equal(torch.rand(1), wanted)
        assert torch.equal(first.probs, second.probs), "dropout is on"
        assert head.training is mode
        assert not first.probs.requires_grad
    assert all(torch.equal(value, head.state_dict()[name]) for name, value in state.items())


def test_rows_can_be_taken_and_a_field_missing_in_one_part_is_missing_in_the_whole(
    make, features
) -> None:
    whole = make((3, 2)).predict(features(8))
    rows = torch.tensor([5, 0, 0])
    assert_same(whole, whole.take(rows), rows)
    bare = whole.take(rows)
    bare.logits = None
    assert bare.take(torch.tensor([2])).logits is None
    joined = Predictive.cat([whole, bare])
    assert joined.logits is None and len(joined.entropy) == 11


def test_no_images_give_no_predictions(make, features) -> None:
    out = make((3, 2)).predict(features(3)[:0])
    assert out.probs.shape == (0, 5) and out.entropy.shape == (0,)


# ---- classes come and go -------------------------------------------------------------------
def text_for(n: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(n, 3, 16, generator=generator, dtype=torch.double), dim=-1)


def test_growing_leaves_what_older_classes_weigh(make) -> None:
    head = make((3, 1))
    before = head.weights()
    head.grow([70, 71], text_for(2))
    assert head.labels.tolist() == [0, 10, 20, 30, 70, 71]
    assert head.task.tolist() == [0, 0, 0, 1, 2, 2]
    for now, then in zip(head.weights(), before, strict=True):
        torch.testing.assert_close(now[:4], then)


def test_columns_follow_labels(make) -> None:
    head = make((3, 2))
    assert head.columns([30, 0]).tolist() == [3, 0]
    assert head.columns(torch.tensor([40, 40, 10])).tolist() == [4, 4, 1]
    assert head.columns([]).tolist() == []
    with pytest.raises(AssertionError):
        head.columns([0, 99])


def test_no_class_attends_to_a_retired_one_and_others_stay(make) -> None:
    head = make((3, 2))
    before = head.weights()
    head.retire([10])
    after = head.weights()
    torch.testing.assert_close(after.x[3:], before.x[3:])
    assert (after.x[:3] - before.x[:3]).abs().amax(1).min() > 1e-3
    head.templates = head.templates.clone()
    head.templates[1] = text_for(1)[0]
    torch.testing.assert_close(head.weights().x[[0, 2]], after.x[[0, 2]])


def test_a_forgotten_class_can_be_learned_again(make, features) -> None:
    head = make((3, 2), (1,))
    head.hide([10])
    head.grow([10, 50], text_for(2))
    assert head.labels.tolist() == [0, 20, 30, 40, 10, 50]
    assert head.task.tolist() == [0, 0, 1, 1, 2, 2]
    assert not head.retired.any() and not head.hidden.any()
    assert head.columns([10]).tolist() == [4]
    torch.testing.assert_close(head.templates[4:], text_for(2))
    assert head.predict(features(4)).probs[:, 4].min() > 0
    assert head.share("newest").tolist() == [0, 0, 0, 0, 0.5, 0.5]


def test_a_relearned_class_starts_from_the_texts_of_living_classes_only(make) -> None:
    head = make((3, 2), (1,))
    head.grow([50], text_for(1))
    mean = head.templates[~head.retired].mean(1)
    torch.testing.assert_close(head.adapters.open_weight[0, :16], mean.T @ mean / 16)
    assert len(mean) == 5


def test_a_hidden_class_is_never_predicted_and_the_rest_share_its_part(make, features) -> None:
    for predictive in ("mean-softmax", "mean-logit"):
        head, v = make((3, 2), predictive=predictive), features(20)
        before = head.predict(v)
        nats = head.nats()
        head.hide([20])
        after = head.predict(v)
        assert not after.probs[:, 2].any()
        torch.testing.assert_close(after.probs.sum(1), torch.ones(20).double())
        for field in fields(Predictive):
            assert field.name == "logits" or getattr(after, field.name).isfinite().all()
        assert (after.logits.isinf() == torch.tensor([False, False, True, False, False])).all()
        torch.testing.assert_close(head.nats(), nats)
        if predictive == "mean-logit":
            kept = before.probs[:, [0, 1, 3, 4]]
            torch.testing.assert_close(
                after.probs[:, [0, 1, 3, 4]], kept / kept.sum(1, keepdim=True)
            )


@pytest.mark.parametrize("sizes", [(), (2,), (5, 5, 5, 5)])
@pytest.mark.parametrize("is_open", [True, False])
def test_a_saved_state_comes_back_into_a_head_of_any_size(make, features, sizes, is_open) -> None:
    head = make((3, 1, 4), (1,))
    head.hide([20])
    if not is_open:
        head.adapters.close()
    state = copy.deepcopy(head.state_dict())
    other = make(sizes)
    other.load_state_dict(state)
    for name, value in head.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name
    assert_same(head.predict(features(9)), other.predict(features(9)))
    other.grow([500], text_for(1))
    head.grow([500], text_for(1))
    assert_same(head.predict(features(9)), other.predict(features(9)))


def test_the_same_seed_makes_the_same_head_and_leaves_the_global_generator() -> None:
    torch.manual_seed(1)
    wanted = torch.rand(2)
    torch.manual_seed(1)
    heads = [VariationalHead(16, 1.0, ClapSettings(feedforward=8), seed) for seed in (4, 4, 5)]
    assert torch.equal(torch.rand(2), wanted)
    for head in heads:
        head.grow([1, 2], text_for(2).float())
    first, second, third = (torch.cat([p.flatten() for p in h.parameters()]) for h in heads)
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
