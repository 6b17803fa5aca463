"""The command line: ``clapforget run | verify | report | list | pretrain | bench``.

A user's mistake ends with one line on standard error and exit code 2; nothing is overwritten.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from clapforget import __version__
from clapforget.errors import UserError

__all__ = ["app", "main"]

# Before torch is loaded: threads that wait by spinning make a step several times slower as soon as
# another process wants one of the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None,
    help="Continual learning and unlearning on CLIP, with uncertainty that can be trusted.",
)  # fmt: skip

Data = Annotated[Path | None, typer.Option(help="Folder with train/ and test/ class folders.")]
Json = Annotated[Path | None, typer.Option("--json", help="File to write the numbers to.")]
Seed = Annotated[int, typer.Option(help="Of class order, training and everything random.")]


def say(line: str = "") -> None:
    """Print a line at once, beside any progress bar."""
    from tqdm import tqdm

    tqdm.write(line)
    sys.stdout.flush()


@app.command()
def run(
    scenario: Annotated[
        str, typer.Argument(help="A built-in scenario; see 'clapforget list'.")
    ] = "lab",
    strategy: Annotated[str, typer.Option(help="How the stream is lived through.")] = "clapforget",
    forgetter: Annotated[str, typer.Option(help="NAME or NAME:PRESET.")] = "cliperase",
    model: Annotated[
        str | None, typer.Option(help="Model name, hf-hub: id or weights file.")
    ] = None,
    pretrained: Annotated[str | None, typer.Option(help="open_clip tag or weights file.")] = None,
    data: Data = None,
    seed: Seed = 0,
    sequence: Annotated[
        str | None,
        typer.Option(help='Requests, such as "L0-9 F3 N10-19 F@57", or a sequence by name.'),
    ] = None,
    class_order: Annotated[
        str | None, typer.Option(help="Canonical class ids, comma-separated.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="GROUP.NAME=VALUE, repeatable.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write; default runs/SCENARIO-SEED.")
    ] = None,
    twin: Annotated[
        bool, typer.Option("--twin", help="Also live through it without the forgotten data.")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 …")] = "cpu",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a run in the folder.")
    ] = False,
) -> None:
    """Live through a stream of requests to learn and to forget, and write a report."""
    from clapforget.run import RunRequest, run_scenario

    request = RunRequest(
        scenario=scenario, strategy=strategy, forgetter=forgetter, model=model, pretrained=pretrained,
        data=None if data is None else str(data), seed=seed, sequence=sequence,
        class_order=_order(class_order), settings=_settings(settings or []), twin=twin, device=device,
    )  # fmt: skip
    run_scenario(request, out, resume, overwrite, say)


@app.command()
def verify(
    after: Annotated[str, typer.Option(help="The model that is to have forgotten.")],
    before: Annotated[
        str | None, typer.Option(help="The model before: built-in name, NAME:TAG or file.")
    ] = None,
    request: Annotated[str | None, typer.Option(help="F3,12 or class names.")] = None,
    data: Annotated[
        str | None, typer.Option(help="'lab', or a folder with train/ and test/ class folders.")
    ] = None,
    retain: Annotated[
        str | None, typer.Option(help="Classes to be kept: folder, file or names.")
    ] = None,
    unseen: Annotated[
        str | None, typer.Option(help="Classes never learned: folder, file or names.")
    ] = None,
    twin: Annotated[
        str | None, typer.Option(help="A model that never saw the forgotten data.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Architecture of weights files.")] = None,
    level: Annotated[
        str, typer.Option(help="quick, or full with the attacks that train.")
    ] = "full",
    claim: Annotated[
        str, typer.Option(help="association, or knowledge of the image tower as well.")
    ] = "knowledge",
    check: Annotated[
        Path | None, typer.Option(help="A certificate: is --after the certified model?")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Certificate file to write.")] = None,
    seed: Seed = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda …")] = "cpu",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --out.")] = False,
) -> None:
    """Did the model forget, or does it only look so? Examine any two open_clip checkpoints."""
    from clapforget.run import check_device
    from clapforget.run_verify import VerifyRequest, check_certificate, verify_models

    check_device(device)
    if check is not None:
        same = check_certificate(check, after, model, device)
        say(f"{after} is {'' if same else 'NOT '}the model that {check} certifies")
        raise typer.Exit(0 if same else 1)
    if before is None or request is None or data is None:
        raise UserError("verify needs --before, --after, --request and --data", "name all four")
    if out is not None and out.exists() and not overwrite:
        raise UserError(f"{out} exists already", "choose another --out, or add --overwrite")
    asked = VerifyRequest(before, after, request, data, model, twin, retain, unseen, level, claim,  # type: ignore[arg-type]
                          seed, device)  # fmt: skip
    certificate = verify_models(asked, say)
    say(certificate.text)
    say(f"verdict: {certificate.verdict} (rule {certificate.rule})")
    if out is not None:
        certificate.save(out)
        say(f"certificate: {out}")


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A run's folder.")], data: Data = None
) -> None:
    """Write a run's report.html again, with pictures where the data can be found."""
    from clapforget.run import write_report

    say(f"report: {write_report(folder, None if data is None else str(data))}")


