"""Names for parts: to add one is to add a file that registers a name, and touches no other."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable
from typing import Generic, TypeVar

from clapforget.errors import UserError

__all__ = ["Registry"]

T = TypeVar("T")


class Registry(Generic[T]):
    """A table from names to parts, filled by importing every module of one package."""

    def __init__(self, what: str, package: str) -> None:
        """:param what: what is registered, for messages ("forgetter").
        :param package: import path whose modules register themselves.
        """
        self.what = what
        self.package = package
        self._parts: dict[str, T] = {}
        self._complete = False

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that files a part under ``name``.

        :raises ValueError: if another part has the name.
        """

        def file(part: T) -> T:
            if self._parts.setdefault(name, part) is not part:
                raise ValueError(f"two parts are registered as {self.what} {name!r}")
            return part

        return file

    def _discover(self) -> None:
        if not self._complete:
            for module in pkgutil.iter_modules(importlib.import_module(self.package).__path__):
                importlib.import_module(f"{self.package}.{module.name}")
            self._complete = True

    def names(self) -> list[str]:
        """All registered names, sorted."""
        self._discover()
        return sorted(self._parts)

    def get(self, name: str) -> T:
        """The part of that name.

        :raises UserError: for an unknown name, with the nearest ones.
        """
        self._discover()
        if name not in self._parts:
            near = difflib.get_close_matches(name, self._parts, n=2)
            hint = (
                f"did you mean {' or '.join(near)}?"
                if near
                else f"choose one of: {', '.join(self.names())}"
            )
            raise UserError(f"unknown {self.what} {name!r}", hint)
        return self._parts[name]
