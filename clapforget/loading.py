"""Make a :class:`~clapforget.clip.Clip`: built-in, from open_clip, a file or the hub."""

from __future__ import annotations

import json
import logging
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import nn

from clapforget.clip import Clip
from clapforget.errors import UserError

__all__ = ["BUILT_IN", "TRAINABLE", "build_clip", "load_clip", "read_metadata", "shipped_card"]

_HERE = Path(__file__).parent
_CONFIGS = _HERE / "configs"
_WEIGHTS = _HERE / "weights"
BUILT_IN = tuple(sorted(path.stem for path in _WEIGHTS.glob("*.safetensors")))
"""Names of the models that come with the package, weights and all."""
TRAINABLE = tuple(sorted({path.stem for path in _CONFIGS.glob("*.json")} - set(BUILT_IN)))
"""Names of small architectures that come without weights, for ``clapforget pretrain``."""

open_clip.add_model_config(_CONFIGS)


def build_clip(architecture: str, seed: int | None = None, device: str = "cpu") -> Clip:
    """A randomly initialised model of a built-in or open_clip architecture.

    :param seed: of the initial weights; the global generator's state is left as it was.
    :raises UserError: for an unknown architecture.
    """
    _check_architecture(architecture)
    with torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.manual_seed(seed)
        model = _create(architecture, None, device)
    return Clip(model, open_clip.get_tokenizer(architecture), architecture, "")


def load_clip(name: str = "lab-tiny", pretrained: str | None = None, device: str = "cpu") -> Clip:
    """Load a CLIP model.

    :param name: a built-in name (:data:`BUILT_IN`), any open_clip architecture, an ``hf-hub:`` id,
        or the path of a weights file written by ``clapforget pretrain``.
    :param pretrained: an open_clip tag or the path of a weights file; built-in names need none.
    :raises UserError: for an unknown name or tag, a file that is missing, truncated or of another
        model, or a download that is impossible; the message says which file to put where.
    """
    if name.startswith("hf-hub:"):
        return Clip(_download(name, None, device), open_clip.get_tokenizer(name), name, "")
    if name.endswith(".safetensors"):
        return _load_file(_architecture_of(Path(name)), Path(name), device)
    _check_architecture(name)
    if pretrained is None and name in BUILT_IN:
        shipped = _WEIGHTS / f"{name}.safetensors"
        clip = _load_file(name, shipped, device)
        clip.pretrained = "built-in"
        return clip
    if pretrained is None and name in TRAINABLE:
        raise UserError(
            f"{name} comes without weights",
            f"train it: clapforget pretrain lab --model {name} --out FILE.safetensors; "
            "then name that file",
        )
    if pretrained is None:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)[:6]) or "none"
        raise UserError(
            f"model {name} needs pretrained weights",
            f"add --pretrained TAG ({tags}) or --pretrained FILE",
        )
    if (
        Path(pretrained).suffix in (".safetensors", ".pt", ".pth", ".bin")
        or Path(pretrained).exists()
    ):
        return _load_file(name, Path(pretrained), device)
    if open_clip.get_pretrained_cfg(name, pretrained) in (None, {}):
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise UserError(
            f"model {name} has no pretrained tag {pretrained}", f"choose one of: {tags}"
        )
    model = _download(name, pretrained, device)
    return Clip(model, open_clip.get_tokenizer(name), name, pretrained)


def shipped_card(name: str) -> dict[str, Any]:
    """The model card of a built-in model: data, classes, settings, seconds, accuracies."""
    return json.loads((_WEIGHTS / f"{name}.json").read_text())


def read_metadata(path: Path) -> dict[str, str]:
    """The text metadata of a safetensors file (empty if there is none).

    :raises UserError: if the file is missing, truncated or not a safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UserError(f"weights file {path} does not exist", "check the path")
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"weights file {path} is truncated or no safetensors file ({error})",
            "copy or download it again",
        ) from error


def _architecture_of(path: Path) -> str:
    architecture = read_metadata(path).get("architecture", "")
    if not architecture:
        raise UserError(
            f"weights file {path} does not say which architecture it is of",
            "name it: --model ARCHITECTURE --pretrained FILE",
        )
    _check_architecture(architecture)
    return architecture


def _check_architecture(name: str) -> None:
    if name not in open_clip.list_models():
        import difflib

        near = difflib.get_close_matches(name, open_clip.list_models(), n=3)
        hint = f"did you mean {', '.join(near)}?" if near else f"built-in: {', '.join(BUILT_IN)}"
        raise UserError(f"unknown model {name!r}", f"{hint} ('clapforget list' shows all)")


def _create(name: str, pretrained: str | None, device: str) -> nn.Module:
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.CRITICAL)  # what open_clip logs, our own message says
    try:
        return open_clip.create_model(
            name, pretrained=pretrained, device=device, precision="fp32", weights_only=True
        )
    finally:
        logging.getLogger().setLevel(level)


def _load_file(name: str, path: Path, device: str) -> Clip:
    if path.suffix == ".safetensors":
        written_for = read_metadata(path).get("architecture", name)
        if written_for != name:
            raise UserError(
                f"weights file {path} is of model {written_for}, not {name}",
                f"use --model {written_for}, or another file",
            )
    elif not path.is_file():
        raise UserError(f"weights file {path} does not exist", "check the path")
    model = _create(name, None, device)
    try:
        open_clip.load_checkpoint(model, str(path), strict=True, weights_only=True)
    except Exception as error:  # every loader has its own errors; all mean: this file will not do
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else repr(error)
        raise UserError(
            f"weights file {path} cannot be loaded as model {name} ({reason})",
            "it is truncated, of another model, or not a plain state dict: get it again",
        ) from error
    return Clip(model, open_clip.get_tokenizer(name), name, str(path))


def _hub_answers(timeout: float = 5.0) -> bool:
    """Whether the model hub can be reached, by the proxy settings in force."""
    from huggingface_hub import constants

    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=timeout).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def _download(name: str, pretrained: str | None, device: str) -> nn.Module:
    """Create a model with weights from the hub, or from its local cache where there is no network."""
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE
    try:
        # Without this the hub's client retries every file for the better part of a minute.
        constants.HF_HUB_OFFLINE = offline or not _hub_answers()
        return _create(name, pretrained, device)
    except Exception as error:  # network, hub and file errors alike: say what to fetch by hand
        if name.startswith("hf-hub:"):
            what = (
                f"open_clip_model.safetensors of the hub repository {name.removeprefix('hf-hub:')}"
            )
            put = (
                "run 'huggingface-cli download' where there is a network and copy its cache folder"
            )
        else:
            config = open_clip.get_pretrained_cfg(name, pretrained or "")
            source = config.get("hf_hub") or config.get("url") or "its publisher"
            what = f"the weights of {name} ({pretrained}) from {source.strip('/')}"
            put = f"save them as a file and pass --model {name} --pretrained FILE"
        raise UserError(
            f"cannot download {what} ({type(error).__name__})",
            f"get the file on a machine with a network, then {put}",
        ) from error
    finally:
        constants.HF_HUB_OFFLINE = offline
