"""Which life the twin lives."""

from __future__ import annotations

import pytest

from clapforget.scenarios import Learn, format_sequence, parse_sequence
from clapforget.strategies.twin import twin_requests


@pytest.mark.parametrize(
    ("life", "forgotten", "twin"),
    [
        ("L0-3 F1 L4,5", {1}, "L0,2,3 L4,5"),
        ("L0-3 L4,5 F1 F4", {1, 4}, "L0,2,3 L5"),
        ("L0-3 L4 F4", {4}, "L0-3"),  # a task of which nothing is left is no request
        ("L0-3 F1 L4 L1", set(), "L0-3 L4"),  # learned again: it counts as never forgotten
        ("L0-3 F1 L1 F1", {1}, "L0,2,3"),
        ("L3,1,2", set(), "L3,1,2"),  # in the order of the stream
        ("L0-3 F60", {60}, "L0-3"),  # forgotten without having been learned
    ],
)
def test_the_twin_learns_the_same_without_what_is_forgotten_at_the_end(
    life: str, forgotten: set[int], twin: str
) -> None:
    requests = twin_requests(parse_sequence(life), forgotten)
    assert all(isinstance(request, Learn) for request in requests)
    assert format_sequence(requests) == twin
