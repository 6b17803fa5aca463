"""What was to be kept: paired losses of retained classes, neighbours and bystanders."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy import stats

from clapforget.verify import statistics
from clapforget.verify.evidence import Evidence
from clapforget.verify.material import Material, Part
from clapforget.verify.subject import Subject
from clapforget.verify.witnesses.wordings import PARAPHRASES

__all__ = [
    "LOSS",
    "by_most_wordings",
    "found_by_name",
    "kept_evidence",
    "kept_probability",
    "right",
]

LOSS = 0.05
"""What kept classes may lose on average."""
_CLASS_LOSS = 0.20
_ALPHA = 0.05
_DRAWS = 20_000


def right(subject: Subject, part: Part, m: Material, without: bool = False) -> torch.Tensor:
    """Whether each image is answered right, [n]; classes the subject has no column for never are.

    :param without: leave the forgotten names out of what is chosen among.
    """
    logits = subject.logits(part, m.names, m.templates)
    columns = subject.column_labels(len(m.names)).to(logits.device)
    if without:
        logits = logits.masked_fill(
            torch.isin(columns, torch.tensor(m.forget, device=columns.device)), -torch.inf
        )
    return columns[logits.argmax(1)] == part.labels.to(columns.device)


def kept_probability(subject: Subject, m: Material) -> float:
    """Mean probability of the right class on retained images."""
    part = m.test["retain"]
    probs = subject.logits(part, m.names, m.templates).softmax(1)
    own = part.labels.to(probs.device)[:, None] == subject.column_labels(len(m.names)).to(
        probs.device
    )
    return float((probs * own).sum(1).mean())


def found_by_name(subject: Subject, part: Part, m: Material) -> torch.Tensor:
    """Text to image: whether each image is among the first n_c that its class's name finds in ``part``, zero-shot,
    where n_c is the number of the class's images; ties count against it. The mean is the R-precision.

    :returns: bool [n].
    """
    labels = part.labels.to(subject.clip.device)
    scores = subject.bare().zero_shot(part, m.names, m.templates)[:, labels]  # [image, query]
    own = scores.diagonal()[None]
    same = labels[:, None] == labels[None]
    ahead = torch.where(same, scores > own, scores >= own).sum(0)
    return ahead < same.sum(0)


def by_most_wordings(subject: Subject, part: Part, m: Material) -> torch.Tensor:
    """Whether bare CLIP names each image right, [n], in more than half of the
    :data:`~clapforget.verify.witnesses.wordings.PARAPHRASES`, each on its own."""
    text = subject.wordings(m.names, (*m.templates, *PARAPHRASES))[:, len(m.templates) :]
    scores = torch.einsum("nd,cld->nlc", subject.features(part), text)
    return (scores.argmax(-1) == part.labels.to(scores.device)[:, None]).float().mean(1) > 0.5


def kept_evidence(before: Subject, after: Subject, m: Material) -> list[Evidence]:
    """Accuracy before and after on the same images: by view, with the forgotten names among the
    answers and without, by the subject and by bare CLIP; and the single class that lost most.
    """
    part = m.test["retain"]
    columns = set(before.column_labels(len(m.names)).tolist())
    views = {"retain": m.retain, "neighbours": m.neighbours, "bystanders": m.bystanders}
    found = []
    for prefix, how, old, new, met in _ways(before, after, columns):
        then, now = right(old, part, m), right(new, part, m)
        for view, classes in views.items():
            rows = torch.isin(
                part.labels, torch.tensor([c for c in classes if met is None or c in met])
            )
            if rows.any():
                by = " (nearest names)" if view == "neighbours" and m.nearest else ""
                found.append(_loss(f"{prefix}{view}_accuracy", f"{_TITLES[view]}{by}, {how}",
                                   then[rows], now[rows], prefix))  # fmt: skip
        rows = torch.tensor([met is None or int(c) in met for c in part.labels])
        if not rows.any():
            continue
        found.append(_loss(f"{prefix}retain_accuracy_without_names",
                           f"retained classes, {how}, forgotten names left out",
                           right(old, part, m, True)[rows], right(new, part, m, True)[rows], prefix))  # fmt: skip
        found.append(_worst(prefix, how, then[rows], now[rows], part.labels[rows], m))
        found.append(_together(prefix, how, then[rows], now[rows], part.labels[rows]))
    found.append(_loss("clip_retain_wordings", "retained classes, zero-shot by most of ten other wordings",
                       by_most_wordings(before, part, m), by_most_wordings(after, part, m), "clip_"))  # fmt: skip
    retrieved = _loss("clip_retain_retrieval", "retained images found by their name (text to image, R-precision)",
                      found_by_name(before, part, m), found_by_name(after, part, m), "clip_")  # fmt: skip
    retrieved.role = "shown"  # ranks among neighbours move with every training
    return [*found, retrieved]


_TITLES = {"retain": "retained classes", "neighbours": "neighbours", "bystanders": "bystanders"}


def _ways(
    before: Subject, after: Subject, columns: set[int]
) -> list[tuple[str, str, Subject, Subject, set[int] | None]]:
    ways: list[tuple[str, str, Subject, Subject, set[int] | None]] = []
    if after.answer is not None:
        ways.append(("", "answered by the head", before, after, columns))
    return [*ways, ("clip_", "zero-shot by bare CLIP", before.bare(), after.bare(), None)]


def _loss(
    name: str, title: str, then: torch.Tensor, now: torch.Tensor, prefix: str
) -> Evidence:  # fmt: skip
    """A view's loss against :data:`LOSS`, by the score test of paired outcomes: ``p_beyond`` that it is no more,
    ``p_below`` that it is no less.
    """
    old, new = then.cpu().numpy(), now.cpu().numpy()
    value, interval = statistics.proportion(new)
    drop, drop_interval = statistics.paired_drop(old, new)
    was, score = float(old.mean()), statistics.paired_score(old, new, LOSS)
    shown = float(stats.norm.cdf(score))
    needed = None  # the score grows with the root of the number, whichever side it is on
    if shown > _ALPHA and score:
        needed = math.ceil(len(new) * (stats.norm.ppf(_ALPHA) / score) ** 2)
    return Evidence(
        name, title, "clip" if prefix else "behaviour", value, interval, was, was, None,
        "before the request", "high", len(new), drop, drop_interval, role="kept", margin=LOSS, absolute=True,
        p_beyond=float(stats.norm.sf(score)), p_below=shown, images_needed=needed,
    )  # fmt: skip


def _worst(prefix: str, how: str, then: torch.Tensor, now: torch.Tensor, labels: torch.Tensor,
           m: Material) -> Evidence:  # fmt: skip
    """The retained class that lost most: one-sided binomial test against a loss of at most 20 % of its
    images, Holm-corrected over the classes.
    """
    lost = (then & ~now).cpu().numpy()
    classes = np.unique(labels.numpy())
    rows = [labels.numpy() == c for c in classes]
    p = [
        stats.binomtest(int(lost[r].sum()), int(r.sum()), _CLASS_LOSS, "greater").pvalue
        for r in rows
    ]
    worst = int(np.argmin(p))
    mine = rows[worst]
    value, interval = statistics.proportion(now.cpu().numpy()[mine])
    drop = float(then.cpu().numpy()[mine].mean() - value)
    corrected = float(min(p) * len(p))
    return Evidence(
        f"{prefix}worst_class", f"the retained class that lost most ({m.names[int(classes[worst])]}), {how}",
        "clip" if prefix else "behaviour", value, interval, float(then.cpu().numpy()[mine].mean()), None,
        None, "before the request", "high", int(mine.sum()), drop, None,
        holds=corrected > _ALPHA, role="kept",
        note=f"p = {min(corrected, 1.0):.2g} against a loss of at most 20 %, Holm over {len(p)} classes",
    )  # fmt: skip


def _together(
    prefix: str, how: str, then: torch.Tensor, now: torch.Tensor, labels: torch.Tensor
) -> Evidence:
    """Whether the loss stands in few classes, where a single one of few images shows too little.

    ``Σ_c x_c (x_c − 1)`` of the images x_c that each class lost, against a loss of at most 20 % in every
    class: of a given loss in all, its expectation is largest where the loss stands in as few classes as it can,
    at 20 % each. Of those, 20,000 draws.
    """
    of = labels.unique(return_inverse=True)[1].cpu()
    sizes = of.bincount().numpy()
    had, has = (of.bincount(right.cpu().double()).numpy() for right in (then, now))
    lost = (had - has).clip(0)
    few = int(np.ceil((lost / sizes).sum() / _CLASS_LOSS))
    largest = np.sort(sizes)[::-1][:few]
    draws = np.random.default_rng(0).binomial(largest, _CLASS_LOSS, (_DRAWS, len(largest)))
    chance = (draws * (draws - 1)).sum(1) >= (lost * (lost - 1)).sum()
    p = float((chance.sum() + 1) / (_DRAWS + 1))
    (kept, interval), before = statistics.mean(has / sizes, share=True), float((had / sizes).mean())
    return Evidence(
        f"{prefix}few_classes", f"retained classes, if few of them carry the loss, {how}",
        "clip" if prefix else "behaviour", kept, interval, before, None, None,
        "before the request", "high", len(labels), before - kept, None, holds=p > _ALPHA, role="kept",
        note=f"p = {p:.2g} against a loss of at most 20 % in every class, that of the most "
        f"{lost.max():.0f} images",
    )  # fmt: skip
