"""The command line: ``clapforget run | verify | report | list | pretrain | bench``.

A user's mistake ends with one line on standard error and exit code 2; nothing is overwritten.
"""

from __future__ import annotations

import os

# Before anything that loads torch: threads that spin while they wait make a step ten times slower as
# soon as another process wants one of the cores; threads that never do must be woken for every
# operator, which doubles a small step. So they spin for a moment (docs/performance.md).
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from clapforget import __version__
from clapforget.allocator import keep_freed_memory
from clapforget.bench.commands import bench
from clapforget.cli_values import parse_numbers, parse_path, parse_settings, say
from clapforget.errors import UserError
from clapforget.writing import check_writable

__all__ = ["app", "main"]

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None,
    help="Continual learning and unlearning on CLIP, with uncertainty that can be trusted.",
)  # fmt: skip

_PATH: dict[str, Any] = {"parser": parse_path, "metavar": "PATH"}
Data = Annotated[
    Path | None, typer.Option(help="Folder with train/ and test/ class folders.", **_PATH)
]
Seed = Annotated[int, typer.Option(help="Of class order, training and everything random.")]


@app.command()
def run(
    scenario: Annotated[
        str, typer.Argument(help="A built-in scenario; see 'clapforget list'.")
    ] = "lab",
    strategy: Annotated[str, typer.Option(help="How the stream is lived through.")] = "clapforget",
    forgetter: Annotated[str, typer.Option(help="NAME or NAME:PRESET.")] = "stranger",
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
        Path | None, typer.Option(help="Folder to write; default runs/SCENARIO-SEED.", **_PATH)
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
        class_order=parse_numbers(class_order), settings=parse_settings(settings or []), twin=twin, device=device,
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
    synonyms: Annotated[
        Path | None, typer.Option(help="YAML of other words for classes: 'couch: [sofa, settee]'.", **_PATH)
    ] = None,
    members: Annotated[
        bool,
        typer.Option("--members", help="The model before was trained on train/ and on none of test/, a random split: "
                     "ask of single images too (with --twin)."),
    ] = False,
    model: Annotated[str | None, typer.Option(help="Architecture of weights files.")] = None,
    level: Annotated[
        str, typer.Option(help="quick, or full with the attacks that train.")
    ] = "full",
    claim: Annotated[
        str, typer.Option(help="association, or knowledge of the image tower as well.")
    ] = "knowledge",
    check: Annotated[
        Path | None, typer.Option(help="A certificate: is --after the certified model?", **_PATH)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Certificate file to write.", **_PATH)] = None,
    seed: Seed = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda …")] = "cpu",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --out.")] = False,
) -> None:
    """Did the model forget, or does it only look so? Examine any two open_clip checkpoints."""
    from clapforget.run import check_device
    from clapforget.run_verify import VerifyRequest, check_certificate, verify_models

    check_device(device)
    if check is not None:
        same = check_certificate(check, after, model, device, say)
        raise typer.Exit(0 if same else 1)
    if before is None or request is None or data is None:
        raise UserError("verify needs --before, --after, --request and --data", "name all four")
    if out is not None:
        _check_file(out, overwrite)
    asked = VerifyRequest(before, after, request, data, model, twin, retain, unseen, level, claim,  # type: ignore[arg-type]
                          seed, device, synonyms, members)  # fmt: skip
    certificate = verify_models(asked, say)
    say(certificate.text)
    say(f"verdict: {certificate.verdict} (rule {certificate.rule})")
    if out is not None:
        certificate.save(out)
        say(f"certificate: {out}")


@app.command()
def report(
    folder: Annotated[
        Path, typer.Argument(metavar="PATH", help="A run's folder, or a certificate file.", parser=parse_path)
    ],
    data: Data = None,
) -> None:
    """Write a run's report.html again, with pictures where the data can be found; or draw a certificate: NAME.html
    beside NAME.json."""
    from clapforget.report import build_certificate
    from clapforget.run import write_report

    if folder.is_file():
        say(f"report: {build_certificate(folder)}")
        return
    say(f"report: {write_report(folder, None if data is None else str(data))}")


@app.command("list")
def list_parts() -> None:
    """Show what can be named on the command line."""
    from clapforget.loading import BUILT_IN, TRAINABLE
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
        f"models\n  built in: {', '.join(BUILT_IN)}; to be trained with clapforget pretrain: "
        f"{', '.join(TRAINABLE)}; any model of open_clip with --pretrained; hf-hub:ID; a file"
    )


@app.command()
def pretrain(
    source: Annotated[str, typer.Argument(help="lab, cifar100, or folder.")],
    out: Annotated[Path, typer.Option(help="Weights file to write, NAME.safetensors.", **_PATH)],
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
    from clapforget.seeding import check_seed

    _check_file(out, overwrite)
    check_device(device)
    check_seed(seed)
    names = [name.strip() for name in exclude.split(",") if name.strip()]
    architecture, images = pretrain_source(source, data, names)
    settings = PretrainSettings(epochs, batch_size, lr, weight_decay, label_smoothing, seed)
    command = " ".join(["clapforget", *sys.argv[1:]])
    card = train(model or architecture, images, settings, out, command, device=device)
    say(f"{out}: zero-shot {card.zero_shot_known:.1%} on the classes it learned, "
        f"{card.zero_shot_other:.1%} on the others, {card.seconds:.0f} s")  # fmt: skip


def _check_file(out: Path, overwrite: bool) -> None:
    """:raises UserError: if a file is there already, or cannot be written."""
    check_writable(out)
    if out.exists() and not overwrite:
        raise UserError(f"{out} exists already", "choose another --out, or add --overwrite")


app.add_typer(bench, name="bench")


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    if version:
        say(f"clapforget {__version__}")
        raise typer.Exit()


_INTERRUPTED = 130


def main() -> None:
    """Entry point: readable errors, exit code 2 for the user's mistakes."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore")
    keep_freed_memory()
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
        resumes = sys.argv[1:2] == ["run"]
        hint = "; the same command with --resume goes on" if resumes else ""
        sys.stderr.write(f"\nclapforget: interrupted{hint}\n")
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str) -> None:
    sys.stderr.write(f"clapforget: error: {' '.join(message.split())}\n")
    sys.exit(2)


if __name__ == "__main__":
    main()
