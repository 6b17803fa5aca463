"""How name and image still belong together, whatever else is put on top of their similarity."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache

import numpy as np
import torch
from torch import Tensor

from clapforget.verify.asking import settled_logits
from clapforget.verify.material import Material, Part
from clapforget.verify.reading import Reading, array, read, witness
from clapforget.verify.statistics import mean
from clapforget.verify.subject import Subject
from clapforget.verify.witnesses.answers import own_or_any

__all__ = ["association", "precision_by_column"]


@witness("association")
def association(subject: Subject, m: Material, seed: int) -> list[Reading]:
    """Cosine with the own name, beside that with other names (shown); rank of an image in its name's
    column; the same in the best column of another name that is not to be kept.

    A rank within a column does not change under anything that is constant by column or rising in
    it: a subtracted constant, a temperature, a bias. A high one in another name's column says that
    names were exchanged, or that the class lives on under an alias.
    """
    precision = cache(lambda part: _precision(subject.bare(), m, part))
    found = [
        read("matched_cosine", "cosine of forgotten images with their own name", "clip", m,
             lambda part: _own(subject.zero_shot(part, m.names, m.templates), part), share=False,
             margin=0.6, minimum_lead=0.05),
        read("retrieval", "images found by their own name, zero-shot", "clip", m,
             lambda part: _own(precision(part), part), margin=0.5),
        read("alias", "images found by another name that is not kept", "attack", m,
             lambda part: _alias(precision(part), m, part), role="accuses", margin=0.5,
             absolute=True),
    ]  # fmt: skip
    found += _unmatched(subject, m)
    found += [
        read("alias_answered", "images answered by one and the same name that is not kept", "attack", m,
             lambda part: _alias_answered(subject.bare(), m, part), role="accuses"),
        _found_by_name(subject, m),
    ]  # fmt: skip
    if len(m.forget) > 1:
        found.append(
            read("exchange", "images found by the name of another forgotten class", "attack", m,
                 lambda part: _exchange(precision(part), m, part), role="accuses", margin=0.5, absolute=True)
        )  # fmt: skip
    if subject.answer is not None:
        settled = settled_logits(subject, m, list(m.test.values()), seed)
        found += [
            read("answer_rank", "images found by the own column of the answer", "behaviour", m,
                 lambda part: _column(subject, m, part, settled), margin=0.5),
            read("answer_rank_turned", "images found by the own column of the answer, its sign turned", "head", m,
                 lambda part: _column(subject, m, part, settled, -1), role="accuses", margin=0.5, absolute=True),
            read("alias_by_head", "images answered by one and the same column that is not kept", "head", m,
                 lambda part: _alias_answered(subject, m, part), role="accuses"),
        ]  # fmt: skip
        if set(m.forget) & set(subject.column_labels(len(m.names)).tolist()):
            found.append(_shut(subject, m))
    return found


def _unmatched(subject: Subject, m: Material) -> list[Reading]:
    """Cosine with the names of other classes, the unmatched level (mean over the kept names that are not the image's
    own), and how far above it the own name lies: 0 at that level, and beside it unseen classes.
    Below 0 alone gives no request away, for single names of an honest twin lie there as well; below unseen classes by
    more than these differ from each other (the scar) does.
    """

    def level(part: Part) -> Tensor:
        cosine = subject.zero_shot(part, m.names, m.templates)
        other = m.kept[None] != part.labels[:, None]
        kept = cosine[:, m.kept.to(cosine.device)]
        other = other.to(kept)
        return (kept * other).sum(1) / other.sum(1).clamp_min(1)

    def above(part: Part) -> Tensor:
        return _own(subject.zero_shot(part, m.names, m.templates), part) - level(part)

    lead = read("matched_over_unmatched", "cosine with the own name over that with other names", "clip", m, above,
                share=False, role="shown", margin=0.6, minimum_lead=0.05,
                note="0 is the level of other names")  # fmt: skip
    if len(lead.forget) > 1 and mean(lead.forget)[1][1] < 0:
        lead.note += ": below it"
    return [
        read("unmatched_cosine", "cosine of forgotten images with the names of other classes", "clip", m, level,
             share=False, role="shown"),
        lead,
    ]  # fmt: skip


def _found_by_name(subject: Subject, m: Material) -> Reading:
    """Text to image, R@1: whether the image nearest to a class's name is one of it, an entry a class and
    wording. Searched among the class's own part and the retained images.

    Entries of a class share its name and its images, so their number overstates what is known: shown,
    not judged. Image to text, R@1, is the zero-shot answer.
    """

    def look(part: Part) -> tuple[np.ndarray, np.ndarray]:
        classes = torch.tensor(part.classes())
        names = [m.names[int(c)] for c in classes]
        kept = m.test["retain"]
        pool = torch.cat([subject.features(part), subject.features(kept)])
        labels = torch.cat([part.labels, kept.labels])
        first = torch.einsum("nd,cld->ncl", pool, subject.wordings(names, m.templates)).argmax(0)
        right = labels[first.cpu()] == classes[:, None]
        return array(right.flatten()), classes.repeat_interleave(right.shape[1]).numpy()

    forget, labels = look(m.test["forget"])
    unseen, unseen_labels = look(m.test["unseen"]) if "unseen" in m.test else (None, None)
    return Reading("found_by_name", "names whose nearest image is of the class (text to image, R@1)", "clip",
                   forget, labels, unseen, unseen_labels, role="shown")  # fmt: skip


def _shut(subject: Subject, m: Material) -> Reading:
    """Whether a forgotten class's column says the same of every image, 1 or 0 a class.

    A head that never learned a class still finds some images nearer to its name than others; one
    that answers a constant (minus infinity, say) has been told to.
    """
    seen = [subject.logits(m.test[k], m.names, m.templates) for k in ("forget", "retain")]
    columns = subject.column_labels(len(m.names)).tolist()
    logits = torch.cat(seen)
    met = [c for c in m.forget if c in columns]
    own = logits[:, [columns.index(c) for c in met]]
    constant = (own == own[:1]).all(0).double().cpu().numpy()
    return Reading(
        "column_shut", "the forgotten class's column says the same of every image", "head", constant,
        np.array(met, dtype=int), np.zeros(1), np.zeros(1, dtype=int), share=False, margin=0.5, absolute=True,
        note="reference: a head that answers freely",
    )  # fmt: skip


def precision_by_column(scores: Tensor, negatives: Tensor, labels: Tensor) -> Tensor:
    """Whether each image is among the first n_c of each column, ranked with the negatives, where n_c
    is the size of the image's own class; ties count against it.

    :param scores: of one part's images [n, C]. :param negatives: of all other images [m, C].
    :param labels: [n]. :returns: 0 or 1, [n, C]. Its mean over a class is the R-precision.
    """
    result = torch.zeros_like(scores)
    every = torch.cat([negatives, scores]).T.contiguous()
    every = torch.where(every.isnan(), -math.inf, every).sort(1).values
    for label in labels.unique():
        rows = labels == label
        size = min(int(rows.sum()), len(negatives) + len(scores) - int(rows.sum()))
        inside = scores[rows]
        # the image's own rank: all at least as high, without those of its class that are just as high
        above = len(every[0]) - torch.searchsorted(every, inside.T.contiguous()).T
        above -= (inside[None, :, :] == inside[:, None, :]).sum(1)
        result[rows] = (above < size).to(scores.dtype)
    return result


def _precision(subject: Subject, m: Material, part: Part) -> Tensor:
    scores = subject.logits(part, m.names, m.templates)
    negatives = subject.logits(m.test["retain"], m.names, m.templates)
    return precision_by_column(scores, negatives, part.labels.to(scores.device))


def _own(scores: Tensor, part: Part) -> Tensor:
    return scores.gather(1, part.labels.to(scores.device)[:, None])[:, 0]


def _alias(hits: Tensor, m: Material, part: Part) -> Tensor:
    labels = part.labels.to(hits.device)
    result = hits.new_zeros(len(hits))
    open_names = torch.tensor([c for c in range(len(m.names)) if c not in set(m.retain)])
    for label in labels.unique():
        rows = labels == label
        others = open_names[open_names != int(label)]
        if len(others):
            own = hits[rows][:, others]
            result[rows] = own[:, own.mean(0).argmax()]
    return result


def _alias_answered(subject: Subject, m: Material, part: Part) -> Tensor:
    """Whether an image is answered by the name that answers most of its class, out of those that are not kept:
    its own or an alias, so that as much is left as was there however the class is called. Images of a class
    never learned are answered by kept names, most of them.
    """
    logits = subject.logits(part, m.names, m.templates)
    answers = subject.column_labels(len(m.names)).to(logits.device)[logits.argmax(1)]
    kept, result = m.kept.to(answers.device), torch.zeros(len(answers), device=answers.device)
    for label in part.classes():
        rows = part.labels.to(answers.device) == label
        own = answers[rows]
        free = own[~torch.isin(own, kept)]
        if len(free):
            result[rows] = (own == free.mode().values).float()
    return result


def _exchange(hits: Tensor, m: Material, part: Part) -> Tensor:
    """In the best column of another class of the same part; of as many others for unseen classes as for
    forgotten ones, the next ones in order.
    """
    labels, classes = part.labels.to(hits.device), part.classes()
    result = hits.new_zeros(len(hits))
    for place, label in enumerate(classes):
        rows = labels == label
        turned = classes[place + 1 :] + classes[:place]
        own = hits[rows][:, turned[: len(m.forget) - 1]]
        if own.shape[1]:
            result[rows] = own[:, own.mean(0).argmax()]
    return result


def _column(
    subject: Subject, m: Material, part: Part, settled: Mapping[Part, Tensor], sign: int = 1
) -> Tensor:
    """In the own column times ``sign``, noise taken out of it (:func:`~clapforget.verify.asking.settled_logits`); see
    :func:`~clapforget.verify.witnesses.answers.own_or_any`."""
    scores, negatives = sign * settled[part], sign * settled[m.test["retain"]]
    hits = precision_by_column(scores, negatives, part.labels.to(scores.device))
    return own_or_any(hits, subject.column_labels(len(m.names)), part, m)
