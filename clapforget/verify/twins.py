"""Whether a twin stands for never learned; and how far a model is from its twin, in answers and in image features.
That is shown, never judged: one twin is one draw, and how far apart two twins are is not known from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from clapforget.errors import UserError
from clapforget.verify import statistics
from clapforget.verify.evidence import Evidence
from clapforget.verify.kept import right
from clapforget.verify.material import Material, Part
from clapforget.verify.reading import Reading
from clapforget.verify.reference import lower, taught_since, without
from clapforget.verify.rules import Claim, decide
from clapforget.verify.subject import Subject
from clapforget.verify.unmoved import unmoved_evidence
from clapforget.verify.verdict import describe
from clapforget.verify.weigh import weigh

__all__ = ["cka", "jensen_shannon", "refuse_knowing", "tow", "twin_evidence"]

_RESAMPLES = 1000
_BLOCKS = 10
_FLAT = 1e-12  # of the mean square of a kernel: less of it differing is rounding
_BY_CHANCE = ("answers", "zero_shot", "wordings_best")
_LEAD = 0.15


def refuse_knowing(
    before: Subject,
    twin: Subject,
    m: Material,
    old: Sequence[Reading],
    seen: Sequence[Reading],
    claim: Claim,
) -> None:
    """A twin hides whatever it shares with the model after, so it is examined as that is without a twin: by the
    same witnesses and rules, its own unseen classes being the reference. Not shown to be free of the class, as
    where few images are given, is not refused.

    Without unseen classes: where it names the forgotten images more than half-way from chance to the model
    before (95 % interval), by its answers or by the best wording.

    :param old: readings of the model before. :param seen: of the twin.
    :raises UserError: if it is shown to know the class, or to have been pushed beyond what was never learned.
    """
    taught = taught_since(old, seen)
    then, now = without(old, taught), without(seen, taught)
    evidence = weigh(then, lower(then, now))
    found = {piece.name: piece for piece in evidence}
    shown = ""
    if found["answers"].reference is not None:
        judgement = decide([*evidence, *unmoved_evidence(before, twin, m)], claim)
        if judgement.verdict in ("retained", "suppressed"):
            shown = judgement.weakest
    else:
        for piece in (found[name] for name in _BY_CHANCE if name in found):
            chance = 1 / len(
                (twin if piece.name == "answers" else twin.bare()).column_labels(len(m.names))
            )
            lead = (piece.before or 0.0) - chance
            if lead > _LEAD and piece.interval[0] > chance + lead / 2:
                shown = describe(piece)
    if shown:
        raise UserError(
            f"the twin does not stand for a model that never learned the class: {shown}",
            "give a model that never saw the forgotten data, or none",
        )


def tow(ours: Mapping[str, float], twin: Mapping[str, float]) -> float:
    """Tug of war (Zhao et al. 2024, arXiv 2406.01257): ``Π_D (1 − |a(ours, D) − a(twin, D)|)`` over the sets
    D that both name; 1 is the twin's accuracy everywhere, and 0 the farthest from it.

    :param ours: accuracy, 0 to 1, by set. :param twin: the same of the twin.
    """
    return float(np.prod([1 - abs(ours[name] - twin[name]) for name in ours if name in twin]))


def jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    """Jensen–Shannon divergence in bits, 0 to 1: ``½ KL(p ‖ m) + ½ KL(q ‖ m)``, ``m = ½ (p + q)``
    (Lin 1991).

    :param p: distributions [..., C]. :param q: the same shape. :returns: [...].
    """
    middle = (p + q) / 2

    def against(x: Tensor) -> Tensor:
        return (torch.xlogy(x, x) - torch.xlogy(x, middle)).sum(-1)

    return ((against(p) + against(q)) / (2 * np.log(2))).clamp(0, 1)


def cka(x: Tensor, y: Tensor) -> float:
    """Linear centred kernel alignment of two sets of features of the same n images (Kornblith et al.
    2019), ``HSIC(K, L) / √(HSIC(K, K) HSIC(L, L))`` with ``K = xxᵀ``, ``L = yyᵀ``. HSIC by the unbiased
    estimator (Song et al. 2012, eq. 4; so in Nguyen et al. 2021): with fewer images than dimensions the
    usual one is near 1 whatever the features.

    Unchanged by a rotation, a scale or an offset of either. 1: the same up to these; 0: unrelated; the
    estimate may be a little below. 0 as well where the features of either do not differ: they say nothing.

    :param x: [n, d], n ≥ 4. :param y: [n, e].
    """
    k, m = (_hollow(v.double() @ v.double().T) for v in (x, y))
    own, other = _hsic(k, k), _hsic(m, m)
    if own <= _FLAT * k.square().mean() or other <= _FLAT * m.square().mean():
        return 0.0
    return float(_hsic(k, m) / (own * other).sqrt())


def _hollow(gram: Tensor) -> Tensor:
    return gram - torch.diag(gram.diagonal())


def _hsic(k: Tensor, m: Tensor) -> Tensor:
    n = len(k)
    rows = k.sum(0) @ m.sum(0)
    whole = k.sum() * m.sum() / ((n - 1) * (n - 2))
    return ((k * m).sum() + whole - 2 * rows / (n - 2)) / (n * (n - 3))


def twin_evidence(
    before: Subject, after: Subject, twin: Subject, m: Material, seed: int = 0
) -> list[Evidence]:
    """The model after beside the twin, and the model before beside the twin for a scale.

    Tug of war over the test images of the forgotten, the retained and the unseen classes; divergence of
    predictions and alignment of image features on the forgotten and on the retained ones.

    :param seed: of the bootstrap of the tug of war.
    """
    return [_tow(before, after, twin, m, seed), *_divergence(before, after, twin, m),
            *_alignment(before, after, twin, m)]  # fmt: skip


_NAMES = {"forget": "forgotten", "retain": "retained"}


def _tow(before: Subject, after: Subject, twin: Subject, m: Material, seed: int) -> Evidence:
    answered = [
        {k: right(s, part, m).double().cpu().numpy() for k, part in m.test.items()}
        for s in (before, after, twin)
    ]
    was, value = (tow(_means(s), _means(answered[2])) for s in answered[:2])
    rng = np.random.default_rng([seed, 9])
    product = np.ones(_RESAMPLES)
    for name, now in answered[1].items():  # the same images for both: resampled together
        weights = rng.multinomial(len(now), np.full(len(now), 1 / len(now)), size=_RESAMPLES)
        product *= 1 - np.abs(weights @ (now - answered[2][name]) / len(now))
    low, high = np.quantile(product, [0.025, 0.975])
    return Evidence(
        "twin_tow", f"tug of war with the twin (accuracy on {', '.join(m.test)})", "twin", value,
        (float(low), float(high)), was, 1.0, None, "the twin itself", "high",
        sum(map(len, m.test.values())),
    )  # fmt: skip


def _means(answered: Mapping[str, np.ndarray]) -> dict[str, float]:
    return {name: float(values.mean()) for name, values in answered.items()}


def _divergence(before: Subject, after: Subject, twin: Subject, m: Material) -> list[Evidence]:
    found = []
    for name, title in _NAMES.items():
        part = m.test[name]
        p, q, r = (_predictions(s, part, m) for s in (before, after, twin))
        apart = jensen_shannon(q, r).double().cpu().numpy()
        value, interval = statistics.mean(apart)
        found.append(Evidence(
            f"twin_jsd_{name}", f"divergence of predictions from the twin's on {title} images (bits)", "twin",
            value, interval, float(jensen_shannon(p, r).mean()), 0.0, None, "the twin itself", "low", len(part),
        ))  # fmt: skip
    return found


def _predictions(subject: Subject, part: Part, m: Material) -> Tensor:
    """Probabilities [n, C] by class label; 0 for classes without a column."""
    probs = subject.logits(part, m.names, m.templates).softmax(1)
    columns = subject.column_labels(len(m.names)).to(probs.device)
    return probs.new_zeros(len(part), len(m.names)).index_copy(1, columns, probs)


def _alignment(before: Subject, after: Subject, twin: Subject, m: Material) -> list[Evidence]:
    found = []
    for name, title in _NAMES.items():
        part = m.test[name]
        if len(part) < 4 + _BLOCKS:
            continue
        v, u, t = (s.features(part) for s in (before, after, twin))
        value = cka(u, t)
        found.append(Evidence(
            f"twin_cka_{name}", f"alignment of image features with the twin's on {title} images", "twin", value,
            _jackknife(lambda rows, u=u, t=t: cka(u[rows], t[rows]), len(part), value),  # type: ignore[misc]
            cka(v, t), 1.0, None, "the twin itself", "high", len(part),
        ))  # fmt: skip
    return found


def _jackknife(estimate: Callable[[Tensor], float], n: int, value: float) -> statistics.Interval:
    """95 % interval by leaving out one of ten interleaved blocks at a time (Efron and Tibshirani 1993,
    eq. 11.5)."""
    rows = torch.arange(n)
    left = np.array([estimate(rows[rows % _BLOCKS != block]) for block in range(_BLOCKS)])
    error = float(np.sqrt((_BLOCKS - 1) * left.var()))
    half = error * float(stats.t.ppf(0.975, _BLOCKS - 1))
    return value - half, value + half
