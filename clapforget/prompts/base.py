"""What every style of learned prompts has, and their options."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from clapforget.clip import Clip
from clapforget.errors import UserError, check_least, check_most
from clapforget.registry import Registry

__all__ = ["PROMPTS", "Prompt", "PromptSettings", "make_prompt"]

_NAME = 8  # places that a name and the marks around it may need


@dataclass(frozen=True)
class PromptSettings:
    """Options of learned prompts; those of other styles are not read."""

    style: str = "hand-crafted"
    """The data's templates; one learned context (CoOp); a bank of attributes chosen by image
    (AttriCLIP); coupled prompts in both towers (MaPLe)."""
    length: int = 0
    """Learned tokens of a prompt; 0: as published (CoOp 12, as in CLAP; AttriCLIP 12 for each
    attribute; MaPLe 2), fewer where a short text tower would leave less than 8 places for a name."""
    lr: float = 0.02
    """Peak rate (SGD with momentum 0.9, gradients of norm 1 at most; published without that bound:
    CoOp 0.002, AttriCLIP 0.001, MaPLe 0.0035)."""
    bank: int = 10
    """AttriCLIP: number of attributes."""
    top: int = 3
    """AttriCLIP: attributes of one image."""
    key_weight: float = 0.7
    """AttriCLIP: weight of the keys' distance from the images that chose them."""
    orthogonality_weight: float = 0.3
    """AttriCLIP: weight of the similarity among attributes."""
    depth: int = 9
    """MaPLe: layers with prompts of their own, at most as many as both towers have."""

    def __post_init__(self) -> None:
        """:raises UserError: for an unknown style, or numbers that make no sense."""
        check_least(
            self,
            "prompt",
            length=0,
            lr=0,
            bank=1,
            top=1,
            depth=1,
            key_weight=0,
            orthogonality_weight=0,
        )
        check_most(self, "prompt", length=1_000, bank=100_000, depth=1_000, lr=10)
        if self.top > self.bank:
            raise UserError(
                f"setting prompt.top={self.top} of a bank of {self.bank}", "choose fewer"
            )
        if self.style != "hand-crafted":
            PROMPTS.get(self.style)


class Prompt(nn.Module, ABC):
    """Prompts shared by all classes: what they learn of one class's images is in no part of its own.

    It belongs to a head, whose columns it words; a class that the head has retired is worded by the
    data's templates instead.
    """

    own_length: ClassVar[int]
    """Tokens as published."""
    by_image: ClassVar[bool] = False
    """Whether a class's text depends on the image it is compared with."""
    changes_images: ClassVar[bool] = False
    """Whether image features depend on what is learned, so that none outlives a training step."""

    texts: Tensor
    """Class texts as last worded, unit norm [C, d]; a retired class's are zero. Empty ``by_image``."""

    def __init__(self, clip: Clip, settings: PromptSettings) -> None:
        """A style's own takes the seed of its start as well.

        :raises UserError: if the model has no place for such prompts.
        """
        super().__init__()
        self.settings = settings
        room = clip.tokenize(["a"]).shape[1] - _NAME
        self.length = settings.length or max(1, min(self.own_length, room // self.parts))
        self.register_buffer("texts", torch.zeros(0, clip.width))

    @property
    def parts(self) -> int:
        """How many prompts stand before one name."""
        return 1

    @abstractmethod
    def bind(self, clip: Clip, names: Sequence[str]) -> None:
        """Take the model and the names of the head's columns from now on.

        :raises UserError: if a name and its prompt have no room in the text tower.
        """

    def word(self, retired: Tensor) -> None:
        """Word the columns anew; gradients reach the prompts. :param retired: [C]."""

    def similarity(self, v: Tensor) -> Tensor:
        """Cosines [B, C] of image features v [B, d] with the texts worded for each of them."""
        return v @ self.texts.T

    def penalty(self, v: Tensor) -> Tensor:
        """What is added to the loss of a batch of image features v [B, d]. Scalar."""
        return v.new_zeros(())

    def encode_image(self, clip: Clip, images: Tensor) -> Tensor:
        """Unit-norm image features [n, d]; the model's own unless ``changes_images``."""
        return clip.encode_image(images)

    def optimised(self) -> dict[str, object]:
        """Its parameter group for an optimiser."""
        return {"params": list(self.parameters()), "lr": self.settings.lr, "momentum": 0.9}


PROMPTS: Registry[Callable[[Clip, PromptSettings, int], Prompt]] = Registry(
    "prompt style", "clapforget.prompts"
)
"""Styles by name: ``style(clip, settings, seed)``."""


def make_prompt(clip: Clip, settings: PromptSettings | None, seed: int) -> Prompt | None:
    """The prompts of these settings; None for hand-crafted ones.

    :raises UserError: for an unknown style, or a model that has no place for it.
    """
    if settings is None or settings.style == "hand-crafted":
        return None
    return PROMPTS.get(settings.style)(clip, settings, seed).to(clip.device)
