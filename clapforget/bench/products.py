"""The matrix products of a step by themselves: what no arrangement of its other operators can go below."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Products"]

_FACTORS = {"mm": slice(0, 2), "bmm": slice(0, 2), "addmm": slice(1, 3), "baddbmm": slice(1, 3)}


class Products(TorchDispatchMode):
    """Records the products that run inside the block, forward and backward, by shape and layout."""

    def __init__(self) -> None:
        super().__init__()
        self._pairs: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = func.overloadpacket.__name__
        if name in _FACTORS:
            one, other = args[_FACTORS[name]]
            self._pairs.append((_random_like(one), _random_like(other)))
        return func(*args, **(kwargs or {}))

    @property
    def flop(self) -> int:
        """Floating-point operations: two for each multiplication and addition."""
        return sum(2 * one.numel() * other.shape[-1] for one, other in self._pairs)

    def plain(self) -> Callable[[], None]:
        """What multiplies factors of those shapes and layouts once more, into memory that is there."""
        outs = [torch.matmul(one, other) for one, other in self._pairs]

        def run() -> None:
            for (one, other), out in zip(self._pairs, outs, strict=True):
                torch.matmul(one, other, out=out)

        return run


def _random_like(factor: Tensor) -> Tensor:
    """Numbers of no meaning in the factor's layout: its own may have become denormal or infinite."""
    needed = 1 + sum((n - 1) * step for n, step in zip(factor.shape, factor.stride()))
    rng = torch.Generator(factor.device).manual_seed(0)
    numbers = torch.randn(needed, generator=rng, device=factor.device, dtype=factor.dtype)
    return numbers.as_strided(factor.shape, factor.stride())
