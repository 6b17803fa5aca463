"""``clapforget bench forget``: what reuse is worth to a forgetter, and what each forgetter costs.

======================  ============================================================================
prefix_step_ratio       a whole step of CLIPErase as published (both sets' features, the reference's,
                        three losses, backward, Adam), the plain way
                        (:mod:`clapforget.bench.plain_forget`) over ours; ViT-B-32 with random weights,
                        last two blocks of both towers, captions; sides in turn, medians
prefix_seconds          what ours spends once, before the first step
prefix_feature_error    largest difference of a feature from the whole computation
judge_ratio             ten evaluations of a tensor of the next-to-last image block, as SLUG's search
                        makes them: plain over ours
methods                 by model and method: seconds and peak memory (tensors made) of a request, one
                        class of the lab on the built-in models (cifar100-tiny does not know it;
                        cost is all that is asked), all pairs on ViT-B-32, where methods that train
                        train its last two blocks. There, methods that report their steps run
                        ``measured_steps``, and ``seconds`` is extrapolated from those to ``steps``;
                        ``settings`` are those that differ from the method's own
======================  ============================================================================
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from clapforget import lab
from clapforget.bench.memory import PeakMemory
from clapforget.bench.plain_forget import PlainBatches
from clapforget.bench.timing import in_turn
from clapforget.bench.twin_request import pairs_of
from clapforget.clip import Clip
from clapforget.loading import build_clip, load_clip
from clapforget.prefix import Prefix
from clapforget.scenarios.lab_data import lab as lab_data
from clapforget.seeding import generator_for
from clapforget.unlearn import FORGETTERS, ForgetTask, Pairs, make_forgetter
from clapforget.unlearn.batches import Batches
from clapforget.unlearn.parameters import trainable_copy
from clapforget.unlearn.search import Judge
from clapforget.unlearn.slug import Slug
from clapforget.unlearn.stranger import Stranger
from clapforget.unlearn.trained import TrainedForgetter

__all__ = ["measure"]

_TRAIN: Mapping[str, Any] = {"train": "last-blocks", "blocks": 2}
_SHORTER: Mapping[str, Mapping[str, Any]] = {
    "negmerge": {"models": 1, "epochs": 1}, "text-projection": {"trials": 1},
}  # fmt: skip
"""On ViT-B-32, of methods that train several times and so have no steps to stop after."""
_STEPS = 3


def measure(
    rounds: int = 5, quick: bool = False, pairs: int = 256,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:  # fmt: skip
    """All measurements, as plain values by name.

    :param rounds: turns of each side of a ratio. :param quick: the built-in model in place of
        ViT-B-32 and a few methods, to see that it runs. :param pairs: in each of the two sets.
    """
    found: dict[str, Any] = {
        "threads": torch.get_num_threads(), "torch": torch.__version__, "rounds": rounds, "quick": quick,
        "pairs": pairs,
    }  # fmt: skip
    model = "ViT-S-32-alt" if quick else "ViT-B-32"
    clip, task = build_clip(model, seed=0), caption_task(224, 24 if quick else pairs)
    say(f"a step of CLIPErase on {model}")
    found |= {"model": model} | prefix_step(clip, task, rounds)
    say(f"  the plain way ÷ ours {found['prefix_step_ratio']}, once {found['prefix_seconds']} s")
    say("ten evaluations of a search")
    found["judge_ratio"] = judge_ratio(clip, task, max(1, rounds // 3))
    say(f"  plain ÷ ours {found['judge_ratio']}")
    names = ["cliperase", "slug"] if quick else FORGETTERS.names()
    methods: dict[str, Any] = {}
    for on, request, short in (
        ("lab-tiny", class_task(20), False),
        ("cifar100-tiny", class_task(20), False),
        (model, task, True),
    ):
        base = clip if short else load_clip(on)
        for name in names:
            say(f"a request by {name} on {on}")
            cost = request_cost(base, request, name, short or quick)
            methods.setdefault(on, {})[name] = cost
            say(
                f"  {cost['seconds']} s, {cost['peak_mb']} MB"
            )  # a run that is cut has said so much
    return found | {"methods": methods}


def caption_task(side: int, pairs: int, seed: int = 0) -> ForgetTask:
    """Random images [n, 3, side, side] and the lab's captions, two sets of as many pairs."""
    rng = generator_for(seed, 1)
    images = torch.randint(256, (2, pairs, 3, side, side), generator=rng, dtype=torch.uint8)
    texts = lab.captions("train", np.arange(2 * pairs), seed, variant=0)
    forget, retain = Pairs(images[0], texts[:pairs]), Pairs(images[1], texts[pairs:])
    return ForgetTask(forget, retain, seed=seed, captions=True)


def class_task(per_class: int, seed: int = 0) -> ForgetTask:
    """A class of the lab to forget (100 images), nineteen to keep."""
    known = sorted(lab.known_classes())[:20]
    data = lab_data(100, 1, seed=seed)
    forget, retain = pairs_of(data, known[:1], 100), pairs_of(data, known[1:], per_class)
    return ForgetTask(forget, retain, lab.TEMPLATES, lab.class_names(), seed)


