"""Every rule fires on the evidence that it is written for, and on nothing else."""

# ruff: noqa: E501 - a row of the table of rules stays on one line

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from clapforget.verify import VERDICTS, Evidence, judge
from clapforget.verify.verdict import Rules

UNSEEN = "matched pairs of unseen classes"


def evidence(name: str, value: float, interval: tuple[float, float], **more: Any) -> Evidence:
    more.setdefault("n", 40)
    return Evidence(name, name.replace("_", " "), "clip", value, interval, **more)


def clean() -> dict[str, Evidence]:
    """All that a request which went well shows."""
    pieces = [
        evidence("forget_accuracy", 0.0, (0.0, 0.088), before=1.0, reference=0.0),
        evidence("clip_forget_accuracy", 0.0, (0.0, 0.088), before=1.0, reference=0.0, reference_interval=(0.0, 0.01)),
        evidence("clip_forget_accuracy_best_prompt", 0.0, (0.0, 0.088), reference=0.0, reference_interval=(0.0, 0.01)),
        evidence("matched_cosine", 0.26, (0.25, 0.27), before=0.80, reference=0.26, reference_name=UNSEEN),
        evidence("posterior_nats", 0.0, (0.0, 0.0), before=20.0, reference=20.0, n=1),
        *(
            evidence(name, 0.97, (0.9, 0.99), before=0.98, drop=0.01, drop_interval=(-0.01, 0.03))
            for name in ("retain_accuracy", "neighbours_accuracy", "clip_known_accuracy",
                         "clip_neighbours_accuracy", "clip_bystanders_accuracy")
        ),
    ]  # fmt: skip
    return {piece.name: piece for piece in pieces}


def verdict(changes: dict[str, dict[str, Any] | None], rules: Rules | None = None) -> tuple[str, str]:  # fmt: skip
    """Verdict and number of the rule, after some pieces were changed (None: left out)."""
    found = clean()
    for name, change in changes.items():
        if change is None:
            del found[name]
        else:
            found[name] = replace(found[name], **change)
    judgement = judge(list(found.values()), rules)
    assert judgement.verdict in VERDICTS
    assert judgement.weakest
    return judgement.verdict, judgement.rule.split(":")[0]


