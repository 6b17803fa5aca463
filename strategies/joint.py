"""Joint training, the upper bound of learning: at each experience a tower is trained, from the start,
on all data that were learned so far and not forgotten.

The loss and settings are fine-tuning's (:mod:`clapforget.strategies.finetune`), the data are the whole
stream's: it breaks the rule of continual learning, that earlier data are gone, on purpose.

Forgetting is retraining: the forgetter changes the CLIP of the start, which pretraining may have
taught the class, and the tower is trained from there on all data that remain. What training taught of
the deleted images is gone, because it never happened.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clapforget.clip import Clip
from clapforget.errors import UserError
from clapforget.strategies.clap_forget import strategy_arguments
from clapforget.strategies.finetune import Finetune, FinetuneSettings
from clapforget.strategies.registry import STRATEGIES, StrategyEntry, StrategyOptions
from clapforget.unlearn.base import ForgetTask, Forgetter, Unlearned

__all__ = ["Joint"]


class Joint(Finetune):
    """Training of the image tower on everything learned so far, afresh at every experience.

    Works on this package's streams, whose data can be read again by sample id.
    """

    learned_in_tower = ""

    def __init__(
        self, *, model: Clip, finetune: FinetuneSettings | None = None, **options: Any
    ) -> None:
        """Arguments as those of :class:`Finetune`.

        :raises UserError: for ``until="verified"``.
        """
        super().__init__(model=model, finetune=finetune, **options)
        if self.until == "verified":
            raise UserError(
                "joint training forgets by retraining, which goes on from no result of its own",
                "leave out until=verified",
            )
        self.start = self.model.clip
        """The CLIP that training starts from: the one given, changed by forgetters alone."""
        self.rows = torch.zeros(0, dtype=torch.long)
        """Ids of the samples learned and not forgotten."""
        self.forgetter = JointRetraining(self.forgetter, self)

    def make_train_dataloader(self, **kwargs: Any) -> None:
        """All samples learned so far, this experience's included.

        :raises UserError: for an experience of another benchmark.
        """
        data = getattr(self.experience, "data", None)
        if data is None:
            raise UserError(
                "joint training reads all earlier data again, which this benchmark does not offer",
                "use clapforget.scenarios.stream",
            )
        new = torch.tensor(list(self.experience.dataset.sample_id))
        self.rows = torch.cat([self.rows, new]).unique()
        self._load_rows(data)

    def _load_rows(self, data: Any) -> None:
        rows = self.rows
        self.dataloader = self._image_loader(
            lambda at: data.train.images(rows[at]), data.train.targets[rows], 1
        )

    def _open_tower(self) -> None:
        self.model.clip = self.start
        super()._open_tower()

    def retrain(self, start: Clip) -> Clip:
        """Train from ``start`` on all data that remain after the current request; it is the start
        from now on."""
        self.start = start
        gone = torch.tensor(list(self.experience.dataset.sample_id), dtype=torch.long)
        self.rows = self.rows[~torch.isin(self.rows, gone)]
        if not len(self.rows):
            return start
        head = self.model.head
        retired = head.retired
        self._load_rows(self.experience.data)
        self._open_tower()
        labels = head.labels.tolist()
        names = [self.model.class_names[c] for c in labels]
        with torch.no_grad():
            head.reword(start.encode_names(names, self.model.templates))
        head.retire(head.met(list(self.experience.classes)))
        with torch.enable_grad():
            for _ in range(self.train_epochs):
                self.training_epoch()
        trained = self.model.clip.requires_grad_(False)
        trained.zero_grad(set_to_none=True)
        head.retired = retired
        return trained

    def _carry_out(self, experience: Any) -> dict[str, Any]:
        """Single samples are in the tower too, whether or not the forgetter is asked to change it."""
        rows = len(self.rows)
        notes = super()._carry_out(experience)
        if experience.by_sample and len(self.rows) == rows:
            self.model.clip = self.retrain(self.start)
            self._close_tower()
            self.model.head.guide(self.memory_views.flatten(0, 1))
            notes |= {"retrained_on": len(self.rows), "towers": ["image"]}
        return notes

    def extra_state(self) -> dict[str, Tensor]:
        now = self.model.clip.model.state_dict()
        state = self.start.model.state_dict().items()
        return {"rows": self.rows} | {
            f"start.{name}": value for name, value in state if not torch.equal(value, now[name])
        }

    def load_extra_state(self, state: dict[str, Tensor]) -> None:
        self.rows = state["rows"]
        own = {k.removeprefix("start."): v for k, v in state.items() if k.startswith("start.")}
        self.start = self.model.clip.trainable_copy([])
        self.start.model.load_state_dict({**self.start.model.state_dict(), **own})


class JointRetraining(Forgetter):
    """The forgetter on the CLIP of the start, then training on what remains."""

    def __init__(self, forgetter: Forgetter, strategy: Joint) -> None:
        super().__init__(forgetter.settings)
        self.forgetter, self.strategy = forgetter, strategy

    @property
    def hides(self) -> bool:  # type: ignore[override]
        return self.forgetter.hides

    @property
    def unlearns_posterior(self) -> bool:  # type: ignore[override]
        return self.forgetter.unlearns_posterior

    def unlearn(self, clip: Clip, task: ForgetTask) -> Unlearned:
        result = self.forgetter.unlearn(self.strategy.start, task)
        before = self.strategy.model.clip
        clip = self.strategy.retrain(result.clip)
        self.strategy.model.clip = before
        notes = {**result.notes, "retrained_on": len(self.strategy.rows)}
        return Unlearned(clip, result.steps, result.losses, notes)


def _build(clip: Clip, options: StrategyOptions, seed: int) -> Joint:
    return Joint(finetune=options.extra["finetune"], **strategy_arguments(clip, options, seed))


STRATEGIES.register("joint")(
    StrategyEntry(_build, "zero-shot", extra={"finetune": FinetuneSettings}, reads="everything")
)
