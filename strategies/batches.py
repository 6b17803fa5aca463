"""What a strategy learns from and is asked about: features by the batch, each computed once, or images
where training changes their features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from clapforget.features import FeatureCache
from clapforget.posterior import Predictive
from clapforget.seeding import generator_for
from clapforget.strategies.buffer import UncertaintyBuffer, experience_samples
from clapforget.strategies.loader import FeatureLoader, ImageLoader
from clapforget.strategies.model import ClapModel
from clapforget.strategies.seen import PromptedFeatures
from clapforget.strategies.selection import Reads
from clapforget.strategies.template import UnlearningTemplate
from clapforget.strategies.training import TrainSettings

__all__ = ["FeatureBatches", "experience_labels"]


def say(head: Any, v: Tensor, reads: Reads) -> Predictive | None:
    """As much of what a head predicts of features v [n, d] as a score reads."""
    if reads == "nothing":
        return None
    return Predictive.of_point(head.probs(v)) if reads == "probabilities" else head.predict(v)


class FeatureBatches(UnlearningTemplate):
    """Features of experiences and of the exemplar memory, and the loaders of them."""

    model: ClapModel
    training_settings: TrainSettings

    def _open(self, memory: UncertaintyBuffer | None, seed: int) -> None:
        """Begin with nothing read. :param memory: default 2,000 exemplars by coverage.

        :raises UserError: for a score that asks for what the head does not say.
        """
        self.memory = UncertaintyBuffer(seed=seed) if memory is None else memory
        self.memory.select.check(self.model.head.settings)
        self.seed = seed
        self.cache = FeatureCache(self.model.clip)
        """Features of CLIP as it is."""
        self.seen = PromptedFeatures(self.model, self.cache)
        """Features as the head reads them."""
        self.memory_views = torch.zeros(0, 1, self.model.clip.width, device=self.device)

    # ---- features --------------------------------------------------------------------------
    def views(self, experience: Any) -> Tensor:
        """Features of an experience's samples [n, V, d]; V = 2 where mirrored images count too.

        Experiences without ``data`` (other benchmarks') are encoded as they come, uncached.
        """
        data = getattr(experience, "data", None)
        if data is None:
            images = experience_samples(experience)[0]
            return self._encode(images, False)
        probe = experience.kind == "probe"
        source = data.test if probe else data.train
        rows = torch.tensor(list(experience.dataset.sample_id))
        mirrored = [False] if probe or not data.flip else [False, True]
        return torch.stack([self.seen(source, rows, m) for m in mirrored], 1)

    def exemplar_predictive(
        self, experience: Any, reads: Reads = "everything"
    ) -> Predictive | None:
        """What the posterior says of an experience's samples: exemplars are chosen by it.

        :param reads: how much of it is read.
        """
        return self._said(self.views(experience)[:, 0], reads)

    def _said(self, v: Tensor, reads: Reads) -> Predictive | None:
        return say(self.model.head, v, reads)

    def _remember(self, new: Tensor, ids: Tensor, old_ids: Tensor) -> None:
        """Line up the memory's features with its exemplars, from old ones and new ones [n, V, d]."""
        pool = torch.cat([self.memory_views, new]) if len(self.memory_views) else new
        pool_ids = torch.cat([old_ids, ids])
        match = self.memory.sample_ids[:, None] == pool_ids[None, :]
        self.memory_views = pool[match.int().argmax(1).to(pool.device)]
        self.model.head.guide(self.memory_views.flatten(0, 1))

    def _settle_prompts(self) -> None:
        """Word the classes, and encode the memory, by prompts as they are now."""
        self.model.word()
        if self.seen.refresh() and len(self.memory):
            self.memory_views = self._encode(self.memory.images, self.memory_views.shape[1] > 1)

    @torch.no_grad()
    def _encode(self, images: Tensor, flip: bool) -> Tensor:
        """Features of images by every view that counts, [n, V, d], by the CLIP and prompts of now."""
        views = [images] + ([images.flip(-1)] if flip else [])
        return torch.stack([self.model.encode_image(view) for view in views], 1)

    # ---- loaders -----------------------------------------------------------------------------
    def make_train_dataloader(self, **kwargs: Any) -> None:
        """Features, or images where a step of training changes their features."""
        if self.model.changes_images:
            images, labels = self._images()
            self.dataloader: Any = self._image_loader(images.__getitem__, labels, 1)
            return
        views = self.views(self.experience)
        labels = experience_labels(self.experience)
        if len(self.memory_views):
            views = torch.cat([self.memory_views, views])
            labels = torch.cat([self.memory.labels, labels])
        self.dataloader = FeatureLoader(views, labels, self.train_mb_size, self._generator(1))

    def _images(self) -> tuple[Tensor, Tensor]:
        """Images and labels of the memory and the experience."""
        images, labels, _ = experience_samples(self.experience)
        if len(self.memory):
            images = torch.cat([self.memory.images, images])
            labels = torch.cat([self.memory.labels, labels])
        return images, labels

    @property
    def _flips(self) -> bool:
        """Whether a mirrored image of the experience still shows its class."""
        return getattr(getattr(self.experience, "data", None), "flip", False)

    def _image_loader(
        self, fetch: Callable[[Tensor], Tensor], labels: Tensor, purpose: int
    ) -> ImageLoader:
        """:param fetch: gives the images of positions [n]."""
        rng = self._generator(purpose)
        return ImageLoader(fetch, labels, self.train_mb_size, rng, self._flips)

    def _memory_loader(self) -> Any:
        """Of exemplars: features, or images where this stage still changes their features."""
        prompt, memory = self.model.prompt, self.memory
        if self.model.changes_images and next(prompt.parameters()).requires_grad:  # type: ignore[union-attr]
            return self._image_loader(memory.images.__getitem__, memory.labels, 4)
        size = self.training_settings.batch_size
        return FeatureLoader(self.memory_views, memory.labels, size, self._generator(4))

    def make_eval_dataloader(self, **kwargs: Any) -> None:
        data = getattr(self.experience, "data", None)
        if data is not None:
            self.model.describe(data.class_names, data.templates)
        labels = experience_labels(self.experience)
        self.dataloader = FeatureLoader(
            self.views(self.experience)[:, :1], labels, self.eval_mb_size
        )

    # ---- randomness ------------------------------------------------------------------------
    def _seed_now(self) -> int:
        return self.seed * 1_000_003 + self.clock.train_exp_counter

    def _generator(self, purpose: int) -> torch.Generator:
        """A generator for one purpose in the current experience: resuming needs no saved state."""
        return generator_for(self.seed, self.clock.train_exp_counter, purpose)


def experience_labels(experience: Any) -> Tensor:
    """Labels of an experience's samples, [n]."""
    return torch.tensor([int(y) for y in experience.dataset.targets])