HURT = {"drop": 0.10, "drop_interval": (0.06, 0.14)}
TABLE: list[tuple[str, dict[str, dict[str, Any] | None], tuple[str, str]]] = [
    ("all is well", {}, ("forgotten", "7")),
    # by exclusion among few columns: unseen images are taken for the class as often
    ("answered as often as unseen images are", {"forget_accuracy": {"value": 0.4, "interval": (0.3, 0.5), "reference": 0.38, "reference_interval": (0.34, 0.42)}}, ("forgotten", "7")),
    ("answered more often than they", {"forget_accuracy": {"value": 0.7, "interval": (0.6, 0.8), "reference": 0.38, "reference_interval": (0.34, 0.42)}}, ("retained", "3")),
    # 1: damage
    *((f"{name} lost", {name: HURT}, ("damaged", "1")) for name in (
        "retain_accuracy", "neighbours_accuracy", "clip_known_accuracy",
        "clip_neighbours_accuracy", "clip_bystanders_accuracy")),
    ("loss exactly at the margin", {"retain_accuracy": {"drop": 0.08, "drop_interval": (0.05, 0.11)}}, ("forgotten", "7")),
    ("loss just above the margin", {"retain_accuracy": {"drop": 0.08, "drop_interval": (0.0501, 0.11)}}, ("damaged", "1")),
    ("large loss, wide interval", {"retain_accuracy": {"drop": 0.2, "drop_interval": (-0.1, 0.5)}}, ("forgotten", "7")),
    ("a gain is no damage", {"retain_accuracy": {"drop": -0.2, "drop_interval": (-0.3, -0.1)}}, ("forgotten", "7")),
    ("damage comes before few images", {"retain_accuracy": HURT, "forget_accuracy": {"n": 5}}, ("damaged", "1")),
    ("damage comes before retained", {"retain_accuracy": HURT, "forget_accuracy": {"value": 1.0, "interval": (0.9, 1.0)}}, ("damaged", "1")),
    # 2: too few images
    ("nineteen images", {"forget_accuracy": {"n": 19}}, ("inconclusive", "2")),
    ("twenty images", {"forget_accuracy": {"n": 20}}, ("forgotten", "7")),
    ("no image at all", {"forget_accuracy": None, "clip_forget_accuracy": None}, ("inconclusive", "2")),
    # 3: retained
    ("it still answers", {"forget_accuracy": {"value": 0.9, "interval": (0.77, 0.96)}}, ("retained", "3")),
    ("just above the margin", {"forget_accuracy": {"value": 0.2, "interval": (0.101, 0.3)}}, ("retained", "3")),
    ("clip answers where no head does", {"forget_accuracy": None, "clip_forget_accuracy": {"value": 0.9, "interval": (0.8, 1.0)}}, ("retained", "3")),
    # 4: across the margin
    ("across the margin", {"forget_accuracy": {"value": 0.05, "interval": (0.02, 0.12)}}, ("inconclusive", "4")),
    ("lower end on the margin", {"forget_accuracy": {"value": 0.2, "interval": (0.10, 0.3)}}, ("inconclusive", "4")),
    ("upper end on the margin", {"forget_accuracy": {"value": 0.02, "interval": (0.0, 0.10)}}, ("forgotten", "7")),
    # 5: still inside
    ("clip still names it", {"clip_forget_accuracy": {"value": 0.9, "interval": (0.8, 0.95)}}, ("suppressed", "5")),
    ("one wording still works", {"clip_forget_accuracy_best_prompt": {"value": 0.3, "interval": (0.2, 0.4)}}, ("suppressed", "5")),
    ("unseen classes are named as well", {"clip_forget_accuracy": {"value": 0.3, "interval": (0.2, 0.4), "reference": 0.25, "reference_interval": (0.2, 0.3)}}, ("forgotten", "7")),
    ("clip just within", {"clip_forget_accuracy": {"value": 0.2, "interval": (0.109, 0.3)}}, ("forgotten", "7")),
    ("clip just above", {"clip_forget_accuracy": {"value": 0.2, "interval": (0.111, 0.3)}}, ("suppressed", "5")),
    ("cosine kept its lead", {"matched_cosine": {"value": 0.45, "interval": (0.44, 0.46)}}, ("suppressed", "5")),
    ("cosine just within", {"matched_cosine": {"value": 0.40, "interval": (0.394, 0.41)}}, ("forgotten", "7")),
    ("cosine just above", {"matched_cosine": {"value": 0.40, "interval": (0.396, 0.41)}}, ("suppressed", "5")),
    ("no lead to lose", {"matched_cosine": {"value": 0.30, "interval": (0.29, 0.31), "before": 0.30}}, ("forgotten", "7")),
    ("posterior kept its nats", {"posterior_nats": {"value": 10.0}}, ("suppressed", "5")),
    ("nats just within", {"posterior_nats": {"value": 4.9}}, ("forgotten", "7")),
    ("nats just above", {"posterior_nats": {"value": 5.1}}, ("suppressed", "5")),
    # 6: nothing to compare with
    ("no unseen classes", {"matched_cosine": {"reference_name": "unmatched pairs"}}, ("inconclusive", "6")),
    ("no cosine", {"matched_cosine": None}, ("inconclusive", "6")),
    ("suppressed comes before no reference", {"matched_cosine": None, "posterior_nats": {"value": 10.0}}, ("suppressed", "5")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "expected"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
def test_the_rule_that_fires(
    changes: dict[str, dict[str, Any] | None], expected: tuple[str, str]
) -> None:
    assert verdict(changes) == expected


def test_too_few_images_are_told_with_the_number_that_is_missing() -> None:
    found = clean()
    found["forget_accuracy"] = replace(found["forget_accuracy"], n=13)
    judgement = judge(list(found.values()))
    assert "13" in judgement.rule
    assert judgement.weakest.startswith("7 more")


def test_across_the_margin_the_number_of_images_that_would_settle_it_is_told() -> None:
    found = clean()
    found["forget_accuracy"] = replace(found["forget_accuracy"], value=0.05, interval=(0.02, 0.12))
    weakest = judge(list(found.values())).weakest
    # 1.96² · max(p(1 − p), 0.05) / 0.05² + 1
    assert "about 77 images would settle it" in weakest


def test_the_worst_damage_is_the_one_that_is_named() -> None:
    found = clean()
    found["retain_accuracy"] = replace(
        found["retain_accuracy"], drop=0.08, drop_interval=(0.06, 0.1)
    )
    found["clip_bystanders_accuracy"] = replace(
        found["clip_bystanders_accuracy"], drop=0.3, drop_interval=(0.2, 0.4)
    )
    assert "clip bystanders accuracy: lost 30.0%" in judge(list(found.values())).weakest


def test_a_good_verdict_names_what_came_nearest_to_overturning_it() -> None:
    found = clean()
    found["posterior_nats"] = replace(found["posterior_nats"], value=4.9)
    assert judge(list(found.values())).weakest.startswith("posterior nats")


def test_the_margins_can_be_set() -> None:
    strict = Rules(damage_margin=0.0)
    loss: dict[str, dict[str, Any] | None] = {
        "retain_accuracy": {"drop": 0.02, "drop_interval": (0.01, 0.03)}
    }
    assert verdict(loss) == ("forgotten", "7")
    assert verdict(loss, strict) == ("damaged", "1")


def test_each_piece_is_marked_with_whether_it_holds() -> None:
    found = clean()
    found["posterior_nats"] = replace(found["posterior_nats"], value=10.0)
    found["retain_accuracy"] = replace(found["retain_accuracy"], **HURT)
    judge(list(found.values()))
    assert found["forget_accuracy"].holds is True
    assert found["clip_forget_accuracy"].holds is True
    assert found["posterior_nats"].holds is False
    assert found["retain_accuracy"].holds is False
    assert found["neighbours_accuracy"].holds is True


def test_the_claim_says_what_was_not_looked_at() -> None:
    judgement = judge(list(clean().values()))
    assert "not that the image tower" in judgement.claim
    assert any("membership" in untested for untested in judgement.not_tested)
