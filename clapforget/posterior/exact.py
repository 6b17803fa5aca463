"""The exact head: Bayesian classifiers around the text that are solved for, and deleted from.

It learns in one pass by adding to sums, in any order, and deletes by subtracting: the result is the
posterior of the twin that never saw the deleted samples. What is computed from the sums (prior strengths
and rates, :mod:`~clapforget.posterior.solving`) is computed again each time, so it is the
twin's as well; see :class:`~clapforget.posterior.reservoir.Reservoir` for the one limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from clapforget import uncertainty
from clapforget.errors import UserError
from clapforget.posterior.drift import transport
from clapforget.posterior.exact_settings import ExactSettings
from clapforget.posterior.familiarity import signs
from clapforget.posterior.feature_map import FeatureMap
from clapforget.posterior.head import HEADS, Change
from clapforget.posterior.keys import normal_of
from clapforget.posterior.predictive import Predictive
from clapforget.posterior.reservoir import Reservoir
from clapforget.posterior.solving import Part, Solution, solve
from clapforget.posterior.sums_head import SumsHead

__all__ = ["ExactHead", "ExactSettings"]


@HEADS.register("exact")
class ExactHead(SumsHead):
    """Discriminants and regression on the sums of everything learned."""

    Settings = ExactSettings
    settings_group = "exact"
    settings: ExactSettings
    map: FeatureMap
    made_with: Tensor
    """Seed, R and whether second moments are kept by class."""

    def __init__(
        self, width: int, scale: float, settings: ExactSettings | None = None, seed: int = 0
    ) -> None:
        """:param seed: of the random features and of the predictive's fixed noise."""
        s = settings or ExactSettings()
        feature_map = FeatureMap(width, s.features, seed)
        super().__init__(feature_map, s.by_class, width, scale, s, seed)
        self.reservoir = Reservoir(width, s.reservoir, seed)
        made_with = torch.tensor([seed, s.features, int(s.by_class)])
        self.register_buffer("made_with", made_with)

    def learn(self, v: Tensor, labels: Tensor, ids: Tensor, tower: str) -> None:
        """Add samples. :raises UserError: if another image tower made the earlier ones' features."""
        super().learn(v, labels, ids, tower)
        self.reservoir.add(v, labels, ids)

    # ---- forgetting ------------------------------------------------------------------------
    def delete(self, v: Tensor, labels: Tensor, ids: Tensor, tower: str) -> None:
        """Subtract learned samples: afterwards the posterior is that of never having seen them.

        Arguments as :meth:`learn`: exactly what was learned. That is checked where a class loses
        its last sample, and can't be checked where some stay.

        :raises UserError: for more samples of a class than were learned, or others than were
            learned; nothing is changed then.
        """
        self._guard(tower)
        columns = self.columns(labels)
        asked = torch.bincount(columns, minlength=len(self.labels))
        empty = (asked > 0) & (asked == self.sums.count)
        self._check(v, columns, asked, empty)
        self._add(v, labels, -1.0)
        self.reservoir.delete(ids)
        self._close(empty)

    def _check(self, v: Tensor, columns: Tensor, asked: Tensor, empty: Tensor) -> None:
        """Refuse to subtract what was not added. :param empty: classes to lose every sample."""
        sums = self.sums
        for column in (
            ((asked > sums.count) | ((asked > 0) & sums.carried)).nonzero().flatten().tolist()
        ):
            label, learned = int(self.labels[column]), int(sums.count[column])
            if sums.carried[column]:
                raise UserError(
                    f"class {label} was carried over to another image tower: its images' features "
                    "are no longer what the exact posterior is made of",
                    "learn with --set exact.by_class=true, or use a forgetter that changes the text "
                    "tower only",
                )
            raise UserError(
                f"class {label}: {int(asked[column])} samples to delete, {learned} learned",
                "delete each sample once",
            )
        total = torch.zeros_like(sums.first[:, : self.width])
        total.index_add_(0, columns, v.double().mean(1))
        gap = (total - sums.first[:, : self.width]).norm(dim=1)
        rounding = 1000 * torch.finfo(v.dtype).eps * sums.count.sqrt()
        for column in (empty & (gap > rounding)).nonzero().flatten().tolist():
            raise UserError(
                f"class {int(self.labels[column])}: the images to delete are not those it was "
                "learned from",
                "give exactly these, or learn with --set exact.by_class=true",
            )

    def _close(self, empty: Tensor) -> None:
        """Leave nothing of classes whose samples were all subtracted. :param empty: which, [C]."""
        for column in empty.nonzero().flatten().tolist():
            self.sums.clear(column)
        self.reservoir.delete_classes(self.labels[empty])
        self._solved = None

    def forget(
        self, change: Change, held: Any, settings: Any, generator: torch.Generator
    ) -> dict[str, Any]:
        """Subtract the forgotten classes; carry the sums over if the image tower changed.

        With ``by_class`` no image is needed; without, the request's must be those learned.

        :returns: ``drift`` if the sums were carried over, see
            :func:`~clapforget.posterior.drift.transport`.
        :raises UserError: if a class can't be deleted exactly; nothing is changed then.
        """
        del held, settings, generator
        met = self.met(change.labels)
        gone = torch.isin(
            self.labels, torch.tensor(met, dtype=torch.long, device=self.labels.device)
        )
        full = gone & (self.sums.count > 0)
        if self.settings.by_class:
            for column in full.nonzero().flatten().tolist():
                self.sums.delete_class(column)
        elif full.any():
            own = torch.isin(change.forget_labels, self.labels[full])
            v, labels = change.forget_before[own], change.forget_labels[own]
            asked = torch.bincount(columns := self.columns(labels), minlength=len(self.labels))
            if (full & (asked < self.sums.count)).any():
                raise UserError(
                    "a class can't be deleted exactly without all the images it was learned from",
                    "give them with the request, or learn with --set exact.by_class=true",
                )
            self._check(v, columns, asked, full)
            self._add(v, labels, -1.0)
        self._close(gone)
        if met:
            self.retire(met)
        if not self._outdated(change.tower):
            return {}
        error = transport(
            self.sums, self.reservoir, self.map, change, self.columns(change.memory_labels)
        )
        self._use(change.tower)
        return {"drift": error}

    keeps_of_samples = ""

    def forget_samples(
        self, change: Change, held: Any, settings: Any, generator: torch.Generator
    ) -> dict[str, Any]:
        """Subtract single samples; carry the sums over if the image tower changed.

        :returns: as :meth:`forget`.
        :raises UserError: if a sample was not learned, or can't be subtracted any more.
        """
        if len(change.forget_ids):
            tower = bytes(self.tower.tolist()).decode()
            self.delete(change.forget_before, change.forget_labels, change.forget_ids, tower)
        return self.forget(change, held, settings, generator)

    # ---- posterior -------------------------------------------------------------------------
    @property
    def solution(self) -> Solution:
        """What is computed from the sums, when first asked after a change."""
        if self._solved is None:
            self._solved = solve(self)
        return self._solved

    @property
    def parts(self) -> list[Part]:
        """The posteriors behind the predictive."""
        return self.solution.parts

    # ---- prediction ------------------------------------------------------------------------
    @torch.no_grad()
    def predict(self, v: Tensor, batch_size: int = 1024) -> Predictive:
        """Posterior predictive of image features v [B, d] over all columns.

        ``probs`` is the softmax of a pool's scores (predictive log densities, mean answers of a regression), each
        times its rate, averaged over the pools. The uncertainties are of M draws around them, each class's with its
        standard deviation under the posterior; the draws belong to the label, so that neither the order of
        the columns nor other classes' columns change them. ``energy`` is how familiar the image
        looks, :mod:`~clapforget.posterior.familiarity`.
        """
        return Predictive.cat([self._predict(part) for part in v.split(batch_size)])

    @torch.no_grad()
    def probs(self, v: Tensor, batch_size: int = 1024) -> Tensor:
        return torch.cat([self._probs(part) for part in v.split(batch_size)])

    def _probs(self, v: Tensor) -> Tensor:
        mean = torch.stack([mean for mean, _ in self._scores(self._white(v))])
        return torch.einsum("k,kbc->bc", self._weights(), mean.softmax(-1)).to(v.dtype)

    def _white(self, v: Tensor) -> list[Tensor]:
        """φ of images, whitened by each part; empty for those that have no say."""
        phi, widest = self.map(v), self.solution.widest
        return [
            part.posterior.whiten(phi[:, : part.size]) if part.rate or k == widest else phi[:0]
            for k, part in enumerate(self.parts)
        ]

    def _scores(self, white: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Each pool's logits and their standard deviation under the posterior, [B, C] each. Its parts saw the same
        images, so their errors are taken to go together: standard deviations add up.

        :param white: images whitened by each part.
        """
        found, rows = [], iter(white)
        for pool in self.solution.pools:
            mean = spread = self.sums.first.new_zeros(max(map(len, white)), len(self.labels))
            for part, u in zip(pool.parts, rows):
                if not part.rate:
                    continue
                own, doubt = part.posterior.scores(u)
                mean, spread = mean + part.rate * own, spread + part.rate * doubt
            found.append((mean.masked_fill(self.hidden, -torch.inf), spread))
        return found

    def _weights(self) -> Tensor:
        """Of the pools in the average, [K]."""
        weights = self.sums.first.new_tensor([pool.weight for pool in self.solution.pools])
        return weights / weights.sum()

    def _predict(self, v: Tensor) -> Predictive:
        solution, weights = self.solution, self._weights()
        counted = (self.sums.count > 0) & ~self.retired
        samples, logits, white = [], [], self._white(v)
        for number, (mean, spread) in enumerate(self._scores(white)):
            draws = max(1, round(self.settings.samples * float(weights[number])))
            noise = normal_of(self.labels, draws, 2 * self.seed + number)[:, None]
            samples.append((mean + spread * noise).softmax(-1))
            logits.append(mean)
        widest = solution.widest
        drawn, scores = torch.cat(samples).to(v.dtype), torch.stack(logits)
        density = self.parts[widest].posterior.likeness(white[widest], counted)
        first = self.sums.first[counted, : self.width]
        seen = signs(density, v, first, self.text[counted])
        return Predictive(
            probs=torch.einsum("k,kbc->bc", weights, scores.softmax(-1)).to(v.dtype),
            entropy=uncertainty.predictive_entropy(drawn),
            expected_entropy=uncertainty.expected_entropy(drawn),
            mutual_information=uncertainty.mutual_information(drawn),
            variance=uncertainty.variance(drawn),
            variance_of_entropy=uncertainty.variance_of_entropy(drawn),
            energy=solution.scale(seen).to(v.dtype),
            logits=torch.einsum("k,kbc->bc", weights, scores).to(v.dtype),
        )

    @torch.no_grad()
    def nats(self) -> Tensor:
        """KL of each class's posterior over its prior, in nats; zero for a forgotten class. [C]"""
        return self.parts[0].posterior.nats().to(self.templates.dtype)

    # ---- saved state -----------------------------------------------------------------------
    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Load a state of any number of classes.

        :raises UserError: if it was made with another seed, other random features or without
            ``by_class`` where this head has it: its sums would not be what they seem.
        """
        made = state_dict.get("made_with")
        if made is not None and not torch.equal(made.cpu(), self.made_with.cpu()):
            raise UserError(
                "this state of an exact posterior was made with another seed or exact.features or "
                "exact.by_class",
                "load it with the settings it was made with",
            )
        return super().load_state_dict(state_dict, strict, assign)
