"""CoOp (Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022, arXiv 2109.01134):
one context of M learned vectors, shared by all classes, before every name::

    t_c = TextTower([P_1] … [P_M] [name_c] .)

Cached image features serve; the text tower runs over all classes, with gradients, in every step. The
context starts from N(0, 0.02²), M = 12, as in CLAP's program.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from clapforget.clip import Clip
from clapforget.prompts.base import PROMPTS, Prompt, PromptSettings
from clapforget.prompts.insertion import encode_prompted, prompt_tokens, token_embedding
from clapforget.seeding import generator_for

__all__ = ["CoOp"]


@PROMPTS.register("coop")
class CoOp(Prompt):
    """One learned context."""

    own_length = 12

    def __init__(self, clip: Clip, settings: PromptSettings, seed: int) -> None:
        super().__init__(clip, settings)
        width = token_embedding(clip).weight.shape[1]
        start = 0.02 * torch.randn(self.length, width, generator=generator_for(seed, 41))
        self.context = nn.Parameter(start)

    def bind(self, clip: Clip, names: Sequence[str]) -> None:
        self._bound = (clip,), prompt_tokens(clip, names, self.length)

    def word(self, retired: Tensor) -> None:
        (clip,), tokens = self._bound
        texts = encode_prompted(clip, tokens, [self.context])
        self.texts = texts.masked_fill(retired[:, None], 0.0)
