"""What heads made of additive sums share: columns, learning in one pass, one image tower."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from clapforget.errors import UserError
from clapforget.posterior.feature_map import FeatureMap, RandomReLU
from clapforget.posterior.head import OnePassHead
from clapforget.posterior.sums import FeatureSums

__all__ = ["SumsHead"]

_BLOCK = 2048  # samples whose φ is held at once


class SumsHead(OnePassHead):
    """A head that is solved for from sums of φ over what it learned, all by one image tower."""

    tower: Tensor
    """Fingerprint of the image tower that made the features in the sums, as bytes."""

    def __init__(
        self, feature_map: FeatureMap | RandomReLU, by_class: bool, width: int, scale: float,
        settings: Any, seed: int, sums: nn.Module | None = None,
    ) -> None:  # fmt: skip
        """:param feature_map: φ. :param by_class: see :class:`FeatureSums`. :param sums: another
        kind of sums in its place. The others as :class:`Head`."""
        super().__init__(width, scale, settings, seed)
        self.map = feature_map
        self.sums: Any = FeatureSums(feature_map.size, by_class) if sums is None else sums
        self.register_buffer("tower", torch.zeros(0, dtype=torch.uint8))
        self._solved: Any = None
        """What was solved for from the sums; None after every change of them or of the text."""

    def grow(self, labels: Sequence[int], templates: Tensor) -> None:
        """Open columns for classes that have none yet or were forgotten; the others stay."""
        awake = set(self.labels[~self.retired].tolist())
        fresh = [i for i, label in enumerate(labels) if label not in awake]
        kept = ~torch.isin(self.labels, torch.as_tensor(labels, device=self.labels.device)[fresh])
        super().grow([labels[i] for i in fresh], templates[fresh])
        self.sums.resize(kept, len(fresh))
        self._solved = None

    def learn(self, v: Tensor, labels: Tensor, ids: Tensor, tower: str) -> None:
        """Add samples. :raises UserError: if another image tower made the earlier ones' features."""
        self._guard(tower)
        self._add(v, labels)
        self._solved = None

    def reword(self, templates: Tensor) -> None:
        super().reword(templates)
        self._solved = None

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        self._solved = None
        return super().load_state_dict(state_dict, strict, assign)

    def _add(self, v: Tensor, labels: Tensor, sign: float = 1.0) -> None:
        columns = self.columns(labels)
        for part, where in zip(v.split(_BLOCK), columns.split(_BLOCK)):
            self.sums.add(self.map(part), where, sign)

    # ---- image tower -----------------------------------------------------------------------
    def _guard(self, tower: str) -> None:
        if not self.sums.count.any():
            self._use(tower)
        elif tower != bytes(self.tower.tolist()).decode():
            raise UserError(
                "the posterior's sums are of features of another image tower",
                "learn with one image tower, or let the forget request carry the sums over",
            )

    def _use(self, tower: str) -> None:
        self.tower = torch.tensor(list(tower.encode()), dtype=torch.uint8).to(self.tower)

    def _outdated(self, tower: str) -> bool:
        """Whether there are sums, and another image tower than this one made them."""
        return bool(self.sums.count.any()) and tower != bytes(self.tower.tolist()).decode()
