"""The page of a certificate that stands alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from clapforget.errors import UserError
from clapforget.report import build_certificate
from clapforget.verify import Certificate
from clapforget.verify.evidence import Evidence
from tests.report.test_report import EVIL, Page


def written(path: Path, **changes: Any) -> Path:
    """A certificate with one judged score, a curve and strange words everywhere."""
    evidence = [
        Evidence("zero_shot", f"zero-shot {EVIL}", "clip", 0.25, (0.15, 0.35), 0.95, 0.05, (0.0, 0.1), "unseen classes",
                 direction="equal", n=40, holds=False, residue=0.22, lead=0.9, margin=0.25, role="both"),
        Evidence("relearning_5", "relearned from five", "attack", 0.5, (0.4, 0.6), 1.0, 0.4, (0.3, 0.5),
                 "unseen classes", direction="equal", n=40, role="accuses", residue=0.2, lead=0.6, margin=0.5,
                 curve={"forget": [0.0, 0.5, 0.9], "unseen": [0.0, 0.4, 0.8]}, curve_at=(0, 2, 4)),
    ]  # fmt: skip
    marks = {view: [at, at + 1.0, at + 2, at + 3, at + 4] for at, view in enumerate(("unseen", "forget", "retain"))}
    Certificate(
        request={"text": "F3", "classes": [3], "names": [EVIL, "plain"]}, event=0, verdict="suppressed",
        rule="6: gone from the answers, still inside", weakest=f"weak {EVIL}", claim="a claim", not_tested=["four <b>"],
        evidence=evidence, forgetter={}, model={"name": "lab-tiny", "pretrained": EVIL},
        weights={"before": {"image": "aa"}, "after": {"image": "bb"}}, forget_data={"count": 40, "sha256": "cc"},
        seed=7, versions={"torch": "2"}, reference="unseen classes",
        scores={"entropy": {"before": marks, "after": marks}},
        text=f"In plain words {EVIL}.", level="full", seconds=12.5,
    ).save(path)  # fmt: skip
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps(values))
    return path


def test_a_certificates_page_says_verdict_and_weakest_point_and_draws_scores_and_curves(tmp_path: Path) -> None:
    page = build_certificate(written(tmp_path / "c.json"))
    assert page == tmp_path / "c.html"
    source = page.read_text(encoding="utf-8")
    read = Page(source)
    read.feed(source)
    assert not read.open, "tags are balanced"
    assert EVIL not in source and "four &lt;b&gt;" in source
    for said in ("suppressed", "6: gone from the answers", "weak &lt;script", "In plain words", "12.5 s", "changed"):
        assert said in source, said
    for drawn in ("Request 1: every witness", "Request 1: relearned from five", "Request 1: entropy before and after"):
        assert f'aria-label="{drawn}' in source, drawn
    for view in ("retained", "forgotten", "unseen"):
        assert f">{view}<" in source


def test_a_page_is_written_again_but_never_over_what_is_no_report(tmp_path: Path) -> None:
    file = written(tmp_path / "c.json")
    build_certificate(file)
    written(file, verdict="forgotten")
    assert "forgotten" in build_certificate(file).read_text(encoding="utf-8")
    (tmp_path / "c.html").write_text("my notes")
    with pytest.raises(UserError, match="is no report"):
        build_certificate(file)
    assert (tmp_path / "c.html").read_text() == "my notes"


@pytest.mark.parametrize(
    "spoil", [b"", b"[1]", b'"abc"', b"{}", b"\xff\xfe", b"[" * 100_000, b'{"format": "clapforget certificate 1"}']
)  # fmt: skip
def test_what_is_no_certificate_is_named_and_nothing_is_written(spoil: bytes, tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    file.write_bytes(spoil)
    with pytest.raises(UserError, match=r"c\.json"):
        build_certificate(file)
    assert not (tmp_path / "c.html").exists()


@pytest.mark.parametrize(
    "changes",
    [{"request": 3}, {"scores": [1]}, {"seconds": "long"}, {"verdict": None}, {"model": None}, {"versions": 2},
     {"weights": "x"}, {"forget_data": []}, {"not_tested": "all"}, {"text": {"a": 1}}],
)  # fmt: skip
def test_of_odd_values_as_much_is_drawn_as_is_whole(changes: dict[str, Any], tmp_path: Path) -> None:
    assert "</html>" in build_certificate(written(tmp_path / "c.json", **changes)).read_text(encoding="utf-8")
