"""clapforget: continual learning and unlearning on CLIP, with uncertainty that can be trusted.

Importing the package is cheap; its parts are loaded when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clapforget.clip import Clip, load_clip
    from clapforget.errors import UserError

__version__ = "0.1.0"
__all__ = ["Clip", "UserError", "__version__", "load_clip"]


def __getattr__(name: str) -> Any:
    if name in ("Clip", "load_clip"):
        from clapforget import clip

        return getattr(clip, name)
    if name == "UserError":
        from clapforget.errors import UserError

        return UserError
    raise AttributeError(f"module 'clapforget' has no attribute {name!r}")
