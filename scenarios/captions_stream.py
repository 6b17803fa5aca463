"""Scenario ``captions``: your own image-caption pairs, on a CLIP from the open_clip hub."""

from __future__ import annotations

from pathlib import Path

from clapforget.errors import UserError
from clapforget.scenarios.captions_data import captioned
from clapforget.scenarios.data import ImageData
from clapforget.scenarios.plan import Plan
from clapforget.scenarios.registry import scenario

__all__ = ["captions_stream"]


@scenario(
    "captions",
    "image-caption pairs in Flickr30K's layout; needs --data and --sequence 'F\"a phrase\"'",
    model="ViT-B-32",
    pretrained="laion2b_s34b_b79k",
)
def captions_stream(data_path: Path | None) -> tuple[ImageData, Plan]:
    """Nothing is learned: there are no classes. What to forget is for ``--sequence`` to say."""
    if data_path is None:
        raise UserError(
            "scenario captions needs images and captions",
            "give --data DIR, a folder in Flickr30K's layout",
        )
    return captioned(data_path), Plan(tasks=(), forgets={})
