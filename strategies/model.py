"""The model a strategy trains: a frozen CLIP and a head on top."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from clapforget.clip import Clip
from clapforget.errors import UserError
from clapforget.posterior import HEADS
from clapforget.posterior.guided import GuidedHead
from clapforget.posterior.prompted import PromptedHead
from clapforget.prompts import Prompt, PromptSettings, make_prompt

__all__ = ["ClapModel", "check_prompt"]

_NEVER = 1e-12  # probability of a class that the head has not met, so that its log is finite


def check_prompt(posterior: str, prompt: PromptSettings | None) -> None:
    """:raises UserError: for a head that needs learned prompts, or takes none."""
    learned, head = prompt is not None and prompt.style != "hand-crafted", HEADS.get(posterior)
    if not learned and issubclass(head, PromptedHead):
        raise UserError(
            "the posterior prompted needs learned prompts", "set prompt.style to coop, "
            "attriclip or maple; with none it would be zero-shot"
        )  # fmt: skip
    if learned and not issubclass(head, GuidedHead | PromptedHead):
        raise UserError(
            f"the posterior {posterior} takes no learned prompts",
            "use variational or prompted, or prompt.style=hand-crafted",
        )


class ClapModel(nn.Module):
    """Images or cached features in, log-probabilities over all class labels out."""

    def __init__(
        self, clip: Clip, posterior: str, settings: Any, seed: int,
        prompt: PromptSettings | None = None,
    ) -> None:  # fmt: skip
        """:param posterior: the head's registered name. :param settings: its options, or None.
        :param seed: of the head's weights and noise. :param prompt: options of learned prompts.
        :raises UserError: for a head or a model that has no place for such prompts.
        """
        super().__init__()
        check_prompt(posterior, prompt)
        self.clip = clip
        self.posterior = posterior
        self.head: Any = HEADS.get(posterior)(clip.width, float(clip.scale), settings, seed).to(
            clip.device
        )
        self.head.prompt = make_prompt(clip, prompt, seed)
        if self.prompt is not None:
            self.head.keeps_of_samples = "; ".join(
                dict.fromkeys([self.head.keeps_of_samples, PromptedHead.keeps_of_samples])
            )
        self.class_names: tuple[str, ...] = ()
        self.templates: tuple[str, ...] = ()

    @property
    def prompt(self) -> Prompt | None:
        """The head's learned prompts, if any."""
        return self.head.prompt

    @property
    def changes_images(self) -> bool:
        """Whether learned prompts change image features, which are CLIP's own otherwise."""
        return self.prompt is not None and self.prompt.changes_images

    def features(self, x: Tensor) -> Tensor:
        """Image features [B, d] of images [B, 3, h, w], as the head reads them; features pass
        through."""
        return x if x.ndim == 2 else self.encode_image(x)

    def encode_image(self, images: Tensor) -> Tensor:
        """Unit-norm image features [n, d] as the head reads them: prompts of the image tower count."""
        if self.prompt is None:
            return self.clip.encode_image(images)
        return self.prompt.encode_image(self.clip, images)

    def by_label(self, probs: Tensor) -> Tensor:
        """Log-probabilities [B, number of class labels] from the head's columns [B, C]."""
        width = max(len(self.class_names), int(self.head.labels.max()) + 1)
        out = probs.new_full((len(probs), width), _NEVER)
        return out.index_copy(1, self.head.labels, probs.clamp_min(_NEVER)).log()

    def forward(self, x: Tensor) -> Tensor:
        """Log of the posterior predictive, [B, number of class labels]."""
        v = self.features(x)
        if not len(self.head.labels):
            return torch.full(
                (len(v), max(len(self.class_names), 1)), _NEVER, device=v.device
            ).log()
        return self.by_label(self.head.probs(v))

    # ---- text ------------------------------------------------------------------------------
    def describe(self, class_names: Sequence[str], templates: Sequence[str]) -> None:
        """Say what the labels are called and how a name is put into a prompt."""
        changed = self.class_names != tuple(class_names)
        self.class_names, self.templates = tuple(class_names), tuple(templates)
        if changed:
            self.word()

    @torch.no_grad()
    def template_features(self, labels: Sequence[int]) -> Tensor:
        """Template features E [n, L, d] of class labels."""
        return self.clip.encode_names([self.class_names[c] for c in labels], self.templates)

    def refresh_text(self) -> None:
        """Encode the head's class names again, after the text tower changed."""
        self.head.reword(self.template_features(self.head.labels.tolist()))
        self.word()

    @torch.no_grad()
    def word(self) -> None:
        """Have learned prompts word the head's columns by the CLIP of now."""
        if self.prompt is not None and len(self.head.labels):
            self.prompt.bind(self.clip, [self.class_names[c] for c in self.head.labels.tolist()])
            self.prompt.word(self.head.retired)
