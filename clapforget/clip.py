"""One CLIP model, whatever it comes from: encode with it, fingerprint its weights.

The rest of the package sees images as tensors in [0, 1] (or uint8) of any size and texts as
strings; resizing, normalisation and tokenising are the model's own business and happen here.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clapforget.errors import UserError
from clapforget.towers import one_query, some_blocks, text_length

__all__ = ["Clip", "Tower", "tower_of"]

Tower = Literal["image", "text"]


class Clip(nn.Module):
    """A frozen, eval-locked open_clip model with its tokeniser and its preprocessing.

    ``train()`` leaves it in eval mode and its parameters do not require gradients, so that a
    strategy cannot move it by accident; a forgetter asks for :meth:`trainable_copy`.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, name: str, pretrained: str = "") -> None:
        """:param model: an open_clip model, which is taken over as it is: **it itself** goes to eval mode
            and its parameters stop requiring gradients. Give a ``copy.deepcopy`` to train on yours.
            What stands in a ``DataParallel`` or ``DistributedDataParallel`` is taken out.
        :param tokenizer: maps strings to token ids [n, L].
        :param name: architecture, for the record. :param pretrained: tag or file, for the record.
        :raises UserError: if the model has no image tower as open_clip's have.
        """
        super().__init__()
        model = _bare(model)
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

    @property
    def text_tower(self) -> Any:
        """The module that holds the parts of the text tower: the model itself, or its ``text``."""
        return getattr(self.model, "text", self.model)

    @property
    def token_table(self) -> nn.Embedding | None:
        """The text tower's table of token vectors; None where it shows none."""
        table = getattr(self.text_tower, "token_embedding", None)
        return table if isinstance(table, nn.Embedding) else None

    # ---- encoding --------------------------------------------------------------------------
    def preprocess(self, images: Tensor) -> Tensor:
        """Resize (short side, or both where the model squashes), centre-crop and normalise.

        :param images: [n, 3, h, w], uint8 or floats in [0, 1]. :returns: [n, 3, size, size], channels
            last in memory, by which convolutions are a quarter faster on a CPU.
        """
        images = images.to(self.device)
        images = images / 255 if images.dtype == torch.uint8 else images
        height, width = images.shape[-2:]
        if (height, width) != (self.image_size, self.image_size):
            images = images.float()  # half numbers cannot be resized on a CPU
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
        dtype = self.dtype
        images = (images.to(dtype) - self.mean.to(dtype)) / self.std.to(dtype)
        return images.contiguous(memory_format=torch.channels_last)

    def encode_image(self, images: Tensor, batch_size: int = 256) -> Tensor:
        """Unit-norm image features [n, d] of images [n, 3, h, w]; differentiable if weights are."""
        if not len(images):
            return torch.zeros(0, self.width, device=self.device, dtype=self.dtype)
        encode: Any = self.model.encode_image
        with one_query(self.model):
            parts = [encode(self.preprocess(part)) for part in images.split(batch_size)]
        return F.normalize(torch.cat(parts), dim=-1)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids [n, context length] on the model's device."""
        return self.tokenizer(list(texts)).to(self.device)

    def encode_tokens(self, tokens: Tensor, batch_size: int = 1024) -> Tensor:
        """Unit-norm text features [n, d] of token ids [n, L]; differentiable if weights are."""
        if not len(tokens):
            return torch.zeros(0, self.width, device=self.device, dtype=self.dtype)
        parts = [self._text_features(part) for part in tokens.split(batch_size)]
        return F.normalize(torch.cat(parts), dim=-1)

    def _text_features(self, tokens: Tensor) -> Tensor:
        """As open_clip's [n, d]; where no later token can matter, no token after the longest end
        is looked at."""
        encode: Any = self.model.encode_text
        length = text_length(self.model, tokens)
        if length is None or length == tokens.shape[1]:
            return encode(tokens)
        with some_blocks(self.model, "text", slice(None), None, length):
            return encode(tokens)

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


def _bare(model: nn.Module) -> nn.Module:
    """The model without what distributes it over devices. :raises UserError: if it is no CLIP."""
    bare = model
    while not hasattr(bare, "visual") and isinstance(getattr(bare, "module", None), nn.Module):
        bare = bare.module  # type: ignore[assignment]
    if not hasattr(bare, "visual"):
        raise UserError(
            f"a {type(model).__name__} has no image tower called visual",
            "give a model of open_clip",
        )
    return bare


def tower_of(parameter: str) -> Tower | None:
    """Which tower a parameter belongs to, by its name; None for the shared logit scale/bias."""
    if parameter.startswith(("logit_scale", "logit_bias")):
        return None
    return "image" if parameter.startswith("visual.") else "text"
