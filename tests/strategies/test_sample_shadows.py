"""Shadow heads in the certificate of a request by sample."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch

from clapforget.posterior.exact import ExactSettings
from clapforget.scenarios import ImageData, lab, stream
from clapforget.strategies import ClapForget
from clapforget.strategies.sample_shadows import shadow_evidence

MakeStrategy = Callable[..., ClapForget]


def test_the_certificate_says_whether_the_samples_are_told_from_others(
    make_strategy: MakeStrategy,
) -> None:
    """Two of three images a class: few enough that a head which holds them can be told to."""
    data = lab(train_per_class=3, test_per_class=5)
    rows = torch.cat([data.rows("train", [c])[:2] for c in range(20)])
    text = f"L0-19 F@{','.join(map(str, rows.tolist()))}"
    learn, forget = stream(data, text).train_stream
    strategy = make_strategy(posterior="exact", head=ExactSettings(features=600), certify="full")
    strategy.train(learn)
    before = copy.deepcopy(strategy.model.head)
    # as they are answered while the head still holds them
    pieces, why = shadow_evidence(strategy, forget, before, [], rows)
    kept = {p.name: p for p in pieces}["u_lira_auroc_two_sided"]
    assert not why and kept.interval[0] > 0.7 and kept.n == len(rows)
    strategy.train(forget)
    (certificate,) = strategy.certificates
    found = certificate.evidence_by_name("u_lira_auroc_two_sided")
    assert found is not None and found.interval[0] <= 0.5 <= found.interval[1]
    assert found.before is not None and found.before > 0.8 > found.value
    assert certificate.evidence_by_name("u_lira_tpr") is not None
    assert not any("membership" in line for line in certificate.not_tested)
    held = strategy.cache._features[(data.train.fingerprint, False)]
    assert not held[rows].any(), "the shadows brought deleted features back into the cache"


def test_it_says_why_it_is_left_out(data: ImageData, make_strategy: MakeStrategy) -> None:
    rows = data.rows("train", [1])
    for count, options, reason in (
        (3, {"posterior": "exact", "certify": "full"}, "too few"),
        (12, {"posterior": "exact", "certify": "quick"}, "quick level"),
        (12, {"posterior": "variational", "certify": "full"}, "heads that are trained"),
    ):
        strategy = make_strategy(**options)
        for experience in stream(
            data, f"L0-3 F@{','.join(map(str, rows[:count].tolist()))}"
        ).train_stream:
            strategy.train(experience)
        (line,) = [x for x in strategy.certificates[0].not_tested if "membership" in x]
        assert reason in line
        assert strategy.certificates[0].evidence_by_name("u_lira_auroc") is None
