"""Which samples are worth keeping: one file a selector, registered by name."""

from clapforget.strategies.selection.base import (
    SELECTORS,
    Candidates,
    Reads,
    Selector,
    find_selector,
)

__all__ = ["SELECTORS", "Candidates", "Reads", "Selector", "find_selector"]
