"""The certificate as a file."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from clapforget import UserError
from clapforget.scenarios import ImageData
from clapforget.verify import Certificate, schema


@pytest.fixture(scope="module")
def certificate(certify: Callable[[str, str], list[Certificate]]) -> Certificate:
    return certify("nothing", "L0-5 F1")[0]


def test_it_comes_back_from_json_as_it_was(certificate: Certificate, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "000.json"
    certificate.save(path)
    again = Certificate.from_dict(json.loads(path.read_text()))
    assert again.to_dict() == certificate.to_dict()
    assert [piece.name for piece in again.evidence] == [p.name for p in certificate.evidence]
    assert isinstance(again.evidence[0].interval, tuple)
    again.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


def test_every_number_in_it_is_finite(certificate: Certificate) -> None:
    def walk(value: Any) -> None:
        if isinstance(value, dict):
            for part in value.values():
                walk(part)
        elif isinstance(value, list):
            for part in value:
                walk(part)
        elif isinstance(value, float):
            assert math.isfinite(value)

    walk(json.loads(json.dumps(certificate.to_dict())))


def test_it_says_what_was_asked_and_of_whom(certificate: Certificate) -> None:
    assert certificate.request["text"] == "F1"
    assert certificate.request["classes"] == [1]
    assert certificate.request["names"] == ["pafom"]
    assert certificate.model == {"name": "lab-tiny", "pretrained": "built-in"}
    assert {"clapforget", "torch", "open_clip_torch"} <= certificate.versions.keys()
    assert certificate.reference == "unseen classes"
    assert "pafom" in certificate.text


def test_fingerprints_show_that_nothing_changed_no_weight(certificate: Certificate) -> None:
    before, after = certificate.weights["before"], certificate.weights["after"]
    assert before.keys() == {"image", "text", "all", "head"}
    assert before["image"] == after["image"]
    assert before["text"] == after["text"]
    assert all(len(value) == 64 for value in (*before.values(), *after.values()))


def test_every_view_has_its_evidence(certificate: Certificate) -> None:
    names = {piece.name for piece in certificate.evidence}
    assert {"answers", "zero_shot", "matched_cosine", "head_weights", "placement", "retain_accuracy",
            "neighbours_accuracy", "clip_bystanders_accuracy", "clip_retain_accuracy",
            "posterior_nats", "mutual_information", "laplace_nats", "head_entropy", "head_expected_entropy",
            "head_mutual_information", "head_energy", "head_conformal_coverage",
            "head_conformal_size"} <= names  # fmt: skip
    for piece in certificate.evidence:
        low, high = piece.interval
        assert low - 1e-9 <= piece.value <= high + 1e-9, piece.name
        assert piece.n > 0
    assert certificate.evidence_by_name("no such thing") is None


def test_score_quantiles_rise(certificate: Certificate) -> None:
    assert {"matched_cosine", "placement", "mutual_information"} <= certificate.scores.keys()
    for when in certificate.scores["entropy"].values():
        assert when.keys() == {"forget", "retain", "unseen"}
        for quantiles in when.values():
            assert quantiles == sorted(quantiles)
            assert len(quantiles) == 5


def test_a_streams_certificate_follows_the_published_schema(certificate: Certificate) -> None:
    jsonschema.validate(json.loads(json.dumps(certificate.to_dict())), schema())


def test_it_names_the_images_of_the_request_by_their_pixels(
    certificate: Certificate, data: ImageData
) -> None:
    image = data.train.images(data.rows("train", [1])[:1])[0]
    assert certificate.forget_data["count"] == len(certificate.forget_data["ids"]) == 20
    assert hashlib.sha256(image.numpy().tobytes()).hexdigest() in certificate.forget_data["ids"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda d: d.pop("format"), lambda d: d.update(format="something else"),
        lambda d: d.pop("verdict"), lambda d: d.update(extra=1), lambda d: d.pop("evidence"),
        lambda d: d["evidence"][0].update(extra=1), lambda d: d["evidence"][0].pop("value"),
    ],
    ids=["no-format", "other-format", "no-verdict", "extra", "no-evidence", "odd-evidence", "no-value"],
)  # fmt: skip
def test_what_is_no_certificate_is_refused(
    certificate: Certificate, spoil: Callable[[dict[str, Any]], Any]
) -> None:
    values = json.loads(json.dumps(certificate.to_dict()))
    spoil(values)
    with pytest.raises(UserError, match="no clapforget certificate"):
        Certificate.from_dict(values)


def test_it_is_saved_by_a_path_in_words_too_and_never_with_what_is_no_number(
    certificate: Certificate, tmp_path: Path
) -> None:
    certificate.save(str(tmp_path / "new" / "c.json"))
    again = Certificate.from_dict(json.loads((tmp_path / "new" / "c.json").read_text()))
    assert again.verdict == certificate.verdict
    broken = replace(certificate, seconds=math.nan)
    with pytest.raises(ValueError, match="JSON"):
        broken.save(tmp_path / "d.json")
    assert not (tmp_path / "d.json").exists()
