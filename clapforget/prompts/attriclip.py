"""AttriCLIP (Wang et al., "AttriCLIP: A Non-Incremental Learner for Incremental Knowledge Learning",
CVPR 2023, arXiv 2305.11488): a bank of N attributes, each a key and a prompt of M vectors. An image
takes the top attributes by the cosine of its feature with the keys, and their prompts, one after the
other, word every class for this image::

    K(v) = top_k cos(v, k_i)          t_c(v) = TextTower([P_i, i ∈ K(v)] [name_c] .)
    L = CE(s v · t_c(v)) + λ_k mean_{i ∈ K(v)} (1 − cos(v, k_i))
        + λ_p mean_{i < j} |cos(TextTower(P_i), TextTower(P_j))|

Cached image features serve. The chosen prompts stand in the order of the bank (published: of their
cosine), so that a batch needs the text tower once for each set of attributes and not for each image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clapforget.clip import Clip
from clapforget.prompts.base import PROMPTS, Prompt, PromptSettings
from clapforget.prompts.insertion import encode_prompted, prompt_tokens, token_embedding
from clapforget.seeding import generator_for

__all__ = ["AttriCLIP"]

_ROWS = 1024  # texts encoded at once


@PROMPTS.register("attriclip")
class AttriCLIP(Prompt):
    """A bank of attributes."""

    own_length = 12
    by_image = True

    def __init__(self, clip: Clip, settings: PromptSettings, seed: int) -> None:
        super().__init__(clip, settings)
        width, rng = token_embedding(clip).weight.shape[1], generator_for(seed, 42)
        n = settings.bank
        self.prompts = nn.Parameter(0.02 * torch.randn(n, self.length, width, generator=rng))
        self.keys = nn.Parameter(torch.randn(n, clip.width, generator=rng))
        self._known: dict[tuple[int, ...], Tensor] = {}

    @property
    def parts(self) -> int:
        return self.settings.top

    def bind(self, clip: Clip, names: Sequence[str]) -> None:
        tokens = prompt_tokens(clip, names, self.settings.top * self.length)
        alone = prompt_tokens(clip, [""], self.length)
        self._bound, self._known = ((clip,), tokens, alone), {}

    def word(self, retired: Tensor) -> None:
        """Texts depend on the image; what is known of them is out of date."""
        self._known = {}

    def chosen(self, v: Tensor) -> Tensor:
        """Attributes of each image feature v [B, d], ascending [B, top]."""
        with torch.no_grad():
            cosine = v @ F.normalize(self.keys, dim=-1).T
            return cosine.topk(self.settings.top, dim=-1).indices.sort(-1).values

    def similarity(self, v: Tensor) -> Tensor:
        sets, inverse = self.chosen(v).unique(dim=0, return_inverse=True)
        if torch.is_grad_enabled() and self.prompts.requires_grad:
            texts = self._encode(sets)
        else:
            texts = self._recall(sets)
        return torch.einsum("bd,ucd->buc", v, texts).take_along_dim(
            inverse[:, None, None].expand(-1, 1, texts.shape[1]), 1
        )[:, 0]

    def _encode(self, sets: Tensor) -> Tensor:
        """Class texts [U, C, d] by sets of attributes [U, top]."""
        (clip,), tokens, _ = self._bound
        c = len(tokens)
        parts = [
            encode_prompted(
                clip, tokens.repeat(len(part), 1),
                [self.prompts[part].flatten(1, 2).repeat_interleave(c, 0)],
            )
            for part in sets.split(max(1, _ROWS // c))
        ]  # fmt: skip
        return torch.cat(parts).view(len(sets), c, -1)

    @torch.no_grad()
    def _recall(self, sets: Tensor) -> Tensor:
        """As :meth:`_encode`, each set once until the prompts, names or tower change."""
        keys = [tuple(row) for row in sets.tolist()]
        missing = [row for row, key in enumerate(keys) if key not in self._known]
        if missing:
            self._known |= zip([keys[row] for row in missing], self._encode(sets[missing]))
        return torch.stack([self._known[key] for key in keys])

    def penalty(self, v: Tensor) -> Tensor:
        s, keys = self.settings, F.normalize(self.keys, dim=-1)
        pull = (1 - (v @ keys.T).gather(1, self.chosen(v))).mean()
        (clip,), _, alone = self._bound
        texts = encode_prompted(clip, alone.repeat(s.bank, 1), [self.prompts])
        among = (texts @ texts.T).abs().triu(1).sum() / max(s.bank * (s.bank - 1) / 2, 1)
        return s.key_weight * pull + s.orthogonality_weight * among
