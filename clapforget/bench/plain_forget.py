"""A forgetter's batches the plain way: what reuse is measured against, and (a test) equal to.

Every step encodes its pairs whole, by the model in training and by the reference, as the published
programs do. The draws are those of :class:`~clapforget.unlearn.batches.Batches`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clapforget.clip import Clip
from clapforget.unlearn.batches import Batch, Batches, Which

__all__ = ["PlainBatches"]


class PlainBatches(Batches):
    """Batches of which nothing is kept from one step to the next."""

    def next(self, which: Which, clip: Clip) -> Batch:
        rows = self._rows(which)
        templates, pairs = self.task.templates, self.set(which)
        wording = torch.randint(len(templates), (len(rows),), generator=self.rng).tolist()
        texts = [templates[w].format(pairs.names[i]) for i, w in zip(rows.tolist(), wording)]
        images = pairs.images[rows.to(pairs.images.device)]

        def features(model: Clip) -> tuple[Tensor, Tensor]:
            return model.encode_image(images), model.encode_text(texts)

        v, t = features(clip)
        with torch.no_grad():
            v0, t0 = features(self.clip)
        return Batch(v, t, self._group[which][rows].to(v.device), v0, t0)