@app.command("list")
def list_parts() -> None:
    """Show what can be named on the command line."""
    from clapforget.loading import BUILT_IN
    from clapforget.scenarios import SCENARIOS
    from clapforget.scenarios.sequences import SEQUENCES
    from clapforget.strategies.registry import STRATEGIES
    from clapforget.strategies.selection import SELECTORS
    from clapforget.unlearn import FORGETTERS

    say("scenarios")
    for name in SCENARIOS.names():
        say(f"  {name:14} {SCENARIOS.get(name).description}")
    say("sequences (--sequence NAME)")
    for name in SEQUENCES.names():
        say(f"  {name:18} {SEQUENCES.get(name).description}")
    say("forgetters")
    for name in FORGETTERS.names():
        cls = FORGETTERS.get(name)
        presets = ", ".join(p for p in cls.presets if p != "default")
        summary = (sys.modules[cls.__module__].__doc__ or "").splitlines()[0]
        say(f"  {name:14} {summary}" + (f" Presets: {presets}." if presets else ""))
    say(f"strategies\n  {', '.join(STRATEGIES.names())}")
    say(f"exemplar scores (--set memory.score=NAME, or NAME:low)\n  {', '.join(SELECTORS.names())}")
    say(
        f"models\n  built in: {', '.join(BUILT_IN)}; any model of open_clip with --pretrained; hf-hub:ID; a file"
    )


@app.command()
def pretrain(
    source: Annotated[str, typer.Argument(help="lab, cifar100, or folder.")],
    out: Annotated[Path, typer.Option(help="Weights file to write, NAME.safetensors.")],
    model: Annotated[
        str | None, typer.Option(help="Architecture; default: the source's own tiny one.")
    ] = None,
    data: Data = None,
    exclude: Annotated[
        str, typer.Option(help="Class names to leave out, comma-separated: makes a twin.")
    ] = "",
    epochs: Annotated[int, typer.Option(min=1)] = 10,
    batch_size: Annotated[int, typer.Option(min=2)] = 256,
    lr: Annotated[float, typer.Option(min=0)] = 3e-3,
    weight_decay: Annotated[float, typer.Option(min=0)] = 0.1,
    label_smoothing: Annotated[float, typer.Option(min=0, max=0.99)] = 0.0,
    seed: Seed = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda …")] = "cpu",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing file.")
    ] = False,
) -> None:
    """Train a small CLIP from nothing; interrupted, the same command goes on where it was."""
    from clapforget.pretrain import PretrainSettings
    from clapforget.pretrain import pretrain as train
    from clapforget.run import check_device, pretrain_source

    if out.exists() and not overwrite:
        raise UserError(f"{out} exists already", "choose another --out, or add --overwrite")
    check_device(device)
    names = [name.strip() for name in exclude.split(",") if name.strip()]
    architecture, images = pretrain_source(source, data, names)
    settings = PretrainSettings(epochs, batch_size, lr, weight_decay, label_smoothing, seed)
    command = " ".join(["clapforget", *sys.argv[1:]])
    card = train(model or architecture, images, settings, out, command, device=device)
    say(f"{out}: zero-shot {card.zero_shot_known:.1%} on the classes it learned, "
        f"{card.zero_shot_other:.1%} on the others, {card.seconds:.0f} s")  # fmt: skip


bench = typer.Typer(no_args_is_help=True, help="Measure speed on this machine.")
app.add_typer(bench, name="bench")


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

    _measured(json_file, lambda: measure(rounds, quick, lambda line: say(f"measuring: {line}")))


