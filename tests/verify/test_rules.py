"""Every rule fires on the evidence that it is written for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from clapforget.verify import VERDICTS, Evidence, decide


def piece(name: str, value: float, **more: Any) -> Evidence:
    base: dict[str, Any] = {
        "before": 1.0, "reference": 0.0, "reference_name": "unseen classes", "n": 60, "role": "both",
        "margin": 0.25, "residue": value, "lead": 1.0, "p_inside": 1.0, "p_above": 0.001, "p_beyond": 1.0,
        "p_below": 0.001, "holds": True,
    }  # fmt: skip
    group = more.pop("group", "clip")
    interval = more.pop("interval", (value, value))
    return Evidence(name, name, group, value, interval, **{**base, **more})


def clean() -> dict[str, Evidence]:
    pieces = [
        piece("answers", 0.0, absolute=True, residue=None, lead=None, margin=0.1),
        piece("answers_probability", 0.0, role="accuses"),
        piece("wordings_best", 0.0), piece("wordings_worst", 0.0, role="shown", p_inside=None),
        piece("placement", 0.3, group="visual"), piece("relearning_5", -0.1, role="accuses"),
        *(Evidence(name, name, "clip", 0.98, (0.95, 1.0), 1.0, n=200, drop=0.01, drop_interval=(-0.01, 0.03),
                   role="kept", p_below=0.001, p_beyond=0.999)
          for name in ("clip_retain_accuracy", "clip_neighbours_accuracy")),
        Evidence("clip_worst_class", "worst", "clip", 0.9, (0.5, 1.0), 1.0, n=8, drop=0.1, holds=True, role="kept"),
    ]  # fmt: skip
    return {p.name: p for p in pieces}


INSIDE = {"p_inside": 1e-6, "p_above": 1.0, "holds": False}
ANSWERED = {"answers": {"value": 1.0, **INSIDE}, "wordings_worst": {"value": 1.0},
            "answers_probability": {"value": 1.0, **INSIDE}}  # fmt: skip
HURT = {"drop": 0.1, "drop_interval": (0.06, 0.14), "p_below": 0.999, "p_beyond": 0.001}
NOT_SHOWN = {"drop": 0.3, "drop_interval": (-0.05, 0.65), "p_below": 0.99, "p_beyond": 0.03}
NO_REFERENCE = {"reference": None, "p_inside": None, "p_above": None, "p_beyond": None, "holds": None,
                "role": "shown", "residue": None, "lead": None}  # fmt: skip
NO_VISUAL = {"role": "shown", "residue": None, "holds": None}
TABLE: list[tuple[str, dict[str, dict[str, Any]], tuple[str, str]]] = [
    ("all is well", {}, ("forgotten", "11")),
    ("too few images", {"answers": {"n": 19}}, ("inconclusive", "1")),
    ("never known", {n: {"lead": None} for n in clean()}, ("inconclusive", "2")),
    ("retained classes lost", {"clip_retain_accuracy": HURT}, ("damaged", "3")),
    ("neighbours lost", {"clip_neighbours_accuracy": HURT}, ("damaged", "3")),
    ("retained classes lost, by too few images to say so", {"clip_retain_accuracy": NOT_SHOWN}, ("inconclusive", "10")),
    ("a fake that may have harmed is a fake",
     {"clip_retain_accuracy": NOT_SHOWN, "wordings_best": INSIDE}, ("suppressed", "6")),
    ("neighbours of few images", {"clip_neighbours_accuracy": NOT_SHOWN}, ("forgotten", "11")),
    ("kept classes of which nobody looked whether they lost",
     {"clip_retain_accuracy": {"p_below": None, "p_beyond": None}},
     ("inconclusive", "10")),
    ("still answered", ANSWERED, ("retained", "4")),
    ("as before, where unseen ones are taken for it too",
     {**ANSWERED, "answers": {"value": 1.0, "reference": 0.3, "p_inside": 0.2, "p_above": 1.0}}, ("retained", "4")),
    ("another class was forgotten", {**ANSWERED, "clip_retain_accuracy": HURT}, ("retained", "4")),
    ("half of everything lost",
     {**ANSWERED, "answers": {"value": 0.5, **INSIDE}, "clip_retain_accuracy": HURT}, ("damaged", "3")),
    ("temperature", {**ANSWERED, "answers_probability": {"value": 0.02}}, ("suppressed", "5")),
    ("some wordings", {**ANSWERED, "wordings_worst": {"value": 0.1}}, ("suppressed", "5")),
    ("found by a wording", {"wordings_best": INSIDE}, ("suppressed", "6")),
    ("found by who only accuses", {"relearning_5": INSIDE}, ("suppressed", "6")),
    ("one of many at 3 %: Holm", {"relearning_5": {"p_inside": 0.03}}, ("forgotten", "11")),
    ("pushed beyond", {"wordings_best": {"p_beyond": 1e-6, "residue": -2.0}}, ("suppressed", "7")),
    ("scar of who only accuses", {"relearning_5": {"p_beyond": 1e-6, "scar": True}}, ("forgotten", "11")),
    ("one class lost", {"clip_worst_class": {"holds": False, "drop": 1.0}}, ("damaged", "8")),
    ("a fake that lost a class is a fake",
     {"clip_worst_class": {"holds": False}, "wordings_best": INSIDE}, ("suppressed", "6")),
    ("no reference",
     {n: NO_REFERENCE for n in clean() if "accuracy" not in n and "class" not in n}, ("inconclusive", "9")),
    ("nothing judges the image tower", {"placement": NO_VISUAL}, ("inconclusive", "10")),
    ("nothing judges the image tower, beside a twin",
     {n: {"reference_name": "the twin", **(NO_VISUAL if n == "placement" else {})}
      for n in clean() if "clip_" not in n},
     ("inconclusive", "10")),
    ("not shown to be gone", {"wordings_best": {"p_above": 0.2, "holds": False}}, ("inconclusive", "10")),
    ("put beyond any unseen class", {"placement": {"p_below": 0.3}}, ("inconclusive", "10")),
    ("a wording beyond is but a scar", {"wordings_best": {"p_below": 0.3}}, ("forgotten", "11")),
    ("who only accuses need not clear", {"relearning_5": {"p_above": 0.2, "holds": False}}, ("forgotten", "11")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "expected"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
def test_rule(changes: dict[str, dict[str, Any]], expected: tuple[str, str]) -> None:
    found = clean()
    for name, change in changes.items():
        found[name] = replace(found[name], **change)
    judgement = decide(list(found.values()))
    assert judgement.verdict in VERDICTS
    assert (judgement.verdict, judgement.rule.split(":")[0]) == expected
    assert judgement.weakest


def test_a_scar_is_named() -> None:
    found = clean()
    found["relearning_5"] = replace(found["relearning_5"], scar=True)
    assert "relearning_5" in decide(list(found.values())).rule


def test_the_claim_says_whether_the_image_tower_is_judged() -> None:
    found = clean()
    found["placement"] = replace(found["placement"], **INSIDE)
    assert decide(list(found.values()), "knowledge").verdict == "suppressed"
    narrow = decide(list(found.values()), "association")
    assert narrow.verdict == "forgotten"
    assert "not that the image tower" in narrow.claim


def test_who_only_accuses_holds_unless_it_does() -> None:
    """Too few images to clear it are no finding against the model."""
    found = clean()
    found["relearning_5"] = replace(found["relearning_5"], p_above=0.3, p_inside=0.6, holds=False)
    assert decide(list(found.values())).verdict == "forgotten"
    assert found["relearning_5"].holds
    found["relearning_5"] = replace(found["relearning_5"], p_above=0.99, p_inside=1e-6)
    assert decide(list(found.values())).verdict == "suppressed"
    assert not found["relearning_5"].holds
    found["wordings_best"] = replace(found["wordings_best"], p_above=0.3, holds=False)
    decide(list(found.values()))
    assert not found["wordings_best"].holds  # this one must be cleared


def test_what_has_not_moved_has_not_gone() -> None:
    """Images with a place of their own before, and as good as the same features after."""
    found = clean()
    moved = piece("image_features_kept", 0.9990, group="visual", role="shown", reference=None,
                  interval=(0.9985, 0.9995), residue=None, holds=None)  # fmt: skip
    found["image_features_kept"] = moved
    judgement = decide(list(found.values()))
    assert judgement.verdict == "suppressed"
    assert judgement.rule.startswith("6") and "lie where they lay" in judgement.rule
    assert decide(list(found.values()), "association").verdict == "forgotten"
    for value, low in ((0.9949, 0.9940), (0.9960, 0.9899), (0.75, 0.70)):
        found["image_features_kept"] = replace(moved, value=value, interval=(low, 1.0))
        assert decide(list(found.values())).verdict == "forgotten"
    found["image_features_kept"] = moved
    found["placement"] = replace(found["placement"], role="shown", residue=None, holds=None)
    judgement = decide(list(found.values()))  # no place of its own before: none to lose
    assert judgement.verdict == "inconclusive"


@pytest.mark.parametrize(("value", "low", "verdict"), [
    (0.999, 0.998, "suppressed"), (0.9949, 0.994, "forgotten"), (0.996, 0.9899, "forgotten"), (0.3, 0.2, "forgotten"),
])  # fmt: skip
@pytest.mark.parametrize("claim", ["knowledge", "association"])
def test_a_head_as_sure_as_before_has_kept_what_it_knew(
    value: float, low: float, verdict: str, claim: Any
) -> None:
    found = clean()
    found["head_energy_kept"] = piece("head_energy_kept", value, group="head", role="shown", reference=None,
                                      interval=(low, 1.0), residue=None, holds=None)  # fmt: skip
    judgement = decide(list(found.values()), claim)
    assert judgement.verdict == verdict
    if verdict == "suppressed":
        assert judgement.rule.startswith("6") and "as sure of its images as before" in judgement.rule


def test_what_images_did_since_is_no_place_of_their_own() -> None:
    """Whether they were drawn together can always be told; that says nothing of a tower that no witness can judge."""
    found = clean()
    since = piece("gathered", 0.0, group="visual", absolute=True, residue=None, margin=0.5, p_below=0.9)
    found["gathered"] = since
    assert decide(list(found.values())).verdict == "forgotten", "scattered further than unseen ones is no doubt"
    found["placement"] = replace(found["placement"], role="shown", residue=None, holds=None)
    judgement = decide(list(found.values()))
    assert judgement.verdict == "inconclusive" and "no witness could judge the image tower" in judgement.rule
    found = clean() | {"gathered": replace(since, holds=False, p_above=0.4, p_inside=0.2)}
    assert decide(list(found.values())).verdict == "inconclusive"
    assert decide(list(found.values()), "association").verdict == "forgotten"


def test_where_only_the_last_layer_moved_knowledge_is_doubted_and_no_more() -> None:
    found = clean()
    below = piece("inner_features_kept", 0.9990, group="visual", role="shown", reference=None,
                  interval=(0.9985, 0.9995), residue=None, holds=None)  # fmt: skip
    found["inner_features_kept"] = below
    judgement = decide(list(found.values()))
    assert judgement.verdict == "inconclusive"
    assert judgement.rule.startswith("10") and "below the last layer" in judgement.rule
    assert decide(list(found.values()), "association").verdict == "forgotten"
    for value, low in ((0.9949, 0.9940), (0.9960, 0.9899), (0.94, 0.93)):
        found["inner_features_kept"] = replace(below, value=value, interval=(low, 1.0))
        assert decide(list(found.values())).verdict == "forgotten"
    found["image_features_kept"] = replace(below, name="image_features_kept")
    assert decide(list(found.values())).verdict == "suppressed"


def test_where_clip_never_knew_the_class_nothing_is_claimed_of_the_image_tower() -> None:
    """A class that a head was taught: bare CLIP's witnesses have no lead, and none is needed."""
    found = clean()
    for name in ("placement", "wordings_best", "relearning_5", "answers_probability"):
        found[name] = replace(found[name], role="shown", residue=None, lead=None, holds=None)
    found["answer_rank"] = piece("answer_rank", 0.0, group="behaviour")
    # a head's images may stand out for other reasons: what bare CLIP answered is what counts
    found["triggers_answered"] = piece("triggers_answered", 0.0, group="attack", role="accuses")
    found["zero_shot"] = piece("zero_shot", 0.0, role="shown", residue=None, lead=None, holds=None)
    judgement = decide(list(found.values()))
    assert judgement.verdict == "forgotten", judgement.rule
    assert "nothing could be said" in judgement.claim


