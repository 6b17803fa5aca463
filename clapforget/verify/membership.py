"""Was this single image trained on? Two attacks that score samples, and how well the scores tell.

Only meaningful where it is known which images a model learned, and where members and non-members come from
one distribution: a random split. Otherwise it is a test of the split.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clapforget.errors import UserError
from clapforget.verify import statistics
from clapforget.verify.evidence import Evidence
from clapforget.verify.material import Material, Part
from clapforget.verify.subject import Subject

__all__ = [
    "Shadows",
    "image_membership",
    "log_odds",
    "membership_evidence",
    "rmia",
    "shadow_membership",
    "tpr_at",
    "train_shadows",
    "u_lira",
]

_FPR = 0.01
_FLOOR = 1e-3  # of a standard deviation of log odds: exact deletion leaves none


def log_odds(log_probs: Tensor, own: Tensor) -> Tensor:
    """``log p_y − log Σ_{c≠y} p_c`` (Carlini et al. 2022, the stable form of ``log(p/(1−p))``).

    :param log_probs: [..., n, C], or logits: only differences count. :param own: column of the own class
        [n]. :returns: [..., n].
    """
    place = own.expand(log_probs.shape[:-1])[..., None]
    mine = log_probs.gather(-1, place)[..., 0]
    return mine - log_probs.scatter(-1, place, -torch.inf).logsumexp(-1)


def rmia(
    x: Tensor, reference_x: Tensor, z: Tensor, reference_z: Tensor,
    gamma: float = 2.0, offline: float = 1.0,
) -> Tensor:  # fmt: skip
    """Relative membership inference (Zarifzadeh et al. 2024): the share of population images z that x
    dominates, ``Pr_z[ (P(x|θ)/P(x)) / (P(z|θ)/P(z)) ≥ γ ]``.

    ``P(x)`` is the mean over reference models that never saw x, corrected for that by
    ``½ ((1 + a) P_out + 1 − a)`` (their offline form; a = 1: not corrected).

    :param x: probability of the true class under the model [n]. :param reference_x: under the references
        [r, n]. :param z: of population images [m]. :param reference_z: [r, m]. :param offline: a.
    :returns: [n], 0 to 1; high: member.
    """

    def ratio(p: Tensor, references: Tensor) -> Tensor:
        usual = ((1 + offline) * references.mean(0) + 1 - offline) / 2
        return p.clamp_min(1e-12) / usual.clamp_min(1e-12)

    return (ratio(x, reference_x)[:, None] / ratio(z, reference_z)[None] >= gamma).to(x).mean(1)


@dataclass(frozen=True)
class Shadows:
    """Log odds of candidates under shadow models that learned a random half of them."""

    learned: Tensor
    """Whether shadow s learned candidate t, bool [s, t]; of each candidate, half of the shadows."""
    before: Tensor
    """Log odds [s, t] when it had learned them ..."""
    after: Tensor
    """... and when it had unlearned all that it had learned of them."""


def u_lira(candidates: Tensor, learned: Tensor, shadows: Tensor) -> Tensor:
    """Log likelihood ratio of *learned and unlearned* against *never learned*, ``log N(φ; μ_in, σ_in) −
    log N(φ; μ_out, σ_out)``, Gaussians fitted by candidate, their variances pooled over candidates as is
    done with few shadows (Carlini et al. 2022; U-LiRA: Hayes et al. 2024, arXiv 2403.01218).

    With the shadows' log odds from before unlearning it is plain LiRA.

    :param candidates: log odds under the examined model [t]. :param learned: bool [s, t].
    :param shadows: log odds [s, t]. :returns: [t]; high: member.
    """

    def fitted(mask: Tensor) -> Tensor:
        count = mask.sum(0).clamp_min(1)
        mean = (shadows * mask).sum(0) / count
        apart = ((shadows - mean).square() * mask).sum() / (mask.sum() - len(mean)).clamp_min(1)
        scale = apart.sqrt().clamp_min(_FLOOR)
        return -((candidates - mean) / scale).square() / 2 - scale.log()

    return fitted(learned) - fitted(~learned)


def train_shadows(
    fit: Callable[[Tensor, Tensor], Callable[[], Tensor]],
    unlearn: Callable[[Callable[[], Tensor], Tensor], Callable[[], Tensor]],
    retained: int,
    candidates: int,
    count: int,
    rng: torch.Generator,
    share: float = 0.8,
) -> Shadows:
    """Shadow models, each trained on a random part of the retained samples and half of the candidates.

    Shadows come in pairs: what one learns of the candidates, the other does not.

    :param fit: ``fit(rows of the retained, rows of the candidates)`` gives a model: a function that returns
        the candidates' log odds [candidates]. :param unlearn: ``unlearn(model, rows of the candidates)`` gives
        the model without them, by the method under examination.
    :param share: of the retained samples that a shadow learns.
    :raises UserError: for fewer than four shadows.
    """
    if count < 4:
        raise UserError(f"{count} shadow models are too few", "train at least 4, better 16")
    learned, before, after = [], [], []
    for s in range(count):
        if s % 2 == 0:
            half = torch.randperm(candidates, generator=rng) < candidates // 2
        mask = half if s % 2 == 0 else ~half
        some = torch.randperm(retained, generator=rng)[: max(1, round(share * retained))]
        rows = mask.nonzero().flatten()
        model = fit(some.sort().values, rows)
        before.append(model())
        after.append(unlearn(model, rows)())
        learned.append(mask)
    return Shadows(
        torch.stack(learned).to(before[0].device), torch.stack(before), torch.stack(after)
    )


def tpr_at(
    members: np.ndarray, others: np.ndarray, fpr: float = _FPR
) -> tuple[float, statistics.Interval]:
    """Share of the members that score above all but ``fpr`` of the others, and its Wilson interval; the
    threshold is taken as given. Of fewer than 1/fpr others, none may score higher.
    """
    allowed = int(np.floor(fpr * len(others)))
    threshold = np.sort(others)[::-1][allowed]
    return statistics.proportion(members > threshold)


def membership_evidence(
    attack: str, before: Tensor | None, after: Tensor, member: Tensor, seed: int = 0
) -> list[Evidence]:
    """How well an attack's scores tell members from others, to both sides: AUROC, the same of how far a score
    lies from the others' median (what was pushed away from the usual stands out as well), and the true
    positive rate at 1 % false positives. Shown; 1/2 and 1 % are what guessing gives.

    :param attack: ``rmia`` or ``u_lira``. :param before: scores under the model before [n], where there are
        any. :param after: [n]. :param member: bool [n].
    """
    title = {"rmia": "RMIA", "u_lira": "U-LiRA"}[attack]
    rng = np.random.default_rng([seed, 11])
    mine = member.cpu().numpy()
    now = after.double().cpu().numpy()
    then = None if before is None else before.double().cpu().numpy()

    def folded(scores: np.ndarray) -> np.ndarray:
        return np.abs(scores - np.median(scores[~mine]))

    found = []
    for suffix, words, turn in (
        ("auroc", "members above others (AUROC)", np.asarray),
        ("auroc_two_sided", "members farther from the usual than others (AUROC)", folded),
    ):
        scores = turn(now)
        value, interval = statistics.auroc(scores[mine], scores[~mine], rng)
        was = None
        if then is not None:
            was = statistics.auroc(turn(then)[mine], turn(then)[~mine], rng, 1)[0]
        found.append(Evidence(f"{attack}_{suffix}", f"{title}: {words}", "attack", value, interval, was, 0.5,
                              None, "guessing", "equal", int(mine.sum())))  # fmt: skip
    value, interval = tpr_at(now[mine], now[~mine])
    was = None if then is None else tpr_at(then[mine], then[~mine])[0]
    found.append(Evidence(f"{attack}_tpr", f"{title}: members found at 1 % false alarms", "attack", value, interval,
                          was, _FPR, None, "guessing", "equal", int(mine.sum()),
                          note=f"{int((~mine).sum())} others"))  # fmt: skip
    return found


def shadow_membership(
    shadows: Shadows, before: Tensor | None, after: Tensor, member: Tensor, seed: int = 0
) -> list[Evidence]:
    """U-LiRA of the model after, beside LiRA of the model before.

    :param before: log odds of the candidates [t]. :param after: [t]. :param member: which of them the model
        before had learned, bool [t].
    """
    was = None if before is None else u_lira(before, shadows.learned, shadows.before)
    return membership_evidence(
        "u_lira", was, u_lira(after, shadows.learned, shadows.after), member, seed
    )


def image_membership(
    before: Subject, after: Subject, twin: Subject, m: Material, seed: int = 0
) -> list[Evidence]:
    """RMIA of the forgotten classes' training images against their test images: the twin is the reference
    model, the retained test images are the population.

    :raises UserError: where the material does not say which images were trained on.
    """
    if m.members is None:
        raise UserError(
            "no image is known to have been trained on", "give the material its members"
        )
    seen, others, population = m.members, m.test["forget"], m.test["retain"]

    def scores(subject: Subject) -> Tensor:
        x = torch.cat([_own_probability(subject, part, m) for part in (seen, others)])
        reference = torch.cat([_own_probability(twin, part, m) for part in (seen, others)])
        z, usual = (_own_probability(s, population, m) for s in (subject, twin))
        return rmia(x, reference[None], z, usual[None])

    member = torch.arange(len(seen) + len(others)) < len(seen)
    return membership_evidence("rmia", scores(before), scores(after), member, seed)


def _own_probability(subject: Subject, part: Part, m: Material) -> Tensor:
    probs = subject.logits(part, m.names, m.templates).softmax(1)
    own = part.labels.to(probs.device)[:, None] == subject.column_labels(len(m.names)).to(
        probs.device
    )
    return (probs * own).sum(1)
