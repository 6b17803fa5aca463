"""``clapforget bench learn``: what the fast path of learning is worth, on this machine.

Each ratio is measured in one process with both sides in turn (medians of several rounds), at the
width of ViT-B/16 (d = 512, B = 32, M = 20, 18 templates).

=====================  =============================================================================
step_ratio_*           whole training step of stage 1, the released program's arithmetic
                       (:mod:`clapforget.bench.naive_clap`) over the fast path
head_ratio_*           the same of a head without attention (``clap.guidance=none``)
head_guided_ratio_*    the same with attention's output given and its gradient asked for, as attention
                       would need it
products_ms_*          the matrix products of the fast path's step by themselves, in the same layouts and
                       into memory that is there (:mod:`clapforget.bench.products`); ``products_gflop_*``
                       their number of operations
update_ms_*            SGD's pass over the parameters that the step trains, by itself; ``update_mb_*`` its bytes
step_limit_*           the naive step over these products and that pass alone: what ``step_ratio_*`` can reach at
                       most as long as the step multiplies and trains what it does
step_ratio_bfloat16_*  the whole step with attention in bfloat16 (``clap.precision``); only where the
                       processor has such products
uncertainty_ratio      prediction with entropy, expected entropy and mutual information in closed
                       form, over prediction at the mean; 1,000 classes, 1,024 images, guided by the
                       memory; ``…_weights_at_hand``: without working out the class weights
encodes_per_image      images encoded in two learn experiences, by images in them
strategy_overhead      a learn experience through the strategy, over the same training as a plain
                       loop on the same tensors (built-in model, tenth task of ten classes)
selection_seconds      the slowest exemplar score, 20 a class out of 50,000 images of 100 classes, what the
                       posterior says of the images being at hand; ``…_with_posterior``: CLAP's 20 draws of all
                       of them and the choice
exact_*                the exact posterior (:mod:`clapforget.bench.exact`): CLAP's seconds to learn an
                       experience over its own, seconds to delete a class, megabytes of its state
=====================  =============================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clapforget.bench.memory import PeakMemory
from clapforget.bench.naive_clap import NaiveClap
from clapforget.bench.products import Products
from clapforget.bench.timing import flushing, in_turn
from clapforget.posterior import ClapSettings, VariationalHead, moments
from clapforget.posterior.pyro_form import elbo_loss
from clapforget.posterior.terms import regularisers
from clapforget.posterior.weights import ClassWeights, Stage
from clapforget.processor import has_bfloat16
from clapforget.seeding import generator_for
from clapforget.uncertainty import expected_entropy, predictive_entropy

__all__ = ["measure"]

_WIDTH, _BATCH, _TEMPLATES, _SCALE, _LR = 512, 32, 18, 100.0, 1e-6
_MILLI = 1000.0


def measure(
    rounds: int = 15, quick: bool = False, say: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """All measurements, as plain values by name.

    :param rounds: turns of each side. :param quick: small sizes, to see that it runs; then sizes in
        names are small too. :param say: hears of each part as it begins.
    """
    from clapforget.bench.exact import exact_costs, learn_ratio
    from clapforget.bench.strategy import encodes_per_image, selection_seconds, strategy_overhead

    found: dict[str, Any] = {
        "threads": torch.get_num_threads(), "torch": torch.__version__, "rounds": rounds, "quick": quick,
    }  # fmt: skip
    for classes, tasks in ((20, 4),) if quick else ((20, 2), (100, 10), (1000, 100)):
        say(f"training step, {classes} classes in {tasks} tasks")
        found |= training_steps(classes, tasks, max(min(3, rounds), rounds * 100 // classes))
    say("uncertainty without sampling")
    found |= uncertainty_cost(rounds, *((20, 16) if quick else (1000, 1024)))
    say("encoding")
    found["encodes_per_image"] = encodes_per_image()
    say("strategy")
    found |= strategy_overhead(max(1, rounds // 3), *((2, 2) if quick else (10, 10)))
    say("selection")
    found |= selection_seconds(*((5, 100, 4) if quick else (100, 50_000, 20)))
    say("the exact posterior")
    found |= learn_ratio(max(1, rounds // 5), *((2, 2, 10) if quick else ()))
    found |= exact_costs(*((16, 20, 4, 10, 8) if quick else ()))
    return found


def make_head(classes: int, tasks: int, seed: int = 0, **settings: Any) -> VariationalHead:
    """A head with texts drawn at random; its newest task is open."""
    head = VariationalHead(_WIDTH, _SCALE, ClapSettings(**settings), seed)
    each = classes // tasks
    rng = generator_for(seed, 1)
    for start in range(0, classes, each):
        name = torch.randn(each, 1, _WIDTH, generator=rng)
        wording = torch.randn(each, _TEMPLATES, _WIDTH, generator=rng)
        head.grow(range(start, start + each), F.normalize(name + 0.5 * wording, dim=-1))
    head.guide(images(256, seed))
    return head


def images(n: int, seed: int = 0) -> Tensor:
    """Unit features [n, d]."""
    return F.normalize(torch.randn(n, _WIDTH, generator=generator_for(seed, 2)), dim=-1)


def _steps(
    loss: Callable[[Tensor | None], Tensor], parameters: Iterator[Any], guidance: Tensor | None
) -> Callable[[], None]:
    """One whole training step: gradients to zero, loss, backward, SGD."""
    optimizer = torch.optim.SGD([p for p in parameters if p.requires_grad], lr=_LR)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(guidance).backward()
        optimizer.step()

    return step


def training_steps(classes: int, tasks: int, rounds: int) -> dict[str, Any]:
    """Ratios of the step and of its head, their milliseconds, and those of the Pyro form."""
    size = f"c{classes}_t{tasks}"
    found: dict[str, Any] = {}
    v = images(_BATCH)
    y = torch.randint(classes, (_BATCH,), generator=generator_for(0, 3))
    stages: tuple[tuple[Stage, str], ...] = (("newest", ""), ("all", "consolidation_"))
    rounds_off = has_bfloat16(v.device)
    for stage, name in stages:
        rng = generator_for(0, 4)
        settings: tuple[dict[str, Any], ...] = ({}, {"guidance": "none"}, {"precision": "bfloat16"})
        heads = [make_head(classes, tasks, **options) for options in settings[: 3 if rounds_off else 2]]
        for head in heads:
            head.train_only(stage)
            head.train_stage(stage)
        whole, bare = heads[:2]
        a = (whole.inputs(v) - whole.text).detach().requires_grad_(stage == "newest")
        sides: dict[str, Callable[[], None]] = {}
        for what, head, guidance in (
            ("step", whole, None), ("head", bare, None), ("head_guided", whole, a),
        ):  # fmt: skip
            naive = NaiveClap(head)
            naive.train_only(stage)
            slow = partial(naive.loss, v, y, stage)
            sides[f"naive_{what}"] = _steps(slow, naive.parameters(), guidance)
            for form in ("fast", "pyro"):
                loss = partial(_loss, head, v, y, stage, rng, form == "pyro")
                sides[f"{form}_{what}"] = _steps(loss, head.parameters(), guidance)
        for half in heads[2:]:
            loss = partial(_loss, half, v, y, stage, rng, False)
            sides["bfloat16_step"] = _steps(loss, half.parameters(), None)
        with Products() as products:
            sides["fast_step"]()
        sides["products"] = products.plain()
        sides["update"], moved = _update(whole)
        around = {key: flushing for key in sides if not key.startswith("naive")}
        timing = in_turn(sides, rounds, around, warm=True)
        for what in ("step", "head", "head_guided"):
            found[f"{name}{what}_ratio_{size}"] = timing.ratio(f"naive_{what}", f"fast_{what}")
        floor = timing["products"] + timing["update"]
        found[f"{name}step_limit_{size}"] = round(timing["naive_step"] / floor, 3)
        found[f"{name}update_mb_{size}"] = round(moved / 2**20, 1)
        found[f"{name}products_gflop_{size}"] = round(products.flop / 1e9, 3)
        if rounds_off:
            found[f"{name}step_ratio_bfloat16_{size}"] = timing.ratio("naive_step", "bfloat16_step")
        found |= {f"{name}{key}_ms_{size}": round(_MILLI * s, 2) for key, s in timing.items()}
        for form in ("fast", "pyro"):
            with PeakMemory() as memory:
                sides[f"{form}_step"]()
            found[f"{name}{form}_step_peak_mb_{size}"] = round(memory.peak / 2**20, 1)
    return found


def _update(head: VariationalHead) -> tuple[Callable[[], None], int]:
    """What SGD does to the parameters that the last step gave gradients: one pass over memory, and its bytes (each
    weight and gradient read, each weight written)."""
    gradients = [p.grad for p in head.parameters() if p.grad is not None]
    gradients, weights = ([torch.zeros_like(g) for g in gradients] for _ in range(2))

    def run() -> None:
        torch._foreach_add_(weights, gradients, alpha=-_LR)

    return run, 3 * sum(g.numel() * g.element_size() for g in gradients)


def _loss(
    head: VariationalHead, v: Tensor, y: Tensor, stage: Stage, rng: torch.Generator, pyro: bool,
    guidance: Tensor | None,
) -> Tensor:  # fmt: skip
    """The fast path's loss, or the vectorised ELBO and the terms beside it."""
    x = head.inputs(v) if guidance is None else head.text + guidance
    weights, top = head.posterior(x)
    noise = head.draw(v, stage, rng)
    if not pyro:
        return head.loss(weights, v, y, stage, noise, top)
    beside = regularisers(head, weights, noise.mean_latent, v, stage)
    return elbo_loss(head, x, v, y, stage) + beside