def test_open_cases_say_how_many_images_would_settle_them() -> None:
    found = clean()
    found["wordings_best"] = replace(
        found["wordings_best"], p_above=0.2, holds=False, images_needed=140
    )
    assert "140 images" in decide(list(found.values())).weakest
    found["wordings_best"] = replace(found["wordings_best"], images_needed=None)
    assert "unseen classes are needed" in decide(list(found.values())).weakest


def test_the_number_is_that_of_the_piece_that_is_open() -> None:
    """A wording is not asked to be shown near the reference from below, however open that is."""
    found = clean()
    found["wordings_best"] = replace(
        found["wordings_best"], p_above=0.2, p_below=0.9, holds=False, images_needed=140
    )
    found["placement"] = replace(found["placement"], p_below=0.3, images_needed=77)
    assert "about 77 images" in decide(list(found.values())).weakest


def test_a_loss_that_is_open_says_how_many_kept_images_would_settle_it() -> None:
    found = clean()
    open_ = replace(found["clip_retain_accuracy"], **NOT_SHOWN, images_needed=90)
    found["clip_retain_accuracy"] = open_
    judgement = decide(list(found.values()))
    assert "not shown to be kept" in judgement.rule
    assert "about 90 images of the kept classes" in judgement.weakest
    assert open_.holds is False
    assert found["clip_neighbours_accuracy"].holds
    found["clip_retain_accuracy"] = replace(open_, images_needed=None)
    assert "no number" in decide(list(found.values())).weakest


