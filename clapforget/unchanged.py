"""Whether something worked out from tensors still holds."""

from __future__ import annotations

from torch import Tensor

__all__ = ["Seen"]


class Seen:
    """Tensors as they were: tells whether the same ones, unchanged in place, are there still."""

    def __init__(self, *tensors: Tensor) -> None:
        self._was = [(tensor, tensor._version) for tensor in tensors]

    def same(self, *tensors: Tensor) -> bool:
        """Whether these are those, and nothing was written into them since."""
        pairs = zip(self._was, tensors, strict=True)
        return all(was is now and version == now._version for (was, version), now in pairs)
