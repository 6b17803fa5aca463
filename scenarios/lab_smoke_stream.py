"""Scenario ``lab-smoke``: the built-in job made small, to see in seconds that everything works."""

from __future__ import annotations

from pathlib import Path

from clapforget.lab import unseen_classes
from clapforget.scenarios.data import ImageData
from clapforget.scenarios.lab_data import lab
from clapforget.scenarios.plan import Plan
from clapforget.scenarios.registry import no_data, scenario

__all__ = ["lab_smoke_stream"]


@scenario(
    "lab-smoke",
    "3 tasks of 4 classes of the built-in world, 2 forget requests; a trial run in seconds",
    model="lab-tiny",
)
def lab_smoke_stream(data_path: Path | None) -> tuple[ImageData, Plan]:
    """Labels 0-11 are learned, 2 known and 2 new ones a task; 12-65 are known bystanders."""
    no_data("lab-smoke", data_path)
    return lab(train_per_class=40, test_per_class=40), Plan(
        tasks=((2, 2),) * 3,
        forgets={2: ("known",), 3: ("new",)},
        unseen=unseen_classes(),
    )
