"""What the verifier's witnesses said, drawn from a certificate; damaged ones draw less, never an error."""

from __future__ import annotations

import re
from typing import Any

import pytest

from clapforget.report.witnesses import curves, rounds, witness_strip


def piece(**changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": "zero_shot", "title": "zero-shot <b>", "role": "both", "value": 0.25, "before": 0.95,
        "reference": 0.05, "interval": [0.15, 0.35], "residue": 0.2222, "lead": 0.9, "margin": 0.25,
        "absolute": False, "holds": True,
    }  # fmt: skip
    return {**found, **changes}


def strip(*pieces: dict[str, Any]) -> str:
    return witness_strip({"evidence": list(pieces)}, 1) or ""


def test_every_judged_witness_has_a_row_and_no_other() -> None:
    drawn = strip(
        piece(title="first"),
        piece(title="second", role="accuses", holds=False),
        piece(title="shown only", role="shown"),
        piece(title="kept", role="kept"),
        piece(title="no reference", reference=None),
    )
    assert re.findall(r">(first|second|shown only|kept|no reference)<", drawn) == [
        "first",
        "second",
    ]


def test_titles_are_escaped() -> None:
    assert "<b>" not in strip(piece())
    assert "zero-shot &lt;b&gt;" in strip(piece())
    attacked = piece(curve={"forget": [0, 1]}, curve_at=[0, 1])
    assert "<b>" not in curves({"evidence": [attacked]}, 1)[0]["plot"]


def test_the_scale_is_nought_at_the_reference_and_one_before() -> None:
    from clapforget.report.witnesses import _row

    row = _row(piece(value=0.05, residue=0.0))
    assert row is not None and row.value == 0.0 and row.before == pytest.approx(1.0)
    row = _row(piece())
    assert row is not None and row.value == pytest.approx(0.2222, abs=1e-4)
    assert row.interval == pytest.approx((0.1111, 0.3333), abs=1e-3)
    # lower means known: the sign of the scale turns
    low = _row(piece(value=0.7, before=0.66, reference=0.74, residue=0.5, interval=[0.68, 0.72]))
    assert low is not None and low.before == pytest.approx(1.0)
    assert low.interval == pytest.approx((0.25, 0.75))
    # an absolute margin is a distance, drawn on the same scale
    wide = _row(piece(absolute=True, residue=None, margin=0.1, before=0.55))
    assert wide is not None and wide.allowed == pytest.approx(0.2)
    below = _row(
        piece(absolute=True, residue=None, margin=0.5, before=0.0, value=0.0, reference=0.3)
    )
    assert below is not None and below.value == pytest.approx(-0.3)


@pytest.mark.parametrize(
    "spoil",
    [{"evidence": None}, {"evidence": "x"}, {"evidence": [None, 3, {}]},
     {"evidence": [piece(value=None)]}, {"evidence": [piece(residue=0.0, lead=0.0, before=0.05, value=0.05)]},
     {"evidence": [piece(curve="x", curve_at=[0])]}, {"forgetter": 7}],
)  # fmt: skip
def test_what_is_damaged_is_left_out(spoil: dict[str, Any]) -> None:
    strip_ = witness_strip(spoil, 1)
    assert strip_ is None or "svg" in strip_
    assert curves(spoil, 1) == []
    assert rounds(spoil) == ([], "")


def test_a_witness_without_an_interval_is_drawn() -> None:
    assert "svg" in strip(piece(interval=None))


def test_curves_of_attacks_have_a_line_each() -> None:
    lines = {"forget": [0.0, 0.5, 0.9], "unseen": [0, 0.4, 0.8], "before": [1, 1, 1], "odd": [1, 2]}
    (found,) = curves({"evidence": [piece(curve=lines, curve_at=[0, 2, 4])]}, 2)
    assert found["title"] == "zero-shot <b>"  # the template escapes it
    for label in ("forgotten classes", "unseen classes", "before"):
        assert label in found["plot"]


def test_rounds_say_how_they_ended() -> None:
    until = {"budget": 2, "kept": 1, "ended": "budget",
             "rounds": [{"verdict": "retained", "rule": "4", "weakest": "w"}] * 2}  # fmt: skip
    rows, ended = rounds({"forgetter": {"until": until}})
    assert [row["kept"] for row in rows] == [True, False]
    assert "budget of 2 rounds ended" in ended
