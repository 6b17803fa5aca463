"""The half of the strategy that learns: CLAP's two stages, or one pass over an exact head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from avalanche.training.plugins.evaluation import default_evaluator
from torch import Tensor, nn

from clapforget.clip import Clip
from clapforget.posterior import ClassWeights, OnePassHead, Predictive, Stage
from clapforget.posterior.pyro_form import elbo_loss
from clapforget.posterior.terms import regularisers
from clapforget.posterior.trained import TrainedHead
from clapforget.posterior.weights import TopLatent
from clapforget.prompts import PromptSettings
from clapforget.strategies.batches import FeatureBatches, experience_labels
from clapforget.strategies.buffer import UncertaintyBuffer, experience_samples
from clapforget.strategies.model import ClapModel
from clapforget.strategies.training import (
    TrainSettings,
    check_elbo,
    check_finite,
    check_precision,
    warm_up_and_cosine,
    whole_contexts,
)

__all__ = ["ClapLearning"]


class ClapLearning(FeatureBatches):
    """Learn experiences on cached features of a frozen CLIP, with an exemplar memory.

    With the variational posterior (Jha et al., NeurIPS 2024) stage 1 trains attention and the
    newest adapter on the task's data and the memory, then the memory takes its exemplars, then
    stage 2 trains all adapters on the memory. A posterior that is solved for, not trained, takes
    the task's features in one pass; then no minibatch is seen and no training loss is logged.

    ``mb_output`` is always ``[B, number of class labels]`` log-probabilities.
    """

    model: ClapModel
    mb_features: Tensor | None
    mb_logits: Tensor | None
    mb_inputs: Tensor | None
    mb_weights: ClassWeights | None
    mb_top: TopLatent | None

    def __init__(
        self, *, model: Clip, posterior: str, head: Any, prompt: PromptSettings | None,
        memory: UncertaintyBuffer | None, training: TrainSettings | None, seed: int, eval_mb_size: int,
        device: str | torch.device | None, plugins: Sequence[Any] | None,
        evaluator: Any = default_evaluator, eval_every: int = -1, peval_mode: str = "epoch",
    ) -> None:  # fmt: skip
        """Arguments as :class:`~clapforget.strategies.ClapForget`."""
        self.training_settings = training or TrainSettings()
        if device is not None:
            model = model.to(device)
        wrapped = ClapModel(model.trainable_copy([]), posterior, head, seed, prompt)
        check_elbo(self.training_settings, prompt)
        check_precision(head, model.device)
        parameters = list(wrapped.head.parameters()) or [nn.Parameter(torch.zeros(1))]
        super().__init__(
            model=wrapped,
            optimizer=torch.optim.SGD(parameters, lr=self.training_settings.lr),
            train_mb_size=self.training_settings.batch_size,
            train_epochs=self.training_settings.epochs,
            eval_mb_size=whole_contexts(eval_mb_size, head),
            device=model.device,
            plugins=plugins,
            evaluator=evaluator,
            eval_every=eval_every,
            peval_mode=peval_mode,
        )
        self._open(memory, seed)
        self.stage: Stage = "newest"

    # ---- learning --------------------------------------------------------------------------
    def train(self, experiences: Any, eval_streams: Any = None, **kwargs: Any) -> Any:
        """Live through experiences. CPU arithmetic flushes denormal numbers meanwhile: at CLAP's
        logit scale they slow a step several times."""
        flushing = bool(torch.tensor([1e-39]).mul(0.5).eq(0))
        torch.set_flush_denormal(True)
        try:
            return super().train(experiences, eval_streams, **kwargs)
        finally:
            torch.set_flush_denormal(flushing)

    def check_model_and_optimizer(self, **kwargs: Any) -> None:
        """A new adapter for the experience's classes; only what stage 1 trains is optimised. Of a
        request that comes in parts (online) the first opens the adapter, and later ones train all."""
        data = getattr(self.experience, "data", None)
        if data is not None:
            self.model.describe(data.class_names, data.templates)
        labels = list(dict.fromkeys(experience_labels(self.experience).tolist()))
        if getattr(self.experience, "parts", 1) > 1:
            labels = list(self.experience.opens)  # type: ignore[attr-defined]
        head = self.model.head
        if labels:
            head.grow(labels, self.model.template_features(labels))
        self.model.word()
        if isinstance(head, OnePassHead):
            return
        stage: Stage = "newest" if labels else "all"
        head.train_only(stage)
        if head.prompt is not None:
            head.prompt.requires_grad_(True)
        s = self.training_settings
        self._start_stage(stage, s.lr, self.train_epochs, s.warm_up)

    def _start_stage(self, stage: Stage, lr: float, epochs: int, warm_up: float) -> None:
        head = self.model.head
        self.stage = stage
        if isinstance(head, TrainedHead):
            self.optimizer = head.optimizer(stage)
        else:
            prompts = [] if head.prompt is None else list(head.prompt.parameters())
            own = {id(p) for p in prompts}
            trained = [p for p in head.parameters() if p.requires_grad and id(p) not in own]
            self.optimizer = torch.optim.SGD(trained, lr=lr)
            if prompts and prompts[0].requires_grad:
                self.optimizer.add_param_group(head.prompt.optimised())
        steps = epochs * len(self.dataloader)  # type: ignore[arg-type]
        final = self.training_settings.final_lr
        self.schedule = warm_up_and_cosine(self.optimizer, steps, warm_up, final)
        self._noise = self._generator(2 if stage == "newest" else 3)

    def _train_exp(self, experience: Any, eval_streams: Any = None, **kwargs: Any) -> None:
        """Dropout and Pyro draw from torch's global generator: here it is seeded for the experience,
        and the caller's state comes back afterwards."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(self._seed_now())
            if self.is_forgetting:
                self.forget(experience)
                self.model.word()
            else:
                self._learn(experience, eval_streams, **kwargs)
                check_finite(self.model.parameters())
                self.model.head.settle()

    def _learn(self, experience: Any, eval_streams: Any, **kwargs: Any) -> None:
        """Take the experience in, and its exemplars into the memory."""
        self._fit(experience, eval_streams, **kwargs)

    def _fit(self, experience: Any, eval_streams: Any, **kwargs: Any) -> None:
        if isinstance(self.model.head, OnePassHead):
            self._before_training_epoch(**kwargs)
            samples = experience_samples(experience)
            _, labels, ids = samples
            views = self.views(experience)
            self.model.head.learn(views, labels.to(self.device), ids, self.cache.tower)
            self._after_training_epoch(**kwargs)
            self._select(experience, samples)
        else:
            super()._train_exp(experience, eval_streams, **kwargs)
            self._settle_prompts()
            self._select(experience, experience_samples(experience))
            self._consolidate(**kwargs)
            self._settle_prompts()

    def _consolidate(self, **kwargs: Any) -> None:
        """Stage 2: all adapters, on the memory alone."""
        head, s = self.model.head, self.training_settings
        head.close()
        head.requires_grad_(False)
        if head.tasks > 1 and s.consolidation_epochs and len(self.memory):
            head.train_only("all")
            self.dataloader = self._memory_loader()
            self._start_stage("all", s.consolidation_lr, s.consolidation_epochs, 0.0)
            self._run_epochs(s.consolidation_epochs, **kwargs)
            head.requires_grad_(False)

    def _run_epochs(self, epochs: int, **kwargs: Any) -> None:
        for _ in range(epochs):
            self._before_training_epoch(**kwargs)
            self.training_epoch(**kwargs)
            self._after_training_epoch(**kwargs)

    def _select(self, experience: Any, samples: tuple[Tensor, Tensor, Tensor]) -> None:
        new, head, memory = self.views(experience), self.model.head, self.memory
        head.guide(torch.cat([self.memory_views.flatten(0, 1), new.flatten(0, 1)]))
        old_ids, said = memory.sample_ids, self.exemplar_predictive(experience, memory.reads)
        features, labels = new[:, 0], samples[1]
        comes_again = bool(torch.isin(labels, memory.labels).any())
        if comes_again:  # exemplars held of a class are scored again, beside the new samples
            held = self.memory_views[:, 0]
            features = torch.cat([held, features])
            if said is not None:
                earlier = self._said(held, memory.reads)
                assert earlier is not None
                said = Predictive.cat([earlier, said])
            labels = torch.cat([memory.labels, labels])
        memory.add(*samples, said, features, head.columns(labels), with_held=comes_again)
        self._remember(new, samples[2], old_ids)

    def forward(self) -> Tensor:
        """In training: log-softmax of the mean logits, guided by the batch."""
        v = self.model.features(self.mb_x)
        if not self.is_training:
            return self.model(v)
        head = self.model.head
        if head.prompt is not None:
            head.prompt.word(head.retired)
        self.mb_features = v
        if isinstance(head, TrainedHead):
            head.train()
            self.mb_logits = head.logits(v)
            logits = self.mb_logits.detach()
        else:
            head.train_stage(self.stage)
            self.mb_inputs = head.inputs(v)
            noise = head.top_noise(self._noise)
            self.mb_weights, self.mb_top = head.posterior(self.mb_inputs, noise)
            with torch.no_grad():
                mean = head.shifted(head.logits(self.mb_weights, v)[0], v)
                logits = mean if self.mb_top is None else mean.mean(0)
        return self.model.by_label(logits.masked_fill(head.retired, -torch.inf).softmax(-1))

    def criterion(self) -> Tensor:
        """The head's objective in training, negative log likelihood in evaluation."""
        if not self.is_training:
            return torch.nn.functional.nll_loss(self.mb_output, self.mb_y)
        head, v = self.model.head, self.mb_features
        assert v is not None
        y = head.columns(self.mb_y)
        if isinstance(head, TrainedHead):
            assert self.mb_logits is not None
            return head.loss(self.mb_logits, v, y)
        assert self.mb_weights is not None and self.mb_inputs is not None
        weights, top, noise = self.mb_weights, self.mb_top, head.draw(v, self.stage, self._noise)
        if self.training_settings.elbo == "pyro":
            loss = elbo_loss(head, self.mb_inputs, v, y, self.stage, noise.subset)
            return loss + regularisers(head, weights, noise.mean_latent, v, self.stage, top)
        loss = head.loss(weights, v, y, self.stage, noise, top)
        return loss if head.prompt is None else loss + head.prompt.penalty(v)

    def optimizer_step(self) -> None:
        if self.model.prompt is not None:
            torch.nn.utils.clip_grad_norm_(self.model.prompt.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()

    def _train_cleanup(self) -> None:
        super()._train_cleanup()
        self.mb_features = self.mb_logits = None
        self.mb_inputs = self.mb_weights = self.mb_top = None
        self.model.zero_grad(set_to_none=True)

    def model_adaptation(self, model: Any = None) -> Any:
        return self.model if model is None else model

    # ---- saved state -----------------------------------------------------------------------
    def extra_state(self) -> dict[str, Tensor]:
        """What a checkpoint has to hold beside CLIP, head and memory, by name."""
        return {}

    def load_extra_state(self, state: dict[str, Tensor]) -> None:
        """Take back what :meth:`extra_state` gave; CLIP, head and memory are there already."""
