"""What a posterior over the class weights says of forgotten images: entropy, mutual information,
energy, conformal sets, and nats over the prior.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from clapforget import uncertainty
from clapforget.seeding import generator_for
from clapforget.verify.material import Material, Part
from clapforget.verify.reading import Reading, Role, array, read, witness
from clapforget.verify.statistics import correlation
from clapforget.verify.subject import Subject
from clapforget.verify.witnesses.answers import own_or_any

__all__ = ["Belief", "KroneckerLaplace", "conformal_threshold", "posterior"]

_DRAWS = 64
_ALPHA = 0.1
_EXPLAINED = 0.35  # correlation: columns at their prior 0.47 to 0.92 in seven worlds, drowned in noise at most 0.08
_DOUBTS = ("entropy", "expected_entropy", "mutual_information")
_TEMPERATURES = torch.logspace(-1, 1.5, 26)


class KroneckerLaplace:
    """Post-hoc Laplace posterior over the class weights W [C, d] of zero-shot CLIP around the text
    features, its Hessian in Kronecker form: ``H = A ⊗ B + λI`` with ``A = Σ_n v_n v_nᵀ`` and ``B`` the
    mean of ``s² (diag p_n − p_n p_nᵀ)`` over retained images (Ritter et al. 2018; last layer only,
    Daxberger et al. 2021), damped factor by factor: ``(A + √λ I) ⊗ (B + √λ I)``.

    The prior is that of a class never met: a logit with standard deviation 1, λ = s².

    Logits of v are Gaussian with mean ``s W v`` and covariance ``s² (vᵀ A⁻¹ v) B⁻¹``: closed form.
    """

    def __init__(self, v: Tensor, text: Tensor, scale: Tensor) -> None:
        """:param v: features of retained images [n, d]. :param text: [C, d].
        :param scale: s, CLIP's divided by a temperature.
        """
        self.text, self.scale = text, scale
        probs = (scale * v @ text.T).softmax(1)
        a = v.T @ v + scale * torch.eye(v.shape[1]).to(v)
        b = torch.diag(probs.mean(0)) - probs.T @ probs / len(probs)
        b = scale**2 * b + scale * torch.eye(len(text)).to(v)
        self.inner = torch.linalg.inv(a)
        self.root = _root_of_inverse(b)

    def draws(self, v: Tensor, rng: torch.Generator, count: int = _DRAWS) -> Tensor:
        """Samples of the predictive probabilities [M, n, C]."""
        mean = self.scale * v @ self.text.T
        spread = self.scale * ((v @ self.inner) * v).sum(1).clamp_min(0).sqrt()
        noise = torch.randn(count, 1, len(self.text), generator=rng).to(v) @ self.root.T
        return (mean + spread[:, None] * noise).softmax(-1)

    def nats(self) -> Tensor:
        """What retained images taught it of each class, in nats [C]: the divergence of the class's own weights,
        ``N(w_c, (B⁻¹)_cc A⁻¹)``, from the prior ``N(w_c, I / s²)``, which has the name's text feature for its mean.

        ``½ [s² b tr A⁻¹ + log |A| − d log (s² b) − d]`` with ``b = (B⁻¹)_cc``; 0 without images.
        """
        inner, root, d = self.inner.double(), self.root.double(), len(self.inner)
        wider = self.scale.double() ** 2 * root.square().sum(1)
        return 0.5 * (wider * inner.trace() - torch.logdet(inner) - d * wider.log() - d)


def _root_of_inverse(b: Tensor) -> Tensor:
    """R with ``R Rᵀ = B⁻¹``: Cholesky's. Where rounding takes away that B is positive definite, as at a
    temperature near 0, that of the eigenvectors, eigenvalues at least a rounding error of the largest.

    :param b: symmetric [C, C].
    """
    root, failed = torch.linalg.cholesky_ex(torch.linalg.inv_ex(b).inverse)
    if not failed and root.isfinite().all():
        return root
    values, vectors = torch.linalg.eigh(b.double())
    least = torch.finfo(b.dtype).eps * values[-1]
    return (vectors / values.clamp_min(least).sqrt()).to(b)


def conformal_threshold(probability: np.ndarray, alpha: float = _ALPHA) -> float:
    """Split-conformal threshold of ``1 − p_true``: the ⌈(n+1)(1−α)⌉-th smallest (Vovk et al. 2005;
    Sadinle et al. 2019). A label is in the set where ``1 − p`` is at most that.

    :param probability: of the true class, [n]. :returns: 1 where n is too small for α.
    """
    n = len(probability)
    rank = int(np.ceil((n + 1) * (1 - alpha)))
    return 1.0 if rank > n else float(np.sort(1 - probability)[rank - 1])


def temperature(logits: Tensor, labels: Tensor) -> Tensor:
    """The divisor of the logits, out of a grid, with the least cross-entropy (Guo et al. 2017)."""
    losses = torch.stack([
        torch.nn.functional.cross_entropy(logits / t, labels) for t in _TEMPERATURES.to(logits)
    ])  # fmt: skip
    return _TEMPERATURES.to(logits)[losses.argmin()]


class Belief(NamedTuple):
    """What a posterior says of the images of one part."""

    probs: Tensor
    """[n, C]"""
    scores: dict[str, Tensor]
    """``entropy``, ``expected_entropy``, ``mutual_information`` and ``energy``, as far as it says them, [n] each."""


@witness("posterior")
@torch.no_grad()
def posterior(subject: Subject, m: Material, seed: int) -> list[Reading]:
    """Laplace posterior fitted on retained attack images; its scores on forgotten and unseen test
    images; whether a 90 % conformal set, calibrated on retained test images, holds the forgotten name
    (arXiv 2501.19403), and its size; its nats over the prior by class (shown). Where the subject has a head, the
    same of what the head itself predicts (shown), and the nats of its posterior.
    """
    fitted_on = m.shots.get("retain")
    found = _nats(subject, m)
    if subject.answer is not None:
        columns = subject.column_labels(len(m.names))
        found += _readings(m, partial(_of_head, subject, m), columns, "shown", head=True)
    if fitted_on is None or not len(fitted_on):
        return found
    text = subject.names(m.names, m.templates)
    v = subject.features(fitted_on)
    divisor = temperature(subject.clip.scale * v @ text.T, fitted_on.labels.to(v.device))
    laplace = KroneckerLaplace(v, text, subject.clip.scale / divisor)

    def believe(part: Part) -> Belief:
        own = subject.features(part)
        draws = laplace.draws(own, generator_for(seed, 34))
        scores = {name: uncertainty.SCORES[name](draws) for name in _DOUBTS}
        return Belief(draws.mean(0), {**scores, "energy": uncertainty.energy(laplace.scale * own @ text.T)})

    bare = subject.bare().column_labels(len(m.names))
    return [*found, *_readings(m, believe, bare, "accuses"), _laplace_nats(laplace, m)]


def _of_head(subject: Subject, m: Material, part: Part) -> Belief:
    """By the head's own posterior; where it shows none, by the softmax of its answers."""
    if subject.predict is not None:
        found = subject.predict(subject.features(part), part.images)
        return Belief(found.probs, {name: found.score(name) for name in (*_DOUBTS, "energy")})
    logits = subject.logits(part, m.names, m.templates)
    probs = logits.softmax(1)
    return Belief(probs, {"entropy": uncertainty.entropy(probs), "energy": uncertainty.energy(logits)})


