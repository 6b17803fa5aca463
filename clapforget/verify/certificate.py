"""The certificate: everything that is known about one forget request, as one JSON file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from clapforget.errors import UserError
from clapforget.verify.evidence import Evidence
from clapforget.verify.observe import Observation
from clapforget.writing import write_text

__all__ = ["Certificate", "score_quantiles"]

FORMAT = "clapforget certificate 1"


@dataclass
class Certificate:
    """Request, weights before and after, evidence, verdict."""

    request: dict[str, Any]
    """``text``, ``classes``, ``names``."""
    event: int
    verdict: str
    rule: str
    weakest: str
    claim: str
    not_tested: list[str]
    evidence: list[Evidence]
    forgetter: dict[str, Any]
    model: dict[str, str]
    weights: dict[str, dict[str, str]]
    """SHA-256 of ``image``, ``text``, ``all`` and ``head``, ``before`` and ``after``; of a ``twin`` where there is
    one."""
    forget_data: dict[str, Any]
    """``count`` and ``sha256`` of the sample ids, and in words whose they are (``of``)."""
    seed: int
    versions: dict[str, str]
    reference: str
    scores: dict[str, Any] = field(default_factory=dict)
    """Quantiles (5, 25, 50, 75, 95 %) of each score by view, before and after."""
    text: str = ""
    level: str = "quick"
    """``quick`` or ``full``: see :mod:`clapforget.verify.examine`."""
    seconds: float | None = None
    """What the examination took."""
    looked_at: dict[str, list[str]] = field(default_factory=dict)
    """Names of the ``retained`` and ``unseen`` classes whose images were looked at."""

    def evidence_by_name(self, name: str) -> Evidence | None:
        """One piece of evidence."""
        return next((piece for piece in self.evidence if piece.name == name), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "format": FORMAT,
            **{k: v for k, v in self.__dict__.items() if k != "evidence"},
            "evidence": [piece.to_dict() for piece in self.evidence],
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Certificate:
        """The certificate that :meth:`to_dict` wrote.

        :raises UserError: if the values are none.
        """
        try:
            values = dict(values)
            if values.pop("format") != FORMAT:
                raise KeyError("format")
            evidence = [Evidence(**_tuples(piece)) for piece in values.pop("evidence")]
            return cls(evidence=evidence, **values)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"this is no {FORMAT} ({error})", "give a file that this package wrote"
            ) from error

    def save(self, path: str | Path) -> None:
        """Write the JSON file, in one step."""
        text = json.dumps(self.to_dict(), indent=1, allow_nan=False)
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text + "\n")


def _tuples(piece: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in piece.items()}


def score_quantiles(before: Observation, after: Observation) -> dict[str, Any]:
    """Quantiles of every score by view, for drawing: ``{score: {"before": {view: [5]}}}``."""
    result: dict[str, Any] = {}
    for when, seen in (("before", before), ("after", after)):
        for view in ("forget", "retain", "unseen"):
            if view in seen.views:
                looked = seen.views[view]
                for score, values in {
                    **looked.scores,
                    "matched_cosine": looked.matched_cosine,
                }.items():
                    quantiles = np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95])
                    place = result.setdefault(score, {}).setdefault(when, {})
                    place[view] = [round(float(q), 5) for q in quantiles]
    return result
