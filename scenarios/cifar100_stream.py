"""Scenario ``cifar100``: real photographs on a small model whose pretraining is known."""

from __future__ import annotations

from pathlib import Path

from clapforget.scenarios.cifar100_data import cifar100, unseen_classes
from clapforget.scenarios.data import ImageData
from clapforget.scenarios.plan import Plan
from clapforget.scenarios.registry import scenario

__all__ = ["cifar100_stream"]


@scenario(
    "cifar100",
    "9 tasks of 10 classes of CIFAR-100, 4 forget requests; needs --data or CLAPFORGET_DATA",
    model="cifar100-tiny",
)
def cifar100_stream(data_path: Path | None) -> tuple[ImageData, Plan]:
    """Labels 0-89 are learned, 6 or 7 known ones a task, the rest new; 90-99 stay unseen."""
    known = [60 * (k + 1) // 9 - 60 * k // 9 for k in range(9)]
    return cifar100(data_path), Plan(
        tasks=tuple((number, 10 - number) for number in known),
        forgets={2: ("known",), 4: ("new",), 7: ("any", "any"), 9: ("known",)},
        unseen=unseen_classes(),
    )
