"""MaPLe (Khattak et al., "MaPLe: Multi-modal Prompt Learning", CVPR 2023, arXiv 2210.03117): n learned
vectors before each of the first J layers of the text tower, and their linear images in the image
tower, beside its patches::

    layer j < J of the text tower:    tokens 1 … n become P_j        j = 0 starts from "a photo of a"
    layer j < J of the image tower:   n more tokens, F_j(P_j) = A_j P_j + b_j

Behind layer J the vectors are what the layers make of them. Image features change with every step,
so none is cached across steps: every image of a batch runs through the image tower, with gradients.
Only open_clip's vision transformers have tokens to put prompts beside; others are refused.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from clapforget.clip import Clip
from clapforget.prompts.base import PROMPTS, Prompt, PromptSettings
from clapforget.prompts.insertion import (
    encode_prompted,
    in_images,
    prompt_tokens,
    text_blocks,
    token_embedding,
    vision,
)
from clapforget.seeding import generator_for

__all__ = ["MaPLe"]

_START = "a photo of a"


@PROMPTS.register("maple")
class MaPLe(Prompt):
    """Prompts in both towers, coupled by one linear map a layer."""

    own_length = 2
    changes_images = True

    def __init__(self, clip: Clip, settings: PromptSettings, seed: int) -> None:
        super().__init__(clip, settings)
        table, visual = token_embedding(clip).weight, vision(clip)
        width, visual_width = table.shape[1], visual.conv1.out_channels
        layers = len(text_blocks(clip)), len(visual.transformer.resblocks)
        depth, rng = min(settings.depth, *layers), generator_for(seed, 43)
        start = 0.02 * torch.randn(depth, self.length, width, generator=rng)
        words = clip.tokenize([_START])[0, 1:5]
        if self.length <= len(words):
            start[0] = table[words[: self.length]].detach().to(start)
        self.prompts = nn.Parameter(start)
        bound = width**-0.5  # as nn.Linear starts
        shape = (depth, visual_width, width)
        self.weight = nn.Parameter((2 * torch.rand(shape, generator=rng) - 1) * bound)
        self.bias = nn.Parameter((2 * torch.rand(shape[:2], generator=rng) - 1) * bound)

    def bind(self, clip: Clip, names: Sequence[str]) -> None:
        self._bound = (clip,), prompt_tokens(clip, names, self.length)

    def word(self, retired: Tensor) -> None:
        (clip,), tokens = self._bound
        texts = encode_prompted(clip, tokens, list(self.prompts))
        self.texts = texts.masked_fill(retired[:, None], 0.0)

    def encode_image(self, clip: Clip, images: Tensor) -> Tensor:
        coupled = torch.baddbmm(self.bias[:, None], self.prompts, self.weight.mT)
        with in_images(clip, list(coupled)):
            return clip.encode_image(images)