def _readings(
    m: Material, believe: Callable[[Part], Belief], columns: Tensor, role: Role, head: bool = False
) -> list[Reading]:
    """Doubt, energy and conformal sets on forgotten and unseen images, and on those of retained classes that have a
    column, by which the sets are calibrated.

    A set holds the own name where there is a column for it, be it retired; else, as for answers, the mean over
    the forgotten classes' columns: how often an image of something else has such a name in its set.

    :param believe: what is believed of a part. :param columns: class label of each column [C].
    :param head: whether it is a head that believes: then also whether the own name is in the set and another one
        is the answer (fake unlearning, arXiv 2501.19403).
    """
    retain = m.test["retain"]
    met = torch.isin(retain.labels, columns)
    if not met.any():
        return []
    known = {part: believe(part) for part in m.test.values()}
    probs = known[retain].probs[met.to(known[retain].probs.device)]
    place = (retain.labels[met][:, None] == columns).int().argmax(1).to(probs.device)
    own = probs.gather(1, place[:, None])[:, 0]
    threshold = conformal_threshold(array(own))

    def score(name: str, part: Part) -> Tensor:
        return known[part].scores[name]

    def sets(part: Part) -> Tensor:
        return (1 - known[part].probs <= threshold).float()

    def covered(part: Part) -> Tensor:
        return own_or_any(sets(part), columns, part, m)

    def size(part: Part) -> Tensor:
        return sets(part).sum(1)

    def faked(part: Part) -> Tensor:
        answer = known[part].probs.argmax(1, keepdim=True)
        return own_or_any(sets(part).scatter(1, answer, 0.0), columns, part, m)

    prefix, whose, of = ("head_", ", by the head", "head") if head else ("", "", "Laplace posterior")
    found = [
        read(f"{prefix}{name}", f"{name.replace('_', ' ')} on forgotten images (nats, {of})", "posterior", m,
             partial(score, name), share=False, role=role, margin=0.5, minimum_lead=0.02, known_is="low")
        for name in _DOUBTS if name in known[retain].scores
    ]  # fmt: skip
    found += [
        read(f"{prefix}energy", f"energy of forgotten images{whose}", "posterior", m,
             partial(score, "energy"), share=False, role="both" if head else "accuses", margin=0.5, minimum_lead=0.1),
        read(f"{prefix}conformal_size", f"size of the conformal set{whose}", "posterior", m, size, share=False,
             role="shown"),
    ]  # fmt: skip
    for reading in found:
        reading.retain = None if reading.retain is None else reading.retain[met.numpy()]
    if torch.isin(columns, torch.tensor(m.forget)).any():
        held = read(f"{prefix}conformal_coverage", f"forgotten name in a 90 % conformal set{whose}", "posterior", m,
                    covered, role=role, margin=0.5)  # fmt: skip
        found.append(held)
        if head:
            ratio = held.forget.mean() / max(found[-2].forget.mean(), 1e-9)
            held.note = f"coverage over size of the set (CR): {ratio:.3f}"
            found.append(read("head_conformal_faked", "answered otherwise, the forgotten name still in the "
                              "conformal set, by the head", "posterior", m, faked, role=role, margin=0.1,
                              absolute=True))  # fmt: skip
    return [reading for reading in found if _finite(reading)]


