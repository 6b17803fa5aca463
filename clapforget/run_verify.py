"""``clapforget verify``: from two models and a folder of images to a certificate."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from torch import Tensor

from clapforget.clip import Clip
from clapforget.errors import UserError
from clapforget.loading import load_clip
from clapforget.scenarios import ImageData, cifar100, folder, lab, read_synonyms
from clapforget.seeding import check_seed
from clapforget.strategies.certify import package_versions
from clapforget.verify import Certificate
from clapforget.verify.document import certificate_of, certified_weights, check_model
from clapforget.verify.examine import Level, examine
from clapforget.verify.material import Material, material_from
from clapforget.verify.rules import Claim
from clapforget.verify.silent import silent
from clapforget.verify.subject import Subject

__all__ = ["VerifyRequest", "check_certificate", "verify_models"]

_SAME = 0.9999  # cosine
_MEMBERS = 100  # train images a forgotten class
_LARGEST = 64 * 2**20  # bytes of a certificate
_SCALES = (1e-3, 1e6)  # of exp(logit_scale); open_clip trains it to at most 100


@dataclass(frozen=True)
class VerifyRequest:
    """What the command line asks for."""

    before: str
    after: str
    request: str
    data: str
    model: str | None = None
    twin: str | None = None
    retain: str | None = None
    unseen: str | None = None
    level: Level = "full"
    claim: Claim = "knowledge"
    seed: int = 0
    device: str = "cpu"
    synonyms: Path | None = None
    """A file of other words for classes, see :func:`~clapforget.scenarios.read_synonyms`."""
    members: bool = False
    """Whether the model before was trained on the data's train images, and the test images are the other part of a
    random split: then single images are asked about too, beside a twin."""


def load_checkpoint(text: str, model: str | None, device: str = "cpu") -> Clip:
    """A model by what a user writes: a built-in name, a file of weights, or ``architecture:tag``.

    :param model: architecture of a file that does not say it.
    :raises UserError: as :func:`~clapforget.loading.load_clip` does.
    """
    if Path(text).suffix or _there(text):
        if model is not None:
            return load_clip(model, text, device)
        if text.endswith(".safetensors"):
            return load_clip(text, device=device)
        raise UserError(f"{text} does not say of which architecture it is", "add --model NAME")
    if text.startswith("hf-hub:"):
        return load_clip(text, device=device)
    name, _, tag = text.partition(":")
    if model is not None and not tag:
        name, tag = (name, "") if name == model else (model, name)
    return load_clip(name, tag or None, device)


def verify_models(request: VerifyRequest, say: Callable[[str], None]) -> Certificate:
    """Examine. :raises UserError: for whatever is wrong with the request, the models or the data."""
    if request.level not in ("quick", "full"):
        raise UserError(f"unknown level {request.level!r}", "choose quick or full")
    if request.claim not in ("association", "knowledge"):
        raise UserError(f"unknown claim {request.claim!r}", "choose association or knowledge")
    check_seed(request.seed)
    if request.members and request.twin is None:
        raise UserError("--members needs a twin as reference model", "add --twin, or leave out --members")
    data = _data(request.data)
    if request.synonyms is not None:
        data = replace(data, synonyms=read_synonyms(request.synonyms, data))
    forget = _labels(request.request, data)
    retain = None if request.retain is None else _part(request.retain, data)
    unseen = None if request.unseen is None else _part(request.unseen, data)
    before, after, twin = _models(request)
    if before.name != "lab-tiny" and request.data == "lab":
        data = replace(data, known=None)  # what the built-in model knows says nothing of this one
    m = material_from(
        data, forget, retain=retain, unseen=unseen, seed=request.seed,
        members=_MEMBERS if request.members else 0,
    )  # fmt: skip
    if twin is None and not m.unseen:
        say("no --unseen and no --twin: nothing stands in for never learned; at best inconclusive")
    old, new = Subject(before), Subject(after)
    m = m.with_nearest_names(old.names(m.names, m.templates))
    apart = None if twin is None else Subject(twin)
    if apart is not None:
        for option, other in (("--after", new), ("--before", old)):
            _check_apart(option, other, apart, m, request.claim)
    for option, side in (("--before", old), ("--twin", apart)):
        if side is not None:
            _check_features(option, side, m)
    found = examine(
        old, new, m, apart, level=request.level, claim=request.claim, seed=request.seed,
        say=lambda part: say(f"examining the model: {part}"),
    )  # fmt: skip
    text = "F" + ",".join(map(str, forget))
    return certificate_of(found, m, text, before, after, request.seed, package_versions(), twin=twin)


def _models(request: VerifyRequest) -> tuple[Clip, Clip, Clip | None]:
    """Before, after and the twin, where there is one: finite, and of one architecture."""
    before, after = (
        load_checkpoint(text, request.model, request.device)
        for text in (request.before, request.after)
    )
    twin = (
        None
        if request.twin is None
        else load_checkpoint(request.twin, request.model, request.device)
    )
    for option, clip in (("--before", before), ("--after", after), ("--twin", twin)):
        if clip is not None:
            _check_finite(option, clip)
    for clip in filter(None, (after, twin)):
        if {k: v.shape for k, v in clip.model.state_dict().items()} != {
            k: v.shape for k, v in before.model.state_dict().items()
        }:
            raise UserError(
                f"{clip.pretrained or clip.name} is of another architecture than the model before",
                "give two states of one model",
            )
    return before, after, twin


def _check_finite(option: str, clip: Clip) -> None:
    for name, tensor in clip.model.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise UserError(
                f"{option}: {name} of {clip.pretrained or clip.name} is not finite",
                "give whole weights",
            )
    scale = float(clip.scale)
    if not _SCALES[0] <= scale <= _SCALES[1]:
        raise UserError(
            f"{option}: exp(logit_scale) of {clip.pretrained or clip.name} is {scale:.3g}",
            f"give a model whose answers it makes neither all alike nor overflow: {_SCALES[0]:g} to {_SCALES[1]:g}",
        )


def _check_features(option: str, subject: Subject, m: Material) -> None:
    """The model before, and a twin, are what the model after is held against.

    :raises UserError: if they give no features of some test images.
    """
    for name, part in m.test.items():
        if lost := silent(subject, part):
            raise UserError(
                f"{option}: {lost} of {len(part)} {name} test images have no features that are finite and not zero",
                "give a model that encodes images",
            )


def _check_apart(option: str, other: Subject, twin: Subject, m: Material, claim: Claim) -> None:
    """A twin was trained apart from the other models: its features are not theirs, nor, where knowledge of the
    image tower is claimed, are those of its image tower.

    :raises UserError: if they are.
    """
    part = m.test["forget"]
    same = _equal(other.features(part), twin.features(part))
    names = [m.names[c] for c in m.forget]
    words = _equal(*(s.names(names, m.templates) for s in (other, twin)))
    if same and (words or claim == "knowledge"):
        what = "gives" if words else "has an image tower that gives"
        raise UserError(
            f"--twin {what} the features that {option} gives: it was not trained apart from it",
            "give a model that never saw the forgotten data, or leave out --twin",
        )


def _equal(a: Tensor, b: Tensor) -> bool:
    """Whether unit rows are the same but for rounding."""
    return bool(((a * b).sum(-1) > _SAME).all())


def check_certificate(
    path: Path, after: str, model: str | None, device: str = "cpu",
    say: Callable[[str], None] = lambda line: None,
) -> bool:  # fmt: skip
    """Whether ``after`` is the model that a certificate speaks of. :param say: hears it in words.

    :raises UserError: if the file is no certificate, or does not say whose it is.
    """
    try:
        if _there(path) == "file" and path.stat().st_size > _LARGEST:
            raise UserError(f"{path} is larger than any certificate", "check the path")
        certificate = Certificate.from_dict(json.loads(path.read_text()))
        head = "head" in certified_weights(certificate)
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{path} cannot be read as a certificate ({error})", "check the path"
        ) from error
    same = check_model(certificate, load_checkpoint(after, model, device))
    unchecked = "; the head that it names as well is not checked" if head else ""
    say(f"{after} is {'' if same else 'NOT '}the model that {path} certifies{unchecked}")
    return same


def _there(path: str | Path) -> Literal["folder", "file"] | None:
    """What stands at a path, or at a text that may be none: names with commas between them are longer than
    any file's, and then nothing does."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return None
    return "folder" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else None