@bench.command("methods")
def bench_methods(
    scenario: Annotated[str, typer.Argument(help="Whose data and tasks.")],
    methods: Annotated[
        list[str],
        typer.Option("--method", help="STRATEGY[:PRESET][,GROUP.NAME=VALUE ...]; may be repeated."),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the runs' folders; finished ones are kept.")],
    data: Annotated[
        str | None, typer.Option(help="Where the data is, for scenarios that need some.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Comma-separated.")] = "0,1,2,3,4",
    sequence: Annotated[str, typer.Option(help="Requests, or a named sequence.")] = "learn-only",
    per_class: Annotated[
        int, typer.Option(min=0, help="Training images a class, drawn with the seed; 0: all.")
    ] = 0,
    reference: Annotated[
        str, typer.Option(help="Method that differences are to; default: the last.")
    ] = "",
    json_file: Json = None,
    markdown_file: Annotated[
        Path | None, typer.Option("--markdown", help="File to write the table to.")
    ] = None,
) -> None:
    """Learning methods on the same streams: accuracy, calibration, novelty, with intervals."""
    from clapforget.bench.methods import markdown, measure

    numbers = _order(seeds, "--seeds") or []
    found = _measured(
        json_file,
        lambda: measure(
            scenario, methods, numbers, out, data, sequence, per_class, reference, _settings, say
        ),
    )
    say(markdown(found))
    if markdown_file is not None:
        markdown_file.write_text(markdown(found))


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
        json_file, lambda: measure(rounds, quick, pairs, lambda line: say(f"measuring: {line}"))
    )


@bench.command("forgetters")
def bench_forgetters(
    twin_cache: Annotated[
        Path, typer.Option(help="Folder of trained twins; missing ones are trained (minutes each).")
    ],
    seeds: Annotated[str, typer.Option(help="Of the requests, comma-separated.")] = "0,1,2",
    methods: Annotated[
        str, typer.Option(help="NAME or NAME:PRESET, comma-separated; default: all.")
    ] = "",
    draws: Annotated[
        int, typer.Option(min=1, help="Draws of images to relearn from, to average over.")
    ] = 1,
    json_file: Json = None,
    markdown_file: Annotated[
        Path | None, typer.Option("--markdown", help="File to write the table to.")
    ] = None,
) -> None:
    """Forgetters on the lab: all on the same requests, beside twins that never saw the classes."""
    from clapforget.bench.forgetters import markdown, measure

    names = [name.strip() for name in methods.split(",") if name.strip()]
    numbers = _order(seeds, "--seeds") or []
    found = _measured(json_file, lambda: measure(numbers, twin_cache, names, say, True, draws))
    say(markdown(found))
    if markdown_file is not None:
        markdown_file.write_text(markdown(found))


@bench.command("verify")
def bench_verify(
    json_file: Json = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Some cheap kinds, one seed, the quick level.")
    ] = False,
    seeds: Annotated[str, typer.Option(help="Which of the five, with commas between.")] = "",
    level: Annotated[str, typer.Option(help="Of the verifier: quick or full.")] = "full",
    methods: Annotated[
        bool, typer.Option("--methods", help="Instead: every forgetter before the verifier.")
    ] = False,
) -> None:
    """Verifying: cases whose truth is known by construction, and how the verifier fares on them."""
    from clapforget.bench.verify import measure
    from clapforget.bench.verify_methods import measure_methods

    if level not in ("quick", "full"):
        raise UserError(f"unknown level {level!r}", "choose quick or full")
    chosen = _order(seeds) if seeds else None
    if methods:
        _measured(json_file, lambda: measure_methods(level, say))  # type: ignore[arg-type]
        return
    _measured(json_file, lambda: measure(quick, say, chosen, level))  # type: ignore[arg-type]


def _measured(json_file: Path | None, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What is measured, printed, and written where it is wanted."""
    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise UserError(f"--json {json_file}: there is no such folder", "make it first")
    if json_file is not None and json_file.exists():
        raise UserError(f"{json_file} exists already", "choose another --json")
    found = measure()
    text = json.dumps(found, indent=2)
    say(text)
    if json_file is not None:
        json_file.write_text(text + "\n")
    return found


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    if version:
        say(f"clapforget {__version__}")
        raise typer.Exit()


def _settings(pairs: list[str]) -> dict[str, Any]:
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


def _order(text: str | None, option: str = "--class-order") -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(
            f"{option} {text[:40]!r} holds no whole numbers", "write 3,0,2,1"
        ) from error


_INTERRUPTED = 130


def main() -> None:
    """Entry point: readable errors, exit code 2 for the user's mistakes."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore")
    try:
        code = app(standalone_mode=False)
    except UserError as error:
        _fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        code = _INTERRUPTED
    except Exception as error:  # click's usage errors, whichever copy of click typer brings
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        _fail(f"{message()}; see 'clapforget --help'")
    if code == _INTERRUPTED:
        sys.stderr.write("\nclapforget: interrupted; the same command with --resume goes on\n")
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str) -> None:
    sys.stderr.write(f"clapforget: error: {' '.join(message.split())}\n")
    sys.exit(2)


if __name__ == "__main__":
    main()