def _finite(reading: Reading) -> bool:
    """Whether all are numbers: a head that shuts all its columns has no energy."""
    values = (reading.forget, reading.unseen, reading.retain)
    return all(np.isfinite(v).all() for v in values if v is not None)


def _laplace_nats(laplace: KroneckerLaplace, m: Material) -> Reading:
    """An entry a class."""
    nats = array(laplace.nats())
    forget, unseen = np.array(m.forget), np.array(m.unseen, dtype=int)
    reading = Reading("laplace_nats", "nats over the prior that retained images give the forgotten names (Laplace "
                      "posterior)", "posterior", nats[forget], forget, share=False, role="shown",
                      retain=nats[list(m.retain)])  # fmt: skip
    if len(unseen):
        reading.unseen, reading.unseen_labels = nats[unseen], unseen
    return reading


def _nats(subject: Subject, m: Material) -> list[Reading]:
    """Only accuses where a head shows no class vectors and a forgotten column does not answer as its prior
    would: then the nats are no more than what the head says of itself."""
    if not subject.nats:
        return []
    own = {c: subject.nats.get(c, 0.0) for c in m.forget}  # no column: nothing is held of it
    labels = np.array(sorted(own))
    values = np.array([own[int(c)] for c in labels])
    borne_out = subject.class_weights is not None or _as_prior(subject, m)
    note = "reference: the prior itself"
    if not borne_out:
        note += "; the answers do not bear them out"
    return [Reading("posterior_nats", "nats of the forgotten classes' posterior over the prior",
                    "posterior", values, labels, np.zeros(1), np.zeros(1, int), share=False,
                    role="both" if borne_out else "accuses", margin=0.25, minimum_lead=0.5, note=note)]  # fmt: skip


def _as_prior(subject: Subject, m: Material) -> bool:
    """Whether every forgotten column answers as a posterior at its prior does, by the class's text:
    correlation over images."""
    parts = [m.test[k] for k in ("forget", "retain")]
    columns = subject.column_labels(len(m.names))
    gone = torch.isin(columns, torch.tensor(m.forget))
    if not gone.any():
        return True
    logits = torch.cat([subject.logits(part, m.names, m.templates) for part in parts])[:, gone]
    text = subject.names(m.names, m.templates)[columns[gone]]
    cosine = torch.cat([subject.features(part) for part in parts]) @ text.T
    return bool((correlation(logits, cosine) >= _EXPLAINED).all())
