"""The one exception that users see: one line that says what is wrong, where, and what to do."""

from __future__ import annotations

__all__ = ["UserError"]


class UserError(ValueError):
    """A mistake the user can mend. The command line prints its message and exits with code 2."""

    def __init__(self, what: str, do: str = "") -> None:
        """:param what: what is wrong, and where. :param do: what the user should do about it."""
        message = f"{what}; {do}" if do else what
        super().__init__(" ".join(message.split()))
