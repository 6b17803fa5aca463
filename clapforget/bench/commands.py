"""``clapforget bench``: one command a bench."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from clapforget.cli_values import Json, Markdown, parse_numbers, parse_seeds, parse_settings, say
from clapforget.errors import UserError
from clapforget.writing import check_writable, write_text

__all__ = ["bench"]

DataPlace = Annotated[
    str | None, typer.Option("--data", help="Where the data is, for scenarios that need some.")
]

bench = typer.Typer(no_args_is_help=True, help="Measure speed on this machine.")


@bench.command("learn")
def bench_learn(
    json_file: Json = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each side of a ratio.")] = 15,
    quick: Annotated[
        bool, typer.Option("--quick", help="Small sizes, to see that it runs.")
    ] = False,
) -> None:
    """Learning: the fast path against the released program's arithmetic, and what goes around it."""
    from clapforget.bench.learn import measure

    _measured(lambda: measure(rounds, quick, lambda line: say(f"measuring: {line}")), json_file)


@bench.command("methods")
def bench_methods(
    scenario: Annotated[str, typer.Argument(help="Whose data and tasks.")],
    methods: Annotated[
        list[str],
        typer.Option("--method", help="STRATEGY[:PRESET][,GROUP.NAME=VALUE ...]; may be repeated."),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the runs' folders; finished ones are kept.")],
    data: DataPlace = None,
    seeds: Annotated[str, typer.Option(help="Comma-separated.")] = "0,1,2,3,4",
    sequence: Annotated[str, typer.Option(help="Requests, or a named sequence.")] = "learn-only",
    per_class: Annotated[
        int, typer.Option(min=0, help="Training images a class, drawn with the seed; 0: all.")
    ] = 0,
    validation: Annotated[
        int,
        typer.Option(min=0, help="Judge by so many held-out training images a class, not by the test images."),
    ] = 0,
    reference: Annotated[
        str, typer.Option(help="Method that differences are to; default: the last.")
    ] = "",
    model: Annotated[
        str | None, typer.Option(help="Model name or weights file; default: the scenario's own.")
    ] = None,
    json_file: Json = None,
    markdown_file: Markdown = None,
) -> None:
    """Learning methods on the same streams: accuracy, calibration, novelty, with intervals."""
    from clapforget.bench.methods import markdown, measure

    numbers = parse_seeds(seeds)
    _measured(
        lambda: measure(
            scenario, methods, numbers, out, data, sequence, per_class, validation, reference, model,
            parse_settings, say,
        ),
        json_file, markdown, markdown_file,
    )  # fmt: skip


@bench.command("selection")
def bench_selection(
    scenario: Annotated[str, typer.Argument(help="Whose data and tasks.")],
    data: DataPlace = None,
    strategy: Annotated[
        str, typer.Option(help="Whose posterior is asked: NAME or NAME:PRESET.")
    ] = "exact",
    each: Annotated[str, typer.Option(help="Exemplars a class, comma-separated.")] = "1,5,20",
    seeds: Annotated[str, typer.Option(help="Comma-separated.")] = "0,1,2,3,4",
    scores: Annotated[
        str, typer.Option(help="Comma-separated; NAME:low keeps the lowest. Default: all.")
    ] = "",
    reference: Annotated[str, typer.Option(help="Score that differences are to.")] = "coverage",
    json_file: Json = None,
    markdown_file: Markdown = None,
) -> None:
    """Exemplar scores: what heads learn from the exemplars alone, paired by seed."""
    from clapforget.bench.selection import markdown, measure

    sizes, numbers = parse_numbers(each, "--each") or [], parse_seeds(seeds)
    names = [name.strip() for name in scores.split(",") if name.strip()]
    if not sizes or min(sizes) < 1:
        raise UserError(f"--each {each}", "give whole numbers from 1 on")
    _measured(
        lambda: measure(scenario, strategy, sizes, numbers, names, reference, data, say=say),
        json_file, markdown, markdown_file,
    )  # fmt: skip


@bench.command("forget")
def bench_forget(
    json_file: Json = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each side of a ratio.")] = 5,
    pairs: Annotated[
        int, typer.Option(min=64, help="Pairs to forget, and as many to keep, on ViT-B-32.")
    ] = 256,
    quick: Annotated[
        bool, typer.Option("--quick", help="A small model and two methods, to see that it runs.")
    ] = False,
) -> None:
    """Forgetting: what is computed once against the plain way, and what each method costs."""
    from clapforget.bench.forget import measure

    _measured(
        lambda: measure(rounds, quick, pairs, lambda line: say(f"measuring: {line}")), json_file
    )


@bench.command("forgetters")
def bench_forgetters(
    twin_cache: Annotated[
        Path, typer.Option(help="Folder of trained twins; missing ones are trained (minutes each).")
    ],
    scenario: Annotated[str, typer.Option(help="lab or cifar100.")] = "lab",
    data: DataPlace = None,
    seeds: Annotated[str, typer.Option(help="Of the requests, comma-separated.")] = "0,1,2",
    methods: Annotated[
        str, typer.Option(help="NAME or NAME:PRESET, comma-separated; default: all.")
    ] = "",
    draws: Annotated[
        int, typer.Option(min=1, help="Draws of images to relearn from, to average over.")
    ] = 1,
    json_file: Json = None,
    markdown_file: Markdown = None,
) -> None:
    """Forgetters: all on the same requests, beside twins that never saw the classes."""
    from clapforget.bench.forgetters import markdown, measure

    names = [name.strip() for name in methods.split(",") if name.strip()]
    numbers = parse_seeds(seeds)
    _measured(
        lambda: measure(numbers, twin_cache, names, say, True, draws, scenario, data),
        json_file, markdown, markdown_file,
    )  # fmt: skip


@bench.command("verify")
def bench_verify(
    json_file: Json = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Some cheap kinds, one seed, the quick level.")
    ] = False,
    seeds: Annotated[str, typer.Option(help="Which of the seven, with commas between; default: all.")] = "",
    level: Annotated[str, typer.Option(help="Of the verifier: quick or full.")] = "full",
    methods: Annotated[
        bool, typer.Option("--methods", help="Instead: every forgetter before the verifier.")
    ] = False,
    scenario: Annotated[
        str, typer.Option(help="lab, or cifar100: kinds that need no retrained twin.")
    ] = "lab",
    data: Annotated[Path | None, typer.Option(help="Where CIFAR-100 is.")] = None,
    kind: Annotated[
        list[str] | None, typer.Option(help="Only kinds with this in their name; repeat it.")
    ] = None,
) -> None:
    """Verifying: cases whose truth is known by construction, and how the verifier fares on them."""
    from clapforget.bench.verify import measure
    from clapforget.bench.verify_cifar import measure_cifar
    from clapforget.bench.verify_methods import measure_methods

    if level not in ("quick", "full"):
        raise UserError(f"unknown level {level!r}", "choose quick or full")
    if scenario not in ("lab", "cifar100"):
        raise UserError(f"no truth bench on scenario {scenario!r}", "choose lab or cifar100")
    if scenario == "lab" and data is not None:
        raise UserError(
            "--data: the lab draws its own images", "leave it out, or --scenario cifar100"
        )
    if scenario == "cifar100" and methods:
        raise UserError("--methods is of the lab", "leave out --scenario")
    if kind and (scenario == "cifar100" or methods):
        raise UserError("--kind is of the lab's cases", "leave out --scenario and --methods")
    chosen = parse_seeds(seeds) if seeds else None
    if scenario == "cifar100":
        _measured(lambda: measure_cifar(data, chosen or (0,), level, say), json_file)  # type: ignore[arg-type]
        return
    if methods:
        _measured(lambda: measure_methods(level, say), json_file)  # type: ignore[arg-type]
        return
    _measured(lambda: measure(quick, say, chosen, level, kind or ()), json_file)  # type: ignore[arg-type]


def _measured(
    measure: Callable[[], dict[str, Any]], json_file: Path | None,
    table: Callable[[dict[str, Any]], str] | None = None, markdown_file: Path | None = None,
) -> None:  # fmt: skip
    """What is measured, printed, and written where it is wanted.

    :param table: of what is measured, in Markdown.
    :raises UserError: before anything is measured, for a file that can't be written.
    """
    for option, file in (("--json", json_file), ("--markdown", markdown_file)):
        if file is None:
            continue
        if not file.absolute().parent.is_dir():
            raise UserError(f"{option} {file}: there is no such folder", "make it first")
        if file.is_file():
            raise UserError(f"{file} exists already", f"choose another {option}")
        check_writable(file, option)
    found = measure()
    text = json.dumps(found, indent=2)
    say(text)
    if json_file is not None:
        write_text(json_file, text + "\n")
    if table is not None:
        say(table(found))
        if markdown_file is not None:
            write_text(markdown_file, table(found))
