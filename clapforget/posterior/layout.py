"""What a head's classes and tasks imply, worked out once and not in every step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from clapforget.attention import Groups
from clapforget.blocks import Blocks
from clapforget.posterior.weights import Stage

__all__ = ["Layout", "StageTerms"]


@dataclass(frozen=True)
class StageTerms:
    """Whose KL and language terms count in a stage, and how much."""

    share: Tensor
    """Weight of each column in sums over classes [C]: one over its task's size where the task
    counts, else zero. Retired classes have none."""
    kl_share: Tensor
    """As ``share``, but a retired class counts fully in every stage: it is held at the prior while
    the others learn. [C]"""
    counting: Tensor
    """Columns with a share."""
    kl_counting: Tensor | slice
    """Columns with a KL share: a slice where they are all columns from one on."""
    within: Tensor | None
    """Places of ``counting`` among ``kl_counting``; None where they are the same columns."""
    blocks: Blocks | None
    """The columns ``counting`` by task; None where nothing counts."""


@dataclass(frozen=True)
class Layout:
    """Made from the tasks of the columns and which of them are retired."""

    task: Tensor
    """Task of each column [C]."""
    retired: Tensor
    """[C]"""
    awake: Tensor
    """Columns that are not retired."""
    group: Tensor
    """Attention group of each class: its task, or itself alone once retired. [C]"""
    groups: Groups
    """Who attends to whom: the classes and, after them, the task tokens if there are any."""
    blocks: Blocks
    """The columns by task, for the adapters."""
    terms: dict[Stage, StageTerms]

    @classmethod
    def of(cls, task: Tensor, retired: Tensor, tasks: int, tokens: bool, mean: bool) -> Layout:
        """:param tasks: T. :param tokens: whether each task has a token among the queries.
        :param mean: whether terms are averaged over tasks, not added.
        """
        alone = tasks + torch.arange(len(task), device=task.device)
        group = torch.where(retired, alone, task)
        queries = torch.cat([group, torch.arange(tasks, device=task.device)]) if tokens else group
        return cls(
            task, retired, (~retired).nonzero().flatten(), group, Groups.of(queries),
            Blocks.of(task, tasks),
            {"newest": _terms(task, retired, tasks, True, mean),
             "all": _terms(task, retired, tasks, False, mean)},
        )  # fmt: skip


def _terms(task: Tensor, retired: Tensor, tasks: int, newest: bool, mean: bool) -> StageTerms:
    counts = ~retired & (task == tasks - 1) if newest else ~retired
    size = torch.bincount(task[~retired], minlength=tasks)
    share = counts.double() / size[task].clamp_min(1)
    if mean:
        share = share / max(len(task[counts].unique()), 1)
    kl_share = share + retired
    rows, kl_rows = counts.nonzero().flatten(), (counts | retired).nonzero().flatten()
    first = len(task) - len(kl_rows)
    last = torch.arange(first, len(task), device=task.device)
    return StageTerms(
        share, kl_share, rows, slice(first, None) if bool((kl_rows == last).all()) else kl_rows,
        None if len(rows) == len(kl_rows) else counts[kl_rows].nonzero().flatten(),
        Blocks.of(task[rows]) if len(rows) else None,
    )  # fmt: skip