@torch.no_grad()
def uncertainty_cost(rounds: int, classes: int, batch: int) -> dict[str, Any]:
    """What uncertainty without sampling costs, and how far it is from 1,000 samples; how far another
    1,000 samples are from those is what that means."""
    head = make_head(classes, classes // 10).eval()
    v, weights = images(batch), head.weights()
    wide = _errors(head, weights, v[:128])
    sigma = weights.sigma * 0.1
    narrow = _errors(head, weights._replace(sigma=sigma), v[:128])

    def at_the_mean(given: ClassWeights | None) -> Tensor:
        return (given or head.weights()).mean_logits(v, head.scale).softmax(-1)

    def with_uncertainty(given: ClassWeights | None) -> Any:
        return moments.predictive(*head.logits(given or head.weights(), v))

    sides: dict[str, Callable[[], Any]] = {
        "mean": partial(at_the_mean, None), "closed": partial(with_uncertainty, None),
        "mean_given": partial(at_the_mean, weights), "closed_given": partial(with_uncertainty, weights),
    }  # fmt: skip
    timing = in_turn(sides, rounds, dict.fromkeys(sides, flushing), warm=True)
    return {
        "uncertainty_ratio": timing.ratio("closed", "mean"),
        "uncertainty_ratio_weights_at_hand": timing.ratio("closed_given", "mean_given"),
        "prediction_ms": round(_MILLI * timing["mean"], 2),
        "uncertainty_ms": round(_MILLI * timing["closed"], 2),
        "prediction_ms_weights_at_hand": round(_MILLI * timing["mean_given"], 2),
        "uncertainty_ms_weights_at_hand": round(_MILLI * timing["closed_given"], 2),
        "uncertainty_error_nats": wide,
        "uncertainty_error_nats_tenth_of_sigma": narrow,
    }


def _errors(head: VariationalHead, weights: ClassWeights, v: Tensor) -> dict[str, Any]:
    """Mean absolute differences from 1,000 samples, in nats."""
    mean, std = head.logits(weights, v)

    def sampled(seed: int) -> dict[str, Tensor]:
        rng = generator_for(seed, 5)
        p = torch.cat([
            (mean + std * torch.randn(50, *mean.shape, generator=rng)).softmax(-1) for _ in range(20)
        ])  # fmt: skip
        total, aleatoric = predictive_entropy(p), expected_entropy(p)
        return {"entropy": total, "expected_entropy": aleatoric, "mutual_information": total - aleatoric}  # fmt: skip

    out, wanted, again = moments.predictive(mean, std), sampled(0), sampled(1)
    found: dict[str, Any] = {}
    for name, value in wanted.items():
        found[name] = {
            "closed_form": round((getattr(out, name) - value).abs().mean().item(), 4),
            "another_1000_samples": round((again[name] - value).abs().mean().item(), 4),
            "mean": round(value.mean().item(), 4),
        }
    return found
