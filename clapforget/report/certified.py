"""What a page shows of one certificate, and the page of a certificate that stands alone."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from clapforget.errors import UserError
from clapforget.report import plots, tables, witnesses, words
from clapforget.report.load import items, mapping, number, quantiles
from clapforget.report.load import text as string
from clapforget.verify import Certificate

__all__ = ["build_certificate", "certified", "fill", "write_page"]

_OURS = '<meta name="generator" content="clapforget report">'


def fill(template: str, **shown: Any) -> str:
    """A page from one of the package's templates; all that is shown is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(
        dash=words.DASH, glossary=words.GLOSSARY, verdicts=words.VERDICTS, **shown
    )


def build_certificate(file: Path) -> Path:
    """Draw a certificate file: write ``NAME.html`` beside ``NAME.json`` and return its path.

    :raises UserError: if the file is no certificate, or the page cannot be written, or a file that no report wrote
        stands in its place.
    """
    values = _read(file)
    target = file.with_suffix(".html")
    if target.is_file() and _OURS not in target.read_text(encoding="utf-8", errors="replace"):
        raise UserError(f"{target} exists already and is no report", "move it, or copy the certificate elsewhere")
    asked, model = mapping(values.get("request")), mapping(values.get("model"))
    names = [string(name) for name in items(asked.get("names"))]
    text = string(asked.get("text"))
    facts = [
        ("request", text),
        ("model", " ".join(filter(None, (string(model.get(k)) for k in ("name", "pretrained"))))),
        ("images", _count(values)),
        ("seed", string(values.get("seed"))),
        ("took", words.seconds(number(values.get("seconds")))),
    ]
    page = fill(
        "certificate.html",
        title=", ".join(names) or text or words.DASH,
        facts=[(key, value or words.DASH) for key, value in facts],
        r={
            "names": names, "badge": words.badge(string(values.get("verdict")) or None), "file": file.name,
            **certified(values, 1),
        },
        versions=list(tables.flat(mapping(values.get("versions")))),
        file=file.name,
    )  # fmt: skip
    return write_page(target, page)


def write_page(target: Path, page: str) -> Path:
    """Write it in one step. :raises UserError: if it cannot be written."""
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        part.write_text(page, encoding="utf-8", errors="replace")
        part.replace(target)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error}", "make the folder writable") from error
    finally:
        part.unlink(missing_ok=True)
    return target


def _read(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{file} cannot be read as a certificate ({error})", "check the path"
        ) from error
    try:
        Certificate.from_dict(values)
    except (UserError, ValueError) as error:
        raise UserError(
            f"{file} is no certificate ({error})", "give a file that clapforget verify --out wrote, or a run's folder"
        ) from error
    return mapping(values)


def certified(certificate: Mapping[str, Any], request: int) -> dict[str, Any]:
    """What the templates ``certified.html`` and ``prints.html`` draw; of a damaged certificate as much as is whole.

    :param request: its number, for screen readers.
    """
    turns, ended = witnesses.rounds(certificate)
    return {
        "plain": string(certificate.get("text")),
        "said": [
            (title, string(certificate.get(key), words.DASH) or words.DASH)
            for key, title in words.SAID.items()
        ],
        "witnesses": witnesses.witness_strip(certificate, request),
        "attacks": witnesses.curves(certificate, request),
        "rounds": turns,
        "ended": ended,
        "not_tested": [string(x) for x in items(certificate.get("not_tested"))],
        "evidence": tables.evidence_groups(certificate),
        "scores": _scores(certificate, request),
        "weights": tables.fingerprints(certificate),
        "model": list(tables.flat(mapping(certificate.get("model")))),
        "data_count": _count(certificate),
        "data_sha": string(mapping(certificate.get("forget_data")).get("sha256")) or words.DASH,
    }


def _count(certificate: Mapping[str, Any]) -> str:
    count = number(mapping(certificate.get("forget_data")).get("count"))
    return words.DASH if count is None else f"{count:.0f}"


def _scores(certificate: Mapping[str, Any], request: int) -> list[dict[str, Any]]:
    rows = []
    evidence = map(mapping, items(certificate.get("evidence")))
    titles = {string(e.get("name")): string(e.get("title")).capitalize() for e in evidence}
    for name, entry in mapping(certificate.get("scores")).items():
        before = quantiles(mapping(entry).get("before"))
        after = quantiles(mapping(entry).get("after"))
        title, what = words.SCORES.get(name, (titles.get(name) or name.replace("_", " "), ""))
        if before or after:
            label = f"Request {request}: {name} before and after"
            rows.append({"title": title, "what": what,
                         "plot": Markup(plots.strips(before, after, label))})  # fmt: skip
    return rows
