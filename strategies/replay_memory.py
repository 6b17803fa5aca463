"""Memories of Avalanche's replay: which of them can forget, and how."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from avalanche.training.plugins import ReplayPlugin
from avalanche.training.storage_policy import (
    BalancedExemplarsBuffer,
    ParametricBuffer,
    ReservoirSamplingBuffer,
)

from clapforget.errors import UserError
from clapforget.strategies.buffer import UncertaintyBuffer

__all__ = ["check_policy", "forget_in_buffer", "replay_policies"]


def replay_policies(strategy: Any) -> list[Any]:
    """The storage policies of a strategy's replay plugins."""
    return [p.storage_policy for p in strategy.plugins if isinstance(p, ReplayPlugin)]


def check_policy(policy: Any) -> None:
    """Refuse a storage policy whose samples cannot be deleted.

    :raises UserError: for one that is neither ours nor made of reservoirs.
    """
    if isinstance(policy, BalancedExemplarsBuffer) and not isinstance(policy, ParametricBuffer):
        for group in policy.buffer_groups.values():
            check_policy(group)
    elif not isinstance(policy, (UncertaintyBuffer, ReservoirSamplingBuffer)):
        raise UserError(
            f"{type(policy).__name__} cannot delete samples",
            "use UncertaintyBuffer, or a class-balanced or reservoir buffer of Avalanche",
        )


def forget_in_buffer(buffer: Any, sample_ids: Collection[int], labels: Collection[int] = ()) -> int:
    """Delete samples from one of Avalanche's storage policies. :returns: how many.

    They are out of the buffer's data set; that is a view of your data, which is yours to delete.

    :param sample_ids: the data's ``sample_id``. :param labels: classes of which all are deleted.
    :raises UserError: for a policy that cannot forget, or a buffer without sample ids.
    """
    check_policy(buffer)
    if isinstance(buffer, UncertaintyBuffer):
        return buffer.forget(labels, sample_ids)
    if isinstance(buffer, BalancedExemplarsBuffer):
        groups = buffer.buffer_groups
        deleted = sum(forget_in_buffer(group, sample_ids, labels) for group in groups.values())
        for name in [name for name, group in groups.items() if not len(group.buffer)]:
            del groups[name]
            for seen in ("seen_classes", "seen_groups"):
                getattr(buffer, seen, set()).discard(name)
        return deleted
    data = buffer.buffer
    if len(data) and not hasattr(data, "sample_id"):
        raise UserError("the replay memory has no sample ids", "learn from clapforget's streams")
    ids = list(data.sample_id) if len(data) else []
    kept = [
        i for i, (one, y) in enumerate(zip(ids, data.targets if ids else []))
        if one not in sample_ids and int(y) not in labels
    ]  # fmt: skip
    buffer.buffer = data.subset(kept) if ids else data
    buffer._buffer_weights = buffer._buffer_weights[kept]
    return len(ids) - len(kept)
