"""Strangers: what a model makes of names that it has never met, and which of them is typical."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clapforget.clip import Clip

__all__ = ["choose_stand_ins", "own_tokens", "strange_words", "text_tokens"]

_CONSONANTS, _VOWELS = "bdfghjklmnprstvz", "aeiou"
_DRAWN = 16
"""Words drawn for each that is wanted, so that some share no token."""


def text_tokens(clip: Clip, texts: Sequence[str]) -> Tensor:
    """Distinct token ids [n] of some texts, without those of the empty text (begin, end, padding)."""
    if not texts:
        return torch.zeros(0, dtype=torch.long, device=clip.device)
    ids = clip.tokenize(texts).unique()
    return ids[~torch.isin(ids, clip.tokenize([""])[0])]


def own_tokens(clip: Clip, texts: Sequence[str], kept: Sequence[str], share: float = 0.0) -> Tensor:
    """Distinct tokens [n] that no kept text has.

    :param share: they must be in more than this share of the texts, in [0, 1).
    """
    ids = text_tokens(clip, texts)
    ids = ids[~torch.isin(ids, text_tokens(clip, kept))]
    having = (clip.tokenize(texts)[:, :, None] == ids).any(1).float().mean(0)
    return ids[having > share]


def strange_words(clip: Clip, known: Sequence[str], count: int, rng: torch.Generator) -> list[str]:
    """Pronounceable made-up words of five letters.

    :param known: texts whose tokens they are not to share; words that share fewest come first.
    """
    letters = (_CONSONANTS, _VOWELS, _CONSONANTS, _VOWELS, _CONSONANTS)
    draws = torch.stack([
        torch.randint(len(kind), (_DRAWN * count,), generator=rng) for kind in letters
    ], 1).tolist()  # fmt: skip
    words = list(dict.fromkeys("".join(k[i] for k, i in zip(letters, row)) for row in draws))
    met = torch.isin(clip.tokenize(words), text_tokens(clip, known))
    order = met.sum(1).argsort(stable=True).tolist()
    return [words[i] for i in order[:count]]


def choose_stand_ins(cosines: Tensor, answers: Tensor) -> list[int]:
    """For each name the stranger whose cosine is nearest to the mean of all strangers' cosines, of
    those that would answer for the fewest of its images.

    :param cosines: mean cosine of each name's images with each stranger [n, K].
    :param answers: share of each name's images that each stranger would answer for [n, K].
    :returns: n positions of strangers; none twice while there are others.
    """
    distance = (cosines - cosines.mean(1, keepdim=True)).abs()
    cost = distance + 2 * answers  # a distance is at most 2
    taken = torch.zeros_like(cost[0])
    chosen: list[int] = []
    for row in cost:
        best = int((row + 5 * taken).argmin())
        taken[best] += 1
        chosen.append(best)
    return chosen
