"""Put learned vectors in the place of tokens, inside an open_clip model as it is.

Hooks do it, for the time of a ``with``, so that positions, masks, pooling and projections stay the
model's own, and nothing of it is copied or rewritten.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clapforget.clip import Clip
from clapforget.errors import UserError

__all__ = ["encode_prompted", "in_images", "in_text", "prompt_tokens", "text_blocks", "vision"]


def token_embedding(clip: Clip) -> nn.Embedding:
    """The table of token vectors. :raises UserError: if the text tower shows none."""
    table = clip.token_table
    if table is None:
        raise UserError(
            f"the text tower of model {clip.name} takes no token vectors",
            "use a model with open_clip's own text tower, or prompt.style=hand-crafted",
        )
    return table


def text_blocks(clip: Clip) -> Sequence[nn.Module]:
    """The text tower's layers."""
    return clip.text_tower.transformer.resblocks


def vision(clip: Clip) -> Any:
    """The image tower. :raises UserError: if it is not open_clip's vision transformer."""
    visual: Any = clip.model.visual
    if not hasattr(visual, "transformer") or not hasattr(visual, "ln_pre"):
        raise UserError(
            f"the image tower of model {clip.name} is no vision transformer, and has no tokens to put "
            "prompts beside", "use a ViT model such as ViT-B-32, or prompt.style=coop",
        )  # fmt: skip
    return visual


def prompt_tokens(clip: Clip, names: Sequence[str], length: int) -> Tensor:
    """Token ids [n, L] of names after as many placeholders; those are tokens 1 … length.

    :raises UserError: if they do not fit into the text tower.
    """
    tokens = clip.tokenize([f"{'X ' * length}{name}." for name in names])
    room = tokens.shape[1]
    longest = max(int((row != 0).sum()) for row in clip.tokenize([f"{name}." for name in names]))
    if longest + length > room:
        raise UserError(
            f"{length} prompt tokens and a name need {longest + length} places, the text tower has "
            f"{room}", f"set prompt.length (times prompt.top) to {max(room - longest, 0)} or less",
        )  # fmt: skip
    if (tokens[:, 1 : 1 + length] != tokens[:1, 1:2]).any():
        raise UserError(
            f"the tokeniser of model {clip.name} has no placeholder of one token",
            "use prompt.style=hand-crafted",
        )
    return tokens


@contextmanager
def in_text(clip: Clip, layers: Sequence[Tensor]) -> Iterator[None]:
    """Encode text with other vectors in the places of tokens 1 … n.

    :param layers: what is put before each of the first layers, [n, width] each, or [rows, n, width]
        for the batch that is encoded.
    """
    tower = clip.text_tower

    def put(x: Tensor, vectors: Tensor, batch_first: bool) -> Tensor:
        x = x if batch_first else x.transpose(0, 1)
        vectors = vectors.to(x).expand(len(x), *vectors.shape[-2:])
        x = torch.cat([x[:, :1], vectors, x[:, 1 + vectors.shape[1] :]], 1)
        return x if batch_first else x.transpose(0, 1)

    with ExitStack() as stack:
        first = layers[0]
        hook = token_embedding(clip).register_forward_hook(
            lambda _m, _a, out: put(out, first, True)
        )
        stack.callback(hook.remove)
        ordered = getattr(tower.transformer, "batch_first", True)
        for block, vectors in zip(text_blocks(clip)[1:], layers[1:]):
            hook = block.register_forward_pre_hook(
                lambda _m, args, vectors=vectors: (put(args[0], vectors, ordered), *args[1:])
            )
            stack.callback(hook.remove)
        yield


@contextmanager
def in_images(clip: Clip, layers: Sequence[Tensor]) -> Iterator[None]:
    """Encode images with n more tokens, which are taken off again behind the last layer.

    :param layers: what they are before each of the first layers, [n, width] each; behind those they
        are what the layers make of them.
    """
    visual = vision(clip)
    n = len(layers[0])
    ordered = getattr(visual.transformer, "batch_first", True)

    def add(args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = args[0]
        return (torch.cat([x, layers[0].to(x).expand(len(x), -1, -1)], 1), *args[1:])

    def put(args: tuple[Tensor, ...], vectors: Tensor) -> tuple[Tensor, ...]:
        x = args[0] if ordered else args[0].transpose(0, 1)
        x = torch.cat([x[:, :-n], vectors.to(x).expand(len(x), -1, -1)], 1)
        return (x if ordered else x.transpose(0, 1), *args[1:])

    with ExitStack() as stack:
        hooks = [
            visual.ln_pre.register_forward_pre_hook(lambda _m, args: add(args)),
            visual.transformer.register_forward_hook(lambda _m, _a, out: out[:, :-n]),
        ]
        for block, vectors in zip(visual.transformer.resblocks[1:], layers[1:]):
            hooks.append(
                block.register_forward_pre_hook(
                    lambda _m, args, vectors=vectors: put(args, vectors)
                )
            )
        for hook in hooks:
            stack.callback(hook.remove)
        yield


def encode_prompted(clip: Clip, tokens: Tensor, layers: Sequence[Tensor]) -> Tensor:
    """Unit-norm features [n, d] of token ids [n, L] with vectors inserted, see :func:`in_text`."""
    encode: Any = clip.model.encode_text
    with in_text(clip, layers):
        return F.normalize(encode(tokens), dim=-1)
