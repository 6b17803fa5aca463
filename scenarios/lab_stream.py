"""Scenario ``lab``: the built-in job."""

from __future__ import annotations

from pathlib import Path

from clapforget.lab import unseen_classes
from clapforget.scenarios.data import ImageData
from clapforget.scenarios.lab_data import lab
from clapforget.scenarios.plan import Plan
from clapforget.scenarios.registry import no_data, scenario

__all__ = ["lab_stream"]


@scenario(
    "lab",
    "5 tasks of 10 classes of the built-in world, 3 forget requests; no download, runs on a CPU",
    model="lab-tiny",
)
def lab_stream(data_path: Path | None) -> tuple[ImageData, Plan]:
    """Labels 0-49 are learned, 4 known and 6 new ones a task; 50-89 are known bystanders; 90-99
    stay unseen."""
    no_data("lab", data_path)
    return lab(), Plan(
        tasks=((4, 6),) * 5,
        forgets={2: ("known",), 4: ("new",), 5: ("known", "new")},
        unseen=unseen_classes(),
    )
