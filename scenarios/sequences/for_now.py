"""Sequence ``for-now``: CLPU's three kinds of request (Liu et al., CoLLAs 2022, their order)."""

from __future__ import annotations

from clapforget.errors import UserError
from clapforget.scenarios.requests import Forget, Learn, LearnForNow, Request
from clapforget.scenarios.sequences.base import Material, named_sequence

__all__ = ["for_now"]


@named_sequence("for-now", "CLPU's 0R 1T 2T 3R 1R 2F 4T 4F: learn for good, learn for now, forget")
def for_now(material: Material) -> list[Request]:
    """As published, over the first five tasks. Needs a head that can take back: ``exact``."""
    if len(material.tasks) < 5:
        raise UserError(
            f"sequence for-now takes five tasks, the scenario has {len(material.tasks)}",
            "choose another sequence or scenario",
        )
    zero, one, two, three, four = material.tasks[:5]
    return [
        Learn(zero), LearnForNow(one), LearnForNow(two), Learn(three), Learn(one), Forget(two),
        LearnForNow(four), Forget(four),
    ]  # fmt: skip
