"""Sequences of ten and of thirty requests: ``ten`` and ``thirty``."""

from __future__ import annotations

from clapforget.scenarios.requests import Request
from clapforget.scenarios.sequences.base import Material, named_sequence

__all__ = ["ten", "thirty"]


@named_sequence("ten", "10 requests: 5 to learn, 5 to forget a class, by turns")
def ten(material: Material) -> list[Request]:
    """All classes in five requests."""
    return _by_turns(material, 5)


@named_sequence("thirty", "30 requests: 15 to learn, 15 to forget a class, by turns")
def thirty(material: Material) -> list[Request]:
    """All classes in fifteen requests."""
    return _by_turns(material, 15)


def _by_turns(material: Material, turns: int) -> list[Request]:
    requests: list[Request] = []
    for learn in material.split(turns):
        requests.append(learn)
        requests.append(material.forget_one(requests))
    return requests
