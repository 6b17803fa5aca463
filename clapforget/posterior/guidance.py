"""From class texts and images to what the adapters read: ``x = t + a``, and its variants."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from clapforget.posterior.layout import Layout

if TYPE_CHECKING:
    from clapforget.posterior.guided import GuidedHead
    from clapforget.posterior.previous import Previous

__all__ = ["ask", "guide"]


def ask(parts: GuidedHead | Previous, text: Tensor, layout: Layout) -> Tensor:
    """The half of the attention that no image enters, for classes and task tokens, [Q, d].

    :param text: class text features t [C, d].
    """
    if parts.attention is None:
        return text
    queries = text if parts.tokens is None else torch.cat([text, parts.tokens()])
    return parts.attention.ask(queries, layout.groups)


def guide(
    parts: GuidedHead | Previous, asked: Tensor, text: Tensor, context: Tensor,
    layout: Layout, unit: bool,
) -> Tensor:  # fmt: skip
    """Adapter inputs x [..., C, d]: ``t + a``, with a task token ``t + a + a(e_t)``.

    A retired class is alone, without its task's token. Without attention ``x = t``.

    :param asked: what :func:`ask` gave. :param context: image features [..., K, d].
    :param unit: whether the guidance is scaled to length one.
    """
    if parts.attention is None:
        leading = context.shape[:-2]
        return text.expand(*leading, *text.shape) if leading else text
    answer = parts.attention.answer(asked, context)
    a = answer[..., : len(text), :]
    if parts.tokens is not None:
        of_task = answer[..., len(text) :, :].index_select(-2, layout.task)
        a = a + of_task.masked_fill(layout.retired[:, None], 0.0)
    return text + (F.normalize(a, dim=-1) if unit else a)
