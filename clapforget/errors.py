"""The one exception that users see: one line that says what is wrong, where, and what to do."""

from __future__ import annotations

__all__ = ["UserError", "check_least", "check_most"]


class UserError(ValueError):
    """A mistake the user can mend. The command line prints its message and exits with code 2."""

    def __init__(self, what: str, do: str = "") -> None:
        """:param what: what is wrong, and where. :param do: what the user should do about it."""
        message = f"{what}; {do}" if do else what
        super().__init__(" ".join(message.split()))


def check_least(settings: object, group: str, **least: float) -> None:
    """Refuse settings below their least value, or not a number.

    :param group: what they are called by on the command line. :param least: by attribute.
    :raises UserError: for the first of them.
    """
    for name, low in least.items():
        value = getattr(settings, name)
        if not value >= low:
            raise UserError(f"setting {group}.{name}={value}", f"give at least {low}")


def check_most(settings: object, group: str, **most: float) -> None:
    """Refuse settings above their greatest value, beyond which memory is what runs out or what they say
    makes no sense, or not a number.

    :param group: what they are called by on the command line. :param most: by attribute.
    :raises UserError: for the first of them.
    """
    for name, high in most.items():
        value = getattr(settings, name)
        if not value <= high:
            raise UserError(f"setting {group}.{name}={value}", f"give at most {high}")
