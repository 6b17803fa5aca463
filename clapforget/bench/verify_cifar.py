"""``clapforget bench verify --scenario cifar100``: kinds whose truth needs no retrained twin, on natural images.

The model is ``cifar100-tiny``, trained on the data's own training images of sixty classes; forty names mean
nothing to it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from clapforget.bench import (  # noqa: F401 (they file the kinds)
    verify_adversary,
    verify_attacks,
    verify_cases,
    verify_harmless,
)
from clapforget.bench.verify_edits import scramble_names, token_rows
from clapforget.bench.verify_kinds import KINDS, Case, Kind, bare, cases, is_right
from clapforget.bench.verify_world import World
from clapforget.clip import Clip
from clapforget.errors import UserError
from clapforget.loading import load_clip
from clapforget.scenarios import ImageData, cifar100
from clapforget.scenarios.data import TensorImages
from clapforget.seeding import generator_for
from clapforget.verify.examine import examine
from clapforget.verify.material import Material, Part, material_from
from clapforget.verify.reading import Level

__all__ = ["CifarWorld", "kinds", "measure_cifar"]

_FORGET = 3
_IMAGES = 50
"""Images of a class and split that are read: of the training images the first half is what the verifier
gives an attacker, the other is for whoever makes a case."""
_KINDS = (
    "nothing done", "random edit too small", "wrong class", "scale of the logits lowered",
    "name removed from the head", "stored text embedding of an unseen class", "knowledge moved to an unseen name",
    "gradient ascent run long", "large random edit", "adapter never trained",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class CifarWorld(World):
    """CIFAR-100 and the built-in model for it. Class order as the folders are named."""

    @classmethod
    def at(cls, seed: int, path: Path | None) -> CifarWorld:
        """:raises UserError: if CIFAR-100 is not there."""
        return cls(seed, cifar100(path, max_per_class=_IMAGES), load_clip("cifar100-tiny"))

    @cached_property
    def forget(self) -> tuple[int, ...]:  # type: ignore[override]
        """Three known classes, drawn among those whose names share no token with another name: an edit of
        one's tokens is then an edit of that name alone."""
        if self.request:
            return self.request
        rows = {c: set(token_rows(self, c)) for c in range(self.data.num_classes)}
        alone = [
            c for c in sorted(self.data.known or ())
            if not any(rows[c] & other for label, other in rows.items() if label != c)
        ]  # fmt: skip
        order = torch.randperm(len(alone), generator=generator_for(self.seed, 57))
        return tuple(sorted(alone[i] for i in order[:_FORGET].tolist()))

    @property
    def new(self) -> tuple[int, ...]:
        """Two classes that the backbone never knew."""
        unknown = [c for c in range(self.data.num_classes) if c not in (self.data.known or ())]
        order = torch.randperm(len(unknown), generator=generator_for(self.seed, 41))
        return tuple(unknown[i] for i in order[:2].tolist())

    @cached_property
    def retain(self) -> tuple[int, ...]:  # type: ignore[override]
        """Known classes, the request left out."""
        return tuple(c for c in sorted(self.data.known or ()) if c not in self.forget)

    @property
    def twin(self) -> Clip:  # type: ignore[override]
        """:raises UserError: always: none of the kinds here needs one."""
        raise UserError("the truth bench trains no twin on CIFAR-100", "choose kinds without one")

    def strangers(self, count: int) -> list[int]:
        """Classes that the model never knew, others than :attr:`new`, drawn at random."""
        taken = {*(self.data.known or ()), *self.new}
        free = [c for c in range(self.data.num_classes) if c not in taken]
        order = torch.randperm(len(free), generator=generator_for(self.seed, 54))
        return [free[i] for i in order[:count].tolist()]

    def material(
        self, forget: Sequence[int], verifier_seed: int, also_kept: Sequence[int] = ()
    ) -> Material:
        """What the verifier is given: test images, and as attack images only training images that nobody
        makes a case with."""
        unseen = [c for c in range(self.data.num_classes)
                  if c not in (self.data.known or ()) and c not in forget]  # fmt: skip
        return material_from(
            self._attackers, forget, retain=(*self.retain, *also_kept), unseen=unseen, seed=verifier_seed,
            test_images=50, unseen_images=15,
        )  # fmt: skip

    @cached_property
    def _attackers(self) -> ImageData:
        rows = torch.cat([
            self.data.rows("train", [c])[: _IMAGES // 2] for c in range(self.data.num_classes)
        ])  # fmt: skip
        train = self.data.train
        return replace(
            self.data, train=TensorImages(train.images(rows), train.targets[rows], "train")
        )

    def images(self, classes: Sequence[int], each: int, first: int = 0) -> Part:
        """The last training images of each class, at most half of those read, grouped by class in the order
        given. :param first: so many of each class, from the end, are passed over."""
        assert first + each <= _IMAGES // 2
        last = _IMAGES - first
        rows = torch.cat([self.data.rows("train", [c])[last - each : last] for c in classes])
        return Part(self.data.train.images(rows), self.data.train.targets[rows])


def kinds() -> list[Kind]:
    """The chosen kinds, and one of its own."""
    named = {kind.name: kind for kind in KINDS}

    def scrambled(world: World) -> Case:
        return bare(world, scramble_names(world, world.forget))

    return [*(named[name] for name in _KINDS),
            Kind("name lost, the tower knows", "suppressed", scrambled)]  # fmt: skip


def measure_cifar(
    path: Path | None,
    seeds: Sequence[int] = (0,),
    level: Level = "quick",
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """All of :func:`kinds`.

    :param path: the data; default: what CLAPFORGET_DATA says. :returns: ``outcomes``, ``right_verdict``,
    ``false_forgotten``, as in :mod:`clapforget.bench.verify`."""
    outcomes: list[dict[str, Any]] = []
    missing: list[str] = []
    for seed in seeds:
        world = CifarWorld.at(seed, path)
        old: dict[Any, Any] = {}
        for kind, case in cases(world, kinds(), missing, say):
            m = world.material(case.forget, seed)
            began = time.monotonic()
            key = (case.before, case.forget)
            found = examine(
                case.before, case.after, m, level=level, seed=seed, before_readings=old.get(key)
            )
            old[key] = found.readings["before"]
            verdict = found.judgement.verdict
            outcomes.append({
                "kind": kind.name, "truth": kind.truth, "seed": seed, "request": world.names(case.forget),
                "verdict": verdict, "right": is_right(verdict, kind.truth, kind.or_else),
                "rule": found.judgement.rule, "weakest": found.judgement.weakest,
                "seconds": round(time.monotonic() - began, 1),
            })  # fmt: skip
            say(f"{seed} {kind.name}: {kind.truth}, verdict {verdict} ({found.judgement.rule}; "
                f"{found.judgement.weakest})")  # fmt: skip
    fakes = [o for o in outcomes if o["truth"] != "forgotten"]
    return {
        "level": level, "seeds": list(seeds), "outcomes": outcomes, "not_made": missing,
        "right_verdict": sum(o["right"] for o in outcomes) / len(outcomes),
        "false_forgotten": sum(o["verdict"] == "forgotten" for o in fakes) / len(fakes),
    }  # fmt: skip
