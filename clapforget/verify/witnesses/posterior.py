"""What a posterior over the class weights says of forgotten images: entropy, mutual information,
energy, conformal sets, and nats over the prior.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from clapforget.seeding import generator_for
from clapforget.uncertainty import SCORES
from clapforget.verify.material import Material, Part
from clapforget.verify.reading import Reading, read, witness
from clapforget.verify.statistics import correlation
from clapforget.verify.subject import Subject

__all__ = ["KroneckerLaplace", "conformal_threshold", "posterior"]

_DRAWS = 64
_ALPHA = 0.1
_EXPLAINED = 0.5  # correlation
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


@witness("posterior")
@torch.no_grad()
def posterior(subject: Subject, m: Material, seed: int) -> list[Reading]:
    """Laplace posterior fitted on retained attack images; its scores on forgotten and unseen test
    images; whether a 90 % conformal set, calibrated on retained test images, holds the forgotten name
    (arXiv 2501.19403), and its size. Nats where the subject has a posterior of its own.
    """
    fitted_on = m.shots.get("retain")
    found = _nats(subject, m)
    if fitted_on is None or not len(fitted_on):
        return found
    text = subject.names(m.names, m.templates)
    v = subject.features(fitted_on)
    divisor = temperature(subject.clip.scale * v @ text.T, fitted_on.labels.to(v.device))
    laplace = KroneckerLaplace(v, text, subject.clip.scale / divisor)

    known: dict[Part, Tensor] = {}

    def draws(part: Part) -> Tensor:
        if part not in known:
            known[part] = laplace.draws(subject.features(part), generator_for(seed, 34))
        return known[part]

    def score(name: str, part: Part) -> Tensor:
        return SCORES[name](draws(part))

    def energy(part: Part) -> Tensor:
        return (laplace.scale * subject.features(part) @ text.T).logsumexp(1)

    def mean_probs(part: Part) -> Tensor:
        return draws(part).mean(0)

    calibration = m.test["retain"]
    own = mean_probs(calibration).gather(1, calibration.labels.to(v.device)[:, None])[:, 0]
    threshold = conformal_threshold(own.double().cpu().numpy())

    def covered(part: Part) -> Tensor:
        p = mean_probs(part).gather(1, part.labels.to(v.device)[:, None])[:, 0]
        return (1 - p <= threshold).float()

    def size(part: Part) -> Tensor:
        return (1 - mean_probs(part) <= threshold).sum(1).float()

    for name in ("entropy", "expected_entropy", "mutual_information"):
        title = f"{name.replace('_', ' ')} on forgotten images (nats, Laplace posterior)"
        found.append(read(name, title, "posterior", m, partial(score, name), share=False,
                          role="accuses", margin=0.5, minimum_lead=0.02, known_is="low"))  # fmt: skip
    return [
        *found,
        read("energy", "energy of forgotten images", "posterior", m, energy, share=False,
             role="accuses", margin=0.5, minimum_lead=0.1),
        read("conformal_coverage", "forgotten name in a 90 % conformal set", "posterior", m, covered,
             role="accuses", margin=0.5),
        read("conformal_size", "size of the conformal set", "posterior", m, size, share=False,
             role="shown"),
    ]  # fmt: skip


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
