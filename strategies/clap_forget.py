"""ClapForget: live through a stream of requests to learn and to forget."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from typing import Any

import torch
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.plugins.evaluation import default_evaluator
from torch import Tensor

from clapforget.clip import Clip
from clapforget.features import FeatureCache
from clapforget.posterior import ClapSettings, LogitNoise, Predictive
from clapforget.posterior.forgetting import PosteriorForgetting, forget_posterior, solve_adapters
from clapforget.posterior.pyro_form import elbo_loss
from clapforget.posterior.variational import ClassWeights, Stage
from clapforget.strategies.buffer import UncertaintyBuffer, experience_samples
from clapforget.strategies.certify import Certifier
from clapforget.strategies.loader import FeatureLoader
from clapforget.strategies.model import ClapModel
from clapforget.strategies.registry import STRATEGIES, StrategyOptions
from clapforget.strategies.template import UnlearningTemplate
from clapforget.strategies.training import TrainSettings, warm_up_and_cosine
from clapforget.unlearn.base import ForgetTask, Forgetter, Pairs, generator_for, make_forgetter
from clapforget.verify.certificate import Certificate

__all__ = ["ClapForget"]


class ClapForget(UnlearningTemplate):
    """CLAP's variational adapters to learn, a forgetter on CLIP and on the posterior to forget.

    Learning (Jha et al., NeurIPS 2024): CLIP stays frozen, its image features are encoded once;
    stage 1 trains attention and the newest adapter, then the memory takes its exemplars, then
    stage 2 trains all adapters on the memory.

    Forgetting: the memory drops the exemplars, the forgetter changes CLIP with the memory as
    retain data, features and texts are encoded again where a tower changed, the posterior of the
    forgotten classes goes back to the prior (:mod:`clapforget.posterior.forgetting`), and a
    certificate says what all that came to.

    ``mb_output`` is always ``[B, number of class labels]`` log-probabilities.
    """

    model: ClapModel

    def __init__(
        self,
        *,
        model: Clip,
        forgetter: str | Forgetter = "cliperase",
        memory: UncertaintyBuffer | None = None,
        clap: ClapSettings | None = None,
        training: TrainSettings | None = None,
        posterior_forgetting: PosteriorForgetting | None = None,
        retain_set: Pairs | None = None,
        certify: bool = True,
        seed: int = 0,
        eval_mb_size: int = 256,
        device: str | torch.device | None = None,
        plugins: Sequence[Any] | None = None,
        evaluator: Any = default_evaluator,
        eval_every: int = -1,
        peval_mode: str = "epoch",
    ) -> None:
        """:param model: the frozen CLIP; the strategy works on a copy. May be given by position.
        :param forgetter: a registered name, ``"name:preset"``, or a forgetter.
        :param memory: exemplar memory; default 2,000 by mutual information.
        :param clap: options of the head. :param training: options of its training.
        :param posterior_forgetting: options of the posterior's own forgetting.
        :param retain_set: data from outside to retain on, in place of the memory.
        :param certify: whether each forget request ends with a certificate.
        :param seed: of everything random here. :param device: default: where the model is.
        """
        self.training_settings = training or TrainSettings()
        if device is not None:
            model = model.to(device)
        wrapped = ClapModel(model.trainable_copy([]), clap or ClapSettings(), seed)
        super().__init__(
            model=wrapped,
            optimizer=torch.optim.SGD(
                wrapped.head.attention.parameters(), lr=self.training_settings.lr
            ),
            train_mb_size=self.training_settings.batch_size,
            train_epochs=self.training_settings.epochs,
            eval_mb_size=eval_mb_size,
            device=model.device,
            plugins=plugins,
            evaluator=evaluator,
            eval_every=eval_every,
            peval_mode=peval_mode,
        )
        self.forgetter = make_forgetter(forgetter) if isinstance(forgetter, str) else forgetter
        self.memory = UncertaintyBuffer(2000, seed=seed) if memory is None else memory
        self.posterior_forgetting = posterior_forgetting or PosteriorForgetting()
        self.retain_set = retain_set
        self.seed = seed
        self.cache = FeatureCache(self.model.clip)
        self.memory_views = torch.zeros(0, 1, self.model.clip.width, device=self.device)
        self.certifier = Certifier() if certify else None
        self.certificates: list[Certificate] = []
        self.last_forgetting: dict[str, Any] | None = None
        self.stage: Stage = "newest"

    # ---- features --------------------------------------------------------------------------
    def views(self, experience: Any) -> Tensor:
        """Features of an experience's samples [n, V, d]; V = 2 where mirrored images count too.

        Experiences without ``data`` (other benchmarks') are encoded as they come, uncached.
        """
        data = getattr(experience, "data", None)
        if data is None:
            images = experience_samples(experience)[0]
            return torch.cat([self.model.clip.encode_image(p) for p in images.split(256)])[:, None]
        probe = experience.kind == "probe"
        source = data.test if probe else data.train
        rows = torch.tensor(list(experience.dataset.sample_id))
        mirrored = [False] if probe or not data.flip else [False, True]
        return torch.stack([self.cache(source, rows, m) for m in mirrored], 1)

    def exemplar_predictive(self, experience: Any) -> Predictive:
        """What the posterior says of an experience's samples: exemplars are chosen by it."""
        return self.model.head.predict(self.views(experience)[:, 0])

    def _remember(self, new: Tensor, ids: Tensor, old_ids: Tensor) -> None:
        """Line up the memory's features with its exemplars, from old ones and new ones [n, V, d]."""
        pool = torch.cat([self.memory_views, new]) if len(self.memory_views) else new
        pool_ids = torch.cat([old_ids, ids])
        match = self.memory.sample_ids[:, None] == pool_ids[None, :]
        self.memory_views = pool[match.int().argmax(1).to(pool.device)]
        self.model.set_context(self.memory_views.flatten(0, 1))

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

    def make_train_dataloader(self, **kwargs: Any) -> None:
        views = self.views(self.experience)
        labels = experience_labels(self.experience)
        if len(self.memory_views):
            views = torch.cat([self.memory_views, views])
            labels = torch.cat([self.memory.labels, labels])
        self.dataloader = FeatureLoader(views, labels, self.train_mb_size, self._generator(1))

    def check_model_and_optimizer(self, **kwargs: Any) -> None:
        """A new adapter for the experience's classes; only what stage 1 trains is optimised."""
        data = getattr(self.experience, "data", None)
        if data is not None:
            self.model.describe(data.class_names, data.templates)
        labels = list(dict.fromkeys(experience_labels(self.experience).tolist()))
        head = self.model.head
        head.grow(labels, self.model.template_features(labels))
        head.requires_grad_(False)
        head.attention.requires_grad_(True)
        head.adapters.open_weight.requires_grad_(True)
        head.adapters.open_bias.requires_grad_(True)
        s = self.training_settings
        self._start_stage("newest", s.lr, s.epochs, s.warm_up)

    def _start_stage(self, stage: Stage, lr: float, epochs: int, warm_up: float) -> None:
        parameters = [p for p in self.model.head.parameters() if p.requires_grad]
        self.stage = stage
        self.optimizer = torch.optim.SGD(parameters, lr=lr)
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
            else:
                self._learn(experience, eval_streams, **kwargs)

    def _learn(self, experience: Any, eval_streams: Any, **kwargs: Any) -> None:
        super()._train_exp(experience, eval_streams, **kwargs)
        self._select(experience)
        head, s = self.model.head, self.training_settings
        head.adapters.close()
        head.requires_grad_(False)
        if head.adapters.tasks > 1 and s.consolidation_epochs and len(self.memory):
            head.adapters.requires_grad_(True)
            self.dataloader = FeatureLoader(
                self.memory_views, self.memory.labels, s.batch_size, self._generator(4)
            )
            self._start_stage("all", s.consolidation_lr, s.consolidation_epochs, 0.0)
            for _ in range(s.consolidation_epochs):
                self._before_training_epoch(**kwargs)
                self.training_epoch(**kwargs)
                self._after_training_epoch(**kwargs)
            head.requires_grad_(False)
        self._settle()

    def _settle(self) -> None:
        """Put the posterior of forgotten classes back to the prior, exactly, and hold the others:
        what shared attention learned since must not bring anything back."""
        head = self.model.head
        head.eval()
        if head.retired.any():
            with torch.no_grad():
                solve_adapters(head, head.weights())

    def _select(self, experience: Any) -> None:
        new = self.views(experience)
        samples = experience_samples(experience)
        self.model.set_context(torch.cat([self.memory_views.flatten(0, 1), new.flatten(0, 1)]))
        old_ids = self.memory.sample_ids
        self.memory.add(*samples, self.exemplar_predictive(experience))
        self._remember(new, samples[2], old_ids)

    def forward(self) -> Tensor:
        """In training: log-softmax of the mean logits, guided by the batch."""
        v = self.model.features(self.mb_x)
        if not self.is_training:
            return self.model(v)
        head = self.model.head
        head.train()
        head.attention.train(self.stage == "newest")  # dropout is off while attention is frozen
        self.mb_weights: ClassWeights | None = head.weights(v)
        logits = self.mb_weights.mean_logits(v, head.scale).masked_fill(head.retired, -torch.inf)
        return self.model.by_label(logits.detach().softmax(-1))

    def criterion(self) -> Tensor:
        """CLAP's objective in training, negative log likelihood in evaluation."""
        if not self.is_training:
            return torch.nn.functional.nll_loss(self.mb_output, self.mb_y)
        assert self.mb_weights is not None
        head, v = self.model.head, self.model.features(self.mb_x)
        y = head.columns(self.mb_y)
        if self.training_settings.elbo == "pyro":
            weights = self.mb_weights
            mean = torch.randn(weights.mu.shape, generator=self._noise).to(v)
            latent = weights.mu + weights.sigma * mean / head.settings.samples**0.5
            loss = elbo_loss(head, weights, v, y, self.stage)
            return loss + head.language_term(weights, latent, self.stage)
        noise = LogitNoise.draw(head.settings.samples, v, len(head.labels), self._noise)
        return head.loss(self.mb_weights, v, y, self.stage, noise)

    def optimizer_step(self) -> None:
        self.optimizer.step()
        self.schedule.step()

    def make_eval_dataloader(self, **kwargs: Any) -> None:
        data = getattr(self.experience, "data", None)
        if data is not None:
            self.model.describe(data.class_names, data.templates)
        labels = experience_labels(self.experience)
        self.dataloader = FeatureLoader(
            self.views(self.experience)[:, :1], labels, self.eval_mb_size
        )

    def _train_cleanup(self) -> None:
        super()._train_cleanup()
        self.mb_weights = None
        self.model.zero_grad(set_to_none=True)

    def model_adaptation(self, model: Any = None) -> Any:
        return self.model if model is None else model

    # ---- forgetting ------------------------------------------------------------------------
    @torch.no_grad()
    def _features_of(self, clip: Clip, images: Tensor) -> Tensor:
        return clip.encode_image(images)

    def forget(self, experience: Any) -> None:
        """Carry out a forget request on memory, CLIP and posterior; then certify it."""
        began = time.monotonic()
        data, labels = experience.data, list(experience.classes)
        self.model.describe(data.class_names, data.templates)
        memory_classes = [c for c in self.memory.classes if c not in labels]
        before = (
            self.certifier.observe(self, experience, memory_classes) if self.certifier else None
        )
        head, clip = self.model.head, self.model.clip
        head.eval()  # Avalanche has put the model in train mode: no dropout in what is to be held
        head.adapters.close()
        with torch.no_grad():
            old_weights = head.weights() if len(head.labels) else None

        forget_rows = torch.tensor(list(experience.dataset.sample_id))
        kept = ~torch.isin(self.memory.labels, torch.tensor(labels))
        self.memory.forget(labels)
        self.memory_views = self.memory_views[kept.to(self.memory_views.device)]
        images = data.train.images(forget_rows)
        forget = Pairs(
            images, [data.class_names[c] for c in experience_labels(experience).tolist()]
        )
        names = [data.class_names[c] for c in self.memory.labels.tolist()]
        retain = self.retain_set or Pairs(self.memory.images, names)
        task = ForgetTask(
            forget,
            retain,
            data.templates,
            data.class_names,
            seed=self._seed_now(),
            progress=self.on_progress,
        )
        result = self.forgetter.unlearn(clip, task)
        losses = dict(result.losses)

        old_forget = self.cache(data.train, forget_rows)
        old_memory = self.memory_views[:, 0]
        self.cache.drop(data.train, forget_rows)
        self.model.clip = result.clip
        if self.cache.use(result.clip):
            self._encode_memory(data.flip)
        self.model.set_context(self.memory_views.flatten(0, 1))
        if len(head.labels):
            self.model.refresh_text()
            if self.forgetter.unlearns_posterior and old_weights is not None:
                now = self._features_of(result.clip, images)
                losses |= forget_posterior(
                    head, labels, old_weights,
                    torch.cat([old_memory, old_forget]), torch.cat([self.memory_views[:, 0], now]),
                    self.posterior_forgetting, self._generator(6),
                )  # fmt: skip
            if self.forgetter.hides:
                head.hide([c for c in labels if bool((head.labels == c).any())])
        seconds = time.monotonic() - began
        towers = [t for t in ("image", "text") if clip.fingerprint(t) != result.clip.fingerprint(t)]
        self.last_forgetting = {
            "forgetter": type(self.forgetter).__name__, "steps": result.steps, "towers": towers,
            "seconds": round(seconds, 2), "losses": losses, **result.notes,
        }  # fmt: skip
        if self.certifier and before is not None:
            after = self.certifier.observe(self, experience, memory_classes)
            self.certificates.append(
                self.certifier.certify(
                    self, experience, before, after, forget_rows, self.last_forgetting
                )
            )

    on_progress = staticmethod(lambda step, steps: None)
    """Called with (step, steps) while a forgetter runs; a user interface may replace it."""

    def _encode_memory(self, flip: bool) -> None:
        views = [self.memory.images] + ([self.memory.images.flip(-1)] if flip else [])
        self.memory_views = torch.stack([self._features_of(self.model.clip, v) for v in views], 1)

    # ---- randomness ------------------------------------------------------------------------
    def _seed_now(self) -> int:
        return self.seed * 1_000_003 + self.clock.train_exp_counter

    def _generator(self, purpose: int) -> torch.Generator:
        """A generator for one purpose in the current experience: resuming needs no saved state."""
        return generator_for(self.seed, self.clock.train_exp_counter, purpose)


def experience_labels(experience: Any) -> Tensor:
    """Labels of an experience's samples, [n]."""
    return torch.tensor([int(y) for y in experience.dataset.targets])


_keyword_init = ClapForget.__init__


@functools.wraps(_keyword_init)
def _init(self: ClapForget, model: Clip, **kwargs: Any) -> None:
    _keyword_init(self, model=model, **kwargs)


# Avalanche warns of every positional argument; the model may stand first all the same.
ClapForget.__init__ = _init  # type: ignore[method-assign]


@STRATEGIES.register("clapforget")
def build(clip: Clip, options: StrategyOptions, seed: int) -> ClapForget:
    """The strategy with the options of the command line."""
    memory = options.memory
    return ClapForget(
        model=clip,
        forgetter=make_forgetter(options.forgetter, options.forget),
        memory=UncertaintyBuffer(memory.size, memory.score, seed),
        clap=options.clap,
        training=options.training,
        posterior_forgetting=options.posterior,
        seed=seed,
        evaluator=EvaluationPlugin(),
    )
