"""The options of CLAP's head, each with its equation, and which of them exclude each other.

Sources: CLAP is Jha et al., "CLAP4CLIP: Continual Learning with Probabilistic Finetuning for
Vision-Language Models" (NeurIPS 2024); *released* is its program, whose flag is named.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from clapforget.errors import UserError, check_least, check_most

__all__ = ["ClapSettings"]


@dataclass(frozen=True)
class ClapSettings:
    """Defaults are the released README configuration, but for ``context`` and ``predictive``
    (released: ``batch``, ``mean-logit``)."""

    samples: int = 20
    """Monte Carlo samples M, in training and at test (``--forward-times``)."""
    latent: Literal["gaussian", "point"] = "gaussian"
    """``z ~ N(μ, σ²)``, or ``z = μ``: deterministic adapters, CLAP without variational inference.
    A point has no KL term."""
    tokens: bool = False
    """Task tokens (``--expandable-tokens``): one learnable query e_t a task, seen by its task only;
    its guidance is added to its classes: ``x_c = t_c + a_c + a(e_t)``."""
    hierarchical: bool = False
    """A global latent above (``--hierarchical``): ``z'_c ~ N(μ_g(x_c), σ_g(x_c)²)`` by one adapter
    for all tasks, the task's adapter reads ``x_c + z'_c``, and ``w_c = x_c + z'_c + z_c``. Its KL
    and language terms are over all classes in both stages. It cannot forget: see
    :meth:`~clapforget.posterior.VariationalHead.hold`."""
    top_samples: int = 10
    """Draws M_g of the global latent, each with M samples below (``--forward-times-global``)."""
    prior: Literal["standard", "neural-process", "frozen", "previous"] = "standard"
    """What the KL term pulls the posterior to, see :mod:`clapforget.posterior.priors`: N(0, I); the
    posterior guided by part of the batch (``--use-np-prior``); the adapters of the bare text
    (``--frozen-prior``); or what the last experience left (ours: Nguyen et al., "Variational
    Continual Learning", ICLR 2018)."""
    prior_context: float = 0.67
    """Part of the batch, rounded up, that guides the neural-process prior (``--context-size``)."""
    kl_weight: float = 1e-3
    """Weight of the KL term; each task's is averaged over its classes."""
    language_weight: float = 15.0
    """β, weight of the language-aware term (LASP; CLAP Eqs. 7-8)."""
    over_tasks: Literal["sum", "mean"] = "sum"
    """KL and language terms of several tasks are added (as released), or averaged so that their
    weight does not grow with the stream."""
    distillation_weight: float = 0.0
    """Weight of ``MSE(μ_g, μ_g of the last experience)`` over older classes; μ where there is no
    global latent. Released: 0.3 (``--distill``)."""
    orthogonality_weight: float = 0.0
    """Weight of ``CE_rows(z̄ z̄ᵀ)`` over all classes. Released: 5 (``--ortho-loss``)."""
    guidance: Literal["attention", "none"] = "attention"
    """``x = t + a`` with visual-guided attention, or ``x = t``: adapters of the bare text, an ablation
    (then no image guides anything, and ``context`` says nothing)."""
    context: Literal["memory", "batch", "single"] = "memory"
    """Which images guide the classes at test: the memory's exemplars; the batch itself (released:
    an answer then depends on what else is asked); or each image for itself. Training is guided by
    the batch."""
    context_batch: int = 32
    """Images, in the order they are asked in, that guide the classes together where ``context`` is
    ``batch``, however many are asked at once (``--train_batch``)."""
    normalise: Literal["none", "guidance", "weights"] = "none"
    """``x = t + a`` with ‖a‖ about √d, so that logits are on a scale √d times CLIP's (released);
    ``x = t + a / ‖a‖``; or ``w = (x + z) / ‖x + μ‖``, whose logits are on CLIP's own scale s. The
    length of the mean, not of each sample, keeps logits linear in z."""
    predictive: Literal["mean-softmax", "mean-logit"] = "mean-softmax"
    """Average the samples' probabilities (Bayesian), or their logits first (as released). The predictive's
    entropy is that of what is predicted; expected entropy, mutual information and variances are those of the
    samples either way, so that with ``mean-logit`` the first two do not add up to it."""
    uncertainty: Literal["sampled", "closed-form"] = "sampled"
    """Entropies by Monte Carlo, or without sampling: :mod:`clapforget.posterior.moments`."""
    heads: int = 1
    feedforward: int = 2048
    dropout: float = 0.1
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the attention's matrix products; ``bfloat16`` is faster where the processor has it, and
    answers differ by about a thousandth."""

    def __post_init__(self) -> None:
        """:raises UserError: for numbers that make no sense and options that exclude each other."""
        check_least(
            self,
            "clap",
            samples=1,
            top_samples=1,
            context_batch=1,
            heads=1,
            feedforward=1,
            dropout=0,
            kl_weight=0,
            language_weight=0,
            distillation_weight=0,
            orthogonality_weight=0,
        )
        check_most(self, "clap", samples=10_000, top_samples=10_000, feedforward=100_000)
        if not self.dropout < 1:
            raise UserError(f"setting clap.dropout={self.dropout}", "give a part, below 1")
        if not 0 < self.prior_context <= 1:
            raise UserError(
                f"setting clap.prior_context={self.prior_context}",
                "give a part of the batch, above 0 and at most 1",
            )
        point, top = self.latent == "point", self.hierarchical
        bare = self.guidance == "none"
        for wrong, why, do in (
            (point and self.prior != "standard", f"clap.latent=point with clap.prior={self.prior}: "
             "a point has no KL term, so no prior", "use clap.latent=gaussian"),
            (point and top, "clap.latent=point with clap.hierarchical=true: the global latent is "
             "sampled", "choose one of them"),
            (top and self.uncertainty == "closed-form", "clap.uncertainty=closed-form with "
             "clap.hierarchical=true: logits are a mixture of Gaussians then",
             "use clap.uncertainty=sampled"),
            (bare and self.tokens, "clap.guidance=none with clap.tokens=true: a token acts by "
             "attention", "use clap.guidance=attention"),
            (bare and self.normalise == "guidance", "clap.guidance=none with "
             "clap.normalise=guidance: there is none to scale", "use clap.guidance=attention"),
            (bare and self.prior == "neural-process", "clap.guidance=none with "
             "clap.prior=neural-process: part of the batch guides that prior",
             "use clap.guidance=attention"),
        ):  # fmt: skip
            if wrong:
                raise UserError(f"settings exclude each other: {why}", do)

    @property
    def unsaid(self) -> frozenset[str]:
        """Fields of a :class:`~clapforget.posterior.Predictive` that its predictions leave out."""
        drawn = ("variance_of_entropy", "expected_energy")
        return frozenset(drawn if self.uncertainty == "closed-form" else ())

    @property
    def draws(self) -> int:
        """Monte Carlo samples that a loss or prediction needs, for each draw of a global latent."""
        return 1 if self.latent == "point" else self.samples
