"""Forgetters: each is one file, one class, one registered name."""

from clapforget.unlearn.base import (
    FORGETTERS,
    ForgetTask,
    Forgetter,
    Pairs,
    Unlearned,
    make_forgetter,
)

__all__ = ["FORGETTERS", "ForgetTask", "Forgetter", "Pairs", "Unlearned", "make_forgetter"]
