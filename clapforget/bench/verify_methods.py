"""``clapforget bench verify --methods``: every forgetter before the verifier, the twin beside it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from clapforget.bench.verify_world import World
from clapforget.errors import UserError
from clapforget.unlearn.base import FORGETTERS, make_forgetter
from clapforget.verify.examine import examine
from clapforget.verify.reading import Level
from clapforget.verify.subject import Subject

__all__ = ["measure_methods"]

_SHOWN = ("answers", "wordings_best", "rounding_4", "transforms_best", "matched_cosine", "placement", "learned_prompt",
          "relearning_5", "resurfacing")  # fmt: skip
_FORGET_IMAGES, _RETAIN_IMAGES = 50, 10


def measure_methods(
    level: Level = "quick", say: Callable[[str], None] = lambda line: None, seed: int = 0
) -> dict[str, Any]:
    """The default preset of every forgetter on one request of the lab, all retained classes in memory.

    The verdict is given for both claims, against unseen classes; ``twin`` is the retrained backbone in
    the same place.

    :returns: by method: verdicts, rules, values of some evidence, accuracy kept, seconds.
    """
    world = World.of(seed)
    m = world.material(world.forget, seed)
    task = world.task(_FORGET_IMAGES, _RETAIN_IMAGES)
    old = None
    table: dict[str, Any] = {}
    for name in ("twin", *FORGETTERS.names()):
        began = time.monotonic()
        try:
            clip = (
                world.twin
                if name == "twin"
                else make_forgetter(name).unlearn(world.base, task).clip
            )
        except UserError as error:  # a method that this request has nothing for
            table[name] = {"left_out": str(error)}
            continue
        spent = time.monotonic() - began
        found = examine(world.before, Subject(clip), m, level=level, claim="association", seed=seed,
                        before_readings=old)  # fmt: skip
        old = found.readings["before"]
        strict = found.judge("knowledge")
        pieces = {p.name: p for p in found.evidence}
        table[name] = {
            "association": found.judgement.verdict, "association_rule": found.judgement.rule,
            "knowledge": strict.verdict, "knowledge_rule": strict.rule, "weakest": found.judgement.weakest,
            "values": {n: round(pieces[n].value, 3) for n in _SHOWN if n in pieces},
            "retain": round(pieces["clip_retain_accuracy"].value, 3), "seconds": round(spent, 1),
        }  # fmt: skip
        say(f"{name}: {table[name]}")
    return {"level": level, "seed": seed, "request": world.names(world.forget), "methods": table}
