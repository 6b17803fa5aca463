"""One CLIP model, whatever it comes from: load it, encode with it, fingerprint its weights.

The rest of the package sees images as tensors in [0, 1] (or uint8) of any size and texts as
strings; resizing, normalisation and tokenising are the model's own business and happen here.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clapforget.errors import UserError

__all__ = ["BUILT_IN", "Clip", "Tower", "build_clip", "load_clip", "read_metadata", "shipped_card"]

Tower = Literal["image", "text"]

_HERE = Path(__file__).parent
_CONFIGS = _HERE / "configs"
_WEIGHTS = _HERE / "weights"
BUILT_IN = tuple(sorted(path.stem for path in _CONFIGS.glob("*.json")))
"""Names of the models whose configuration comes with the package."""

open_clip.add_model_config(_CONFIGS)


class Clip(nn.Module):
    """A frozen, eval-locked open_clip model with its tokeniser and its preprocessing.

    ``train()`` leaves it in eval mode and its parameters do not require gradients, so that a
    strategy cannot move it by accident; a forgetter asks for :meth:`trainable_copy`.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, name: str, pretrained: str = "") -> None:
        """:param model: an open_clip model. :param tokenizer: maps strings to token ids [n, L].
        :param name: architecture, for the record. :param pretrained: tag or file, for the record.
        """
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.name = name
        self.pretrained = pretrained
        visual: Any = model.visual
        config = dict(getattr(visual, "preprocess_cfg", None) or {})
        size = visual.image_size
        self.image_size: int = size[0] if isinstance(size, (tuple, list)) else int(size)
        self.interpolation: str = config.get("interpolation", "bicubic")
        self.resize_mode: str = config.get("resize_mode", "shortest")
        mean = config.get("mean", open_clip.OPENAI_DATASET_MEAN)
        std = config.get("std", open_clip.OPENAI_DATASET_STD)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()

    mean: Tensor
    std: Tensor

    def train(self, mode: bool = True) -> Clip:
        """Stay in eval mode: dropout off, batch statistics frozen. See :meth:`trainable_copy`."""
        return super().train(False)

    def __deepcopy__(self, memo: dict[int, Any]) -> Clip:
        # The tokeniser holds a compiled pattern and caches: it is shared, not copied.
        memo[id(self.tokenizer)] = self.tokenizer
        other = self.__class__.__new__(self.__class__)
        memo[id(self)] = other
        other.__dict__ = copy.deepcopy(self.__dict__, memo)
        return other

    def trainable_copy(self, parameters: Iterable[str] | None = None) -> Clip:
        """A copy in which the named parameters (default: all) require gradients.

        It is still in eval mode: batch-norm statistics and dropout stay frozen.
        """
        other = copy.deepcopy(self)
        names = None if parameters is None else set(parameters)
        for name, parameter in other.model.named_parameters():
            parameter.requires_grad_(names is None or name in names)
        return other

    # ---- where it is -----------------------------------------------------------------------
    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    @property
    def scale(self) -> Tensor:
        """``exp(logit_scale)``, the inverse temperature of the similarity softmax. Scalar."""
        return self.model.logit_scale.exp()  # type: ignore[operator, union-attr]

    def parameter_names(self, tower: Tower | None = None) -> list[str]:
        """Names of the parameters of one tower (``logit_scale`` belongs to neither), or all."""
        names = [name for name, _ in self.model.named_parameters()]
        return names if tower is None else [name for name in names if tower_of(name) == tower]

    # ---- encoding --------------------------------------------------------------------------
    def preprocess(self, images: Tensor) -> Tensor:
        """Resize (short side, or both where the model squashes), centre-crop and normalise.

        :param images: [n, 3, h, w], uint8 or floats in [0, 1]. :returns: [n, 3, size, size].
        """
        dtype = self.dtype
        images = images.to(self.device)
        images = images.to(dtype) / 255 if images.dtype == torch.uint8 else images.to(dtype)
        height, width = images.shape[-2:]
        if (height, width) != (self.image_size, self.image_size):
            size, short = self.image_size, min(height, width)
            shape = [int(side * size / short) for side in (height, width)]
            if self.resize_mode == "squash":
                shape = [size, size]
            mode = (
                self.interpolation if self.interpolation in ("bicubic", "bilinear") else "bicubic"
            )
            images = F.interpolate(images, shape, mode=mode, antialias=True).clamp(0, 1)
            top, left = (round((side - size) / 2) for side in shape)
            images = images[..., top : top + size, left : left + size]
        return (images - self.mean.to(dtype)) / self.std.to(dtype)

    def encode_image(self, images: Tensor, batch_size: int = 256) -> Tensor:
        """Unit-norm image features [n, d] of images [n, 3, h, w]; differentiable if weights are."""
        if not len(images):
            return torch.zeros(0, self.width, device=self.device, dtype=self.dtype)
        encode: Any = self.model.encode_image
        parts = [encode(self.preprocess(part)) for part in images.split(batch_size)]
        return F.normalize(torch.cat(parts), dim=-1)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids [n, context length] on the model's device."""
        return self.tokenizer(list(texts)).to(self.device)

    def encode_tokens(self, tokens: Tensor, batch_size: int = 1024) -> Tensor:
        """Unit-norm text features [n, d] of token ids [n, L]; differentiable if weights are."""
        if not len(tokens):
            return torch.zeros(0, self.width, device=self.device, dtype=self.dtype)
        encode: Any = self.model.encode_text
        parts = [encode(part) for part in tokens.split(batch_size)]
        return F.normalize(torch.cat(parts), dim=-1)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Unit-norm text features [n, d] of n strings."""
        return self.encode_tokens(self.tokenize(texts))

    def encode_names(self, names: Sequence[str], templates: Sequence[str]) -> Tensor:
        """Template features ``E`` [C, L, d], each of unit norm: every name in every template."""
        texts = [template.format(name) for name in names for template in templates]
        return self.encode_text(texts).view(len(names), len(templates), -1)

    def class_features(self, names: Sequence[str], templates: Sequence[str]) -> Tensor:
        """Class text features ``t`` [C, d]: mean over templates, then unit norm."""
        return F.normalize(self.encode_names(names, templates).mean(1), dim=-1)

    @property
    def width(self) -> int:
        """Dimension d of the joint space."""
        projection: Any = getattr(self.model, "text_projection", None)
        if projection is None:
            projection = self.model.text.text_projection  # type: ignore[union-attr]
        weight = projection.weight.T if isinstance(projection, nn.Linear) else projection
        return int(weight.shape[1])

    # ---- identity --------------------------------------------------------------------------
    def fingerprint(self, tower: Tower | None = None) -> str:
        """SHA-256 over names, shapes and values of the weights (one tower's, or all), as hex."""
        digest = hashlib.sha256()
        for name, value in sorted(self._state(tower)):
            value = value.detach().cpu().contiguous()
            digest.update(f"{name}|{tuple(value.shape)}|{value.dtype}|".encode())
            digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def _state(self, tower: Tower | None) -> Iterator[tuple[str, Tensor]]:
        for name, value in self.model.state_dict().items():
            if tower is None or tower_of(name) == tower:
                yield name, value


def tower_of(parameter: str) -> Tower | None:
    """Which tower a parameter belongs to, by its name; None for the shared logit scale/bias."""
    if parameter.startswith(("logit_scale", "logit_bias")):
        return None
    return "image" if parameter.startswith("visual.") else "text"


# ---- loading -------------------------------------------------------------------------------
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
