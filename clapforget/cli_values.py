"""What the command line's options are made of: their kinds, and how their texts are read."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from clapforget.errors import UserError
from clapforget.seeding import check_seed

__all__ = [
    "Json",
    "Markdown",
    "parse_numbers",
    "parse_path",
    "parse_seeds",
    "parse_settings",
    "say",
]


def parse_path(text: str) -> Path:
    """A path; no text is none, where :class:`Path` would take it for the current folder."""
    if not text.strip():
        raise typer.BadParameter("it is empty; name a path")
    return Path(text)


Json = Annotated[
    Path | None,
    typer.Option("--json", parser=parse_path, metavar="PATH", help="File to write the numbers to."),
]
Markdown = Annotated[
    Path | None,
    typer.Option("--markdown", parser=parse_path, metavar="PATH", help="File to write the table to."),
]  # fmt: skip


def say(line: str = "") -> None:
    """Print a line at once, beside any progress bar."""
    from tqdm import tqdm

    tqdm.write(line)
    sys.stdout.flush()


def parse_settings(pairs: list[str]) -> dict[str, Any]:
    """Values by name of ``GROUP.NAME=VALUE`` texts. :raises UserError: for any other text."""
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise UserError(
                f"--set {pair!r} is no GROUP.NAME=VALUE", "write for example training.epochs=3"
            )
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"--set {pair!r} has no readable value", "quote texts") from error
        values[key] = _number(value)
    return values


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-4 as text."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def parse_numbers(text: str | None, option: str = "--class-order") -> list[int] | None:
    """Whole numbers with commas between them. :param option: where they stand, for the error."""
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(
            f"{option} {text[:40]!r} holds no whole numbers", "write 3,0,2,1"
        ) from error


def parse_seeds(text: str) -> list[int]:
    """Seeds with commas between them. :raises UserError: for other texts, and seeds out of range."""
    seeds = parse_numbers(text, "--seeds") or []
    for seed in seeds:
        check_seed(seed)
    return seeds
