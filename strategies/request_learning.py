"""Learn requests that are more than to learn once for good: for now, for good after all, online."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from clapforget.errors import UserError
from clapforget.posterior import Change
from clapforget.posterior.forgetting import PosteriorForgetting
from clapforget.scenarios import Forget, Learn, LearnForNow
from clapforget.strategies.learning import ClapLearning

__all__ = ["RequestLearning", "sample_rows"]


class RequestLearning(ClapLearning):
    """:class:`ClapLearning` with CLPU's requests to learn for now, and what deleting needs."""

    posterior_forgetting: PosteriorForgetting

    def _before_training_exp(self, **kwargs: Any) -> None:
        """What comes online is seen once."""
        online = getattr(self.experience, "parts", 1) > 1
        self.train_epochs = 1 if online else self.training_settings.epochs
        super()._before_training_exp(**kwargs)

    def _learn(self, experience: Any, eval_streams: Any, **kwargs: Any) -> None:
        """What is learned for now must be taken back exactly one day, and what is kept for good after
        all is taken back first, so that it counts once.

        :raises UserError: for a request to learn for now, and a head that can't take it back exactly.
        """
        head = self.model.head
        if getattr(experience, "for_now", False):
            self._check_for_now()
        if promoted := getattr(experience, "promoted", ()):
            rows = sample_rows(experience)
            rows = rows[torch.isin(experience.data.train.targets[rows], torch.tensor(promoted))]
            v = self.views(experience)[torch.isin(sample_rows(experience), rows).to(self.device)]
            change = self._change([], experience.data, rows, v, v, self.memory_views)
            head.forget_samples(change, None, self.posterior_forgetting, self._generator(6))
        super()._learn(experience, eval_streams, **kwargs)

    def check_requests(self, requests: Sequence[Learn | Forget]) -> None:
        """Whether the head can do what a stream will ask for, before any of it begins.

        :raises UserError: if it can't learn for now, or forget.
        """
        if any(isinstance(request, LearnForNow) for request in requests):
            self._check_for_now()
        if any(isinstance(request, Forget) for request in requests):
            self.model.head.hold()

    def _check_for_now(self) -> None:
        head = self.model.head
        if head.keeps_of_samples:
            raise UserError(
                f"{type(head).__name__} cannot learn for now: what it learns cannot be taken back "
                f"exactly, it keeps {head.keeps_of_samples}", "use --strategy exact"
            )  # fmt: skip

    def _select(self, experience: Any, samples: tuple[Tensor, Tensor, Tensor]) -> None:
        """What is learned for now leaves no exemplar, so that it costs no other class any. Exemplars
        of other classes that are chosen meanwhile by a score of the posterior are chosen by one that
        knows it: only scores of features (coverage, herding) do without."""
        if not getattr(experience, "for_now", False):
            super()._select(experience, samples)

    def _change(
        self, labels: list[int], data: Any, rows: Tensor, before: Tensor, after: Tensor,
        memory_before: Tensor,
    ) -> Change:  # fmt: skip
        """A request as the head sees it. :param rows: of the train images to forget."""
        return Change(
            labels, before, data.train.targets[rows].to(self.device), rows.to(self.device), after,
            memory_before, self.memory_views, self.memory.labels.to(self.device), self.cache.tower,
            self.memory.sample_ids.to(self.device),
        )  # fmt: skip

    def drop_exemplars(self, labels: Sequence[int], sample_ids: Sequence[int]) -> None:
        """Delete exemplars by class and by sample id, and their features."""
        kept = ~torch.isin(self.memory.labels, torch.tensor(labels, dtype=torch.long))
        kept &= ~torch.isin(self.memory.sample_ids, torch.tensor(sample_ids, dtype=torch.long))
        self.memory.forget(labels, sample_ids)
        self.memory_views = self.memory_views[kept.to(self.memory_views.device)]


def sample_rows(experience: Any) -> Tensor:
    """Ids of an experience's samples, [n]."""
    return torch.tensor(list(experience.dataset.sample_id), dtype=torch.long)
