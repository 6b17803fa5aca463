"""Forgetters: each is one file, one class, one registered name."""

from clapforget.unlearn.base import (
    DEFAULT_FORGETTER,
    FORGETTERS,
    ForgetTask,
    Forgetter,
    Pairs,
    Unlearned,
    make_forgetter,
)

__all__ = [
    "DEFAULT_FORGETTER",
    "FORGETTERS",
    "ForgetTask",
    "Forgetter",
    "Pairs",
    "Unlearned",
    "make_forgetter",
]
