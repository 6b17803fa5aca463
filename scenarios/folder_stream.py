"""Scenario ``folder``: your own images, on a CLIP from the open_clip hub."""

from __future__ import annotations

from pathlib import Path

from clapforget.errors import UserError
from clapforget.scenarios.data import ImageData
from clapforget.scenarios.folder_data import folder
from clapforget.scenarios.plan import Plan, Wish
from clapforget.scenarios.registry import scenario

__all__ = ["folder_stream"]


@scenario(
    "folder",
    "any folder of train/<class>/* and test/<class>/*, 2 forget requests; needs --data",
    model="ViT-B-32",
    pretrained="laion2b_s34b_b79k",
)
def folder_stream(data_path: Path | None) -> tuple[ImageData, Plan]:
    """All classes are learned, in five equal tasks or in tasks of ten where there are many; one
    class is forgotten after the middle, and one at the end."""
    if data_path is None:
        raise UserError(
            "scenario folder needs images",
            "give --data DIR, a folder with train/<class>/* and test/<class>/*",
        )
    data = folder(data_path)
    if data.num_classes < 2:
        raise UserError(f"data folder {data_path} has one class", "a stream needs two or more")
    size = min(10, max(2, -(-data.num_classes // 5)))
    starts = range(0, data.num_classes, size)
    tasks = tuple((0, min(size, data.num_classes - start)) for start in starts)
    forgets: dict[int, tuple[Wish, ...]] = {-(-len(tasks) // 2): ("any",), len(tasks): ("any",)}
    return data, Plan(tasks, forgets)
