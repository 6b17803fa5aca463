"""Shadow heads: where a head is solved for in one pass, U-LiRA of single samples costs seconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from clapforget.seeding import generator_for
from clapforget.verify.evidence import Evidence
from clapforget.verify.membership import log_odds, shadow_membership, train_shadows

__all__ = ["Samples", "sample_membership"]

Samples = tuple[Tensor, Tensor]
"""Features as a head learns them [n, V, d], the first view the plain one; and labels [n]."""


def sample_membership(
    make: Callable[[], Any],
    before: Any,
    after: Any,
    retained: Samples,
    members: Samples,
    others: Samples,
    tower: str,
    *,
    unlearn: Callable[[Any, Samples, Tensor], None] | None = None,
    count: int = 16,
    seed: int = 0,
) -> list[Evidence]:
    """U-LiRA (arXiv 2403.01218) on a head that learns and deletes in one pass: are samples that it was asked to
    forget told from such that it never learned? Beside it plain LiRA on the head before.

    Every shadow head learns four fifths of the retained samples and half of ``members`` and ``others`` together,
    then unlearns that half by the method under examination.

    :param make: gives an empty head with the columns of the head under examination.
    :param before: the head that learned retained samples and members. :param after: the one that was made to
        forget the members.
    :param others: as many samples of the same classes, better more, from the same distribution, that were never
        learned: test images. :param tower: fingerprint of the image tower, as for ``learn``.
    :param unlearn: ``unlearn(head, samples, ids)``, in place; default: the head's own ``delete``.
    :param count: shadow heads, at least 4. :returns: the evidence of
        :func:`~clapforget.verify.membership.membership_evidence`.
    """
    v, labels = (torch.cat([m, o]) for m, o in zip(members, others))
    ids = torch.arange(len(labels), device=labels.device)
    forget = unlearn or (lambda head, samples, own: head.delete(*samples, own, tower))

    def odds(head: Any) -> Tensor:
        found = head.predict(v[:, 0])
        logs = found.probs.clamp_min(1e-30).log()
        if found.logits is not None:  # where a probability underflows, its logit still speaks
            logs = torch.where(found.logits.isneginf(), logs, found.logits.log_softmax(-1))
        return log_odds(logs, head.columns(labels))

    def fit(rows: Tensor, mine: Tensor) -> _Shadow:
        head = make()
        features, own = (torch.cat([x[mine], r[rows]]) for x, r in zip((v, labels), retained))
        head.learn(features, own, torch.cat([ids[mine], len(ids) + rows.to(ids.device)]), tower)
        return _Shadow(head, odds)

    def take_back(model: Any, mine: Tensor) -> _Shadow:
        forget(model.head, (v[mine], labels[mine]), ids[mine])
        return _Shadow(model.head, odds)

    shadows = train_shadows(
        fit, take_back, len(retained[1]), len(labels), count, generator_for(seed, 36)
    )
    member = torch.arange(len(labels)) < len(members[1])
    return shadow_membership(shadows, odds(before), odds(after), member, seed)


class _Shadow:
    """A head, and what it says of the candidates."""

    def __init__(self, head: Any, odds: Callable[[Any], Tensor]) -> None:
        self.head, self._odds = head, odds

    def __call__(self) -> Tensor:
        return self._odds(self.head)