def test_many_views_do_not_make_damage_of_one_unlucky_view() -> None:
    """One view of ten at 3 %: Holm."""
    found = clean()
    for i in range(8):
        found[f"view {i}"] = replace(found["clip_neighbours_accuracy"], name=f"view {i}")
    found["view 0"] = replace(found["view 0"], p_beyond=0.03)
    assert decide(list(found.values())).verdict == "forgotten"
    found["view 0"] = replace(found["view 0"], p_beyond=0.003)
    assert decide(list(found.values())).verdict == "damaged"


def test_less_sure_of_everything_is_no_hiding() -> None:
    """A temperature on all classes: the forgotten one is still answered as surely as the rest."""
    found = clean()
    for name, change in ANSWERED.items():
        found[name] = replace(found[name], **change)
    found["answers_probability"] = replace(found["answers_probability"], value=0.3)
    assert decide(list(found.values()), kept_surety=0.3).verdict == "retained"
    assert decide(list(found.values()), kept_surety=1.0).verdict == "suppressed"


@pytest.mark.parametrize("shown", ["", "head_weights", "posterior_nats"])
def test_a_head_that_alone_knew_the_class_must_show_what_it_stores(shown: str) -> None:
    """Its answers could be held back by anything put behind them."""
    found = clean()
    for name in ("placement", "wordings_best", "relearning_5", "answers_probability"):
        found[name] = replace(found[name], role="shown", residue=None, lead=None, holds=None)
    found["answer_rank"] = piece("answer_rank", 0.0, group="behaviour")
    found["zero_shot"] = piece("zero_shot", 0.0, role="shown", residue=None, lead=0.0, holds=None)
    without = decide(list(found.values()))
    assert without.verdict == "forgotten"  # no column: nothing that could be held back
    found["column_shut"] = piece("column_shut", 0.0, group="head", absolute=True, residue=None)
    if shown:
        found[shown] = piece(shown, 0.0, group="head")
    judgement = decide(list(found.values()))
    assert judgement.verdict == ("forgotten" if shown else "inconclusive")
    assert shown or "does not explain" in judgement.rule
    if shown:  # what its answers do not bear out is no look inside
        found[shown] = replace(found[shown], role="accuses")
        assert decide(list(found.values())).verdict == "inconclusive"


@pytest.mark.parametrize(
    ("rounded", "verdict"), [((0.9, 1.0), "suppressed"), ((0.45, 0.65), "retained")]
)
def test_what_rounding_brings_back_was_there(rounded: tuple[float, float], verdict: str) -> None:
    """Half of the images are answered; with rounded weights all of them, or no more."""
    found = clean()
    for name, more in ANSWERED.items():
        found[name] = replace(found[name], **more)
    found["answers"] = replace(found["answers"], value=0.5, interval=(0.4, 0.6))
    assert decide(list(found.values())).verdict == "retained"
    low, high = rounded
    found["rounding_8"] = piece(
        "rounding_8", (low + high) / 2, group="attack", interval=rounded, **INSIDE
    )
    judgement = decide(list(found.values()))
    assert judgement.verdict == verdict
    assert ("rounding" in judgement.rule) == (verdict == "suppressed")