def prefix_step(clip: Clip, task: ForgetTask, rounds: int) -> dict[str, Any]:
    """The step's ratio, milliseconds and peak memory by side; what is spent once; the error."""
    options = {**_TRAIN, "lr": 1e-6}
    forgetter = make_forgetter("cliperase:published", options)
    assert isinstance(forgetter, TrainedForgetter)
    s = forgetter.settings
    sides: dict[str, Callable[[], None]] = {}
    for name, kind in (("plain", PlainBatches), ("ours", Batches)):
        changed, chosen = trainable_copy(clip, s.train, s.blocks, s.rank, generator_for(0))
        batches = kind(clip, task, s.forget_batch, s.retain_batch, chosen)
        sides[name] = _step(forgetter, changed, batches)
    began = time.perf_counter()
    sides["ours"]()
    once = time.perf_counter() - began
    timing = in_turn(sides, rounds)
    found: dict[str, Any] = {
        "prefix_step_ratio": timing.ratio("plain", "ours"),
        "prefix_seconds": round(once - timing["ours"], 3),
        "forget_batch": s.forget_batch, "retain_batch": s.retain_batch,
        "prefix_feature_error": feature_error(clip, task, list(chosen)),
    }  # fmt: skip
    for name, run in sides.items():
        found[f"{name}_step_ms"] = round(1000 * timing[name], 1)
        with PeakMemory() as memory:
            run()
        found[f"{name}_step_peak_mb"] = round(memory.peak / 2**20, 1)
    return found


def _step(forgetter: TrainedForgetter, clip: Clip, batches: Batches) -> Callable[[], None]:
    parameters = [p for p in clip.model.parameters() if p.requires_grad]
    optimizer = type(forgetter).make_optimizer(parameters, lr=1e-6, weight_decay=0.0)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        forgetter.backward(forgetter.terms(clip, batches, 0), parameters)
        optimizer.step()

    return step


@torch.no_grad()
def feature_error(clip: Clip, task: ForgetTask, changing: list[str]) -> float:
    """Largest absolute difference, over coordinates and the first pairs of both towers."""
    images, names = task.forget.images[:16], task.forget.names[:16]
    tokens = clip.tokenize([task.templates[0].format(name) for name in names])
    errors = [
        (Prefix(clip, "image", images, changing)(clip) - clip.encode_image(images)).abs().max(),
        (Prefix(clip, "text", tokens, changing)(clip) - clip.encode_tokens(tokens)).abs().max(),
    ]
    return float(max(errors))


def judge_ratio(clip: Clip, task: ForgetTask, rounds: int) -> float:
    """Ten evaluations on a quarter of the pairs, the once-computed part counted as ours."""
    count = max(1, len(task.forget) // 4)
    held = [Pairs(part.images[:count], part.names[:count]) for part in (task.forget, task.retain)]
    visual: Any = clip.model.visual
    depth = len(visual.transformer.resblocks)
    tensor = f"visual.transformer.resblocks.{depth - 2}.attn.out_proj.weight"
    judge = Judge(clip, held[0], held[1], [], task.templates)

    def ten(watched: Callable[[], Judge]) -> Callable[[], None]:
        def run() -> None:
            now = watched()
            for _ in range(10):
                now(clip)

        return run

    sides = {"plain": ten(lambda: judge), "ours": ten(lambda: judge.watching([tensor]))}
    return in_turn(sides, rounds).ratio("plain", "ours")


class _Enough(Exception):
    """Enough steps were seen."""


def request_cost(clip: Clip, task: ForgetTask, name: str, short: bool) -> dict[str, Any]:
    """Seconds and peak memory (of tensors made, in MB) of one request.

    :param short: stop methods that report their steps after a few, and extrapolate.
    """
    cls = FORGETTERS.get(name)
    counts = issubclass(cls, (TrainedForgetter, Slug, Stranger))
    large = issubclass(cls, TrainedForgetter) and short
    settings = dict(_TRAIN if large else _SHORTER.get(name, {}) if short else {})
    forgetter = make_forgetter(name, settings)
    ticks: list[float] = []
    steps = 0

    def run(stop: bool) -> float:
        ticks.clear()

        def progress(step: int, total: int) -> None:
            nonlocal steps
            steps = total
            ticks.append(time.perf_counter())
            if stop and len(ticks) > _STEPS:
                raise _Enough

        began = time.perf_counter()
        try:
            forgetter.unlearn(clip, replace(task, progress=progress))
        except _Enough:
            each = statistics.median(b - a for a, b in pairwise(ticks))
            return ticks[-1] - began + (steps - len(ticks)) * each
        return time.perf_counter() - began

    found: dict[str, Any] = {
        "seconds": round(run(short and counts), 2),
        "settings": settings,
        "steps": steps,
        "measured_steps": len(ticks),
    }
    with PeakMemory() as memory:
        run(counts)
    return found | {"peak_mb": round(memory.peak / 2**20, 1)}