def _data(text: str) -> ImageData:
    if text == "lab":
        return lab(train_per_class=20, test_per_class=40)
    root = Path(text)
    train = _there(root / "train") == "folder"
    if root.name.startswith("cifar100") and not train:
        return cifar100(root)
    if train:
        return folder(root)
    raise UserError(
        f"--data {text} has no train/ and test/", "give 'lab' or a folder that has both"
    )


def _labels(text: str, data: ImageData) -> tuple[int, ...]:
    """Labels of ``F3,12-14`` or of class names with commas between them."""
    from clapforget.scenarios import Forget
    from clapforget.scenarios.sequence import parse_sequence

    names = {name.casefold() for name in data.class_names}
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if (
        parts
        and not all(p.replace("_", " ").casefold() in names for p in parts)
        and text[:1] == "F"
    ):
        requests = parse_sequence(text)
        if len(requests) != 1 or not isinstance(requests[0], Forget) or not requests[0].classes:
            raise UserError(f"--request {text!r} is no request to forget classes", "write F3,12-14")
        return tuple(requests[0].classes)
    return tuple(dict.fromkeys(data.label_of(part) for part in parts))


def _part(text: str, data: ImageData) -> Sequence[int]:
    """Labels of classes named by a folder of class folders, a file with a name a line, or labels
    or names with commas between them.
    """
    path = Path(text)
    there = _there(text)
    if there == "folder":
        home = path / "test" if (path / "test").is_dir() else path
        names = sorted(p.name for p in home.iterdir() if p.is_dir() and not p.name.startswith("."))
        return [data.label_of(name) for name in names]
    if there == "file":
        try:
            lines = path.read_text().splitlines()
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read as a file of class names ({error})", "write one a line") from error
        return [data.label_of(line.strip()) for line in lines if line.strip()]
    return _labels(text if not text[:1].isdigit() else f"F{text}", data)
