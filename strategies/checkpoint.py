"""What ``--resume`` needs, as one safetensors file: no pickle, and nothing of what was forgotten.

It holds the head, the memory and those CLIP tensors that differ from the model the run began
with. There is one file, replaced after every experience, so no older state stays on disk.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from clapforget.clip import Clip
from clapforget.errors import UserError

__all__ = ["load_checkpoint", "save_checkpoint"]


def save_checkpoint(path: Path, strategy: Any, base: Clip, done: int) -> None:
    """Write atomically. :param base: the model at the start. :param done: finished experiences."""
    path.parent.mkdir(parents=True, exist_ok=True)
    original = base.model.state_dict()
    model = strategy.model
    state = {
        f"clip.{name}": value for name, value in model.clip.model.state_dict().items()
        if not torch.equal(value, original[name])
    }  # fmt: skip
    state |= {f"head.{name}": value for name, value in model.head.state_dict().items()}
    state |= {f"memory.{name}": value for name, value in strategy.memory.state_dict().items()}
    state |= {f"strategy.{name}": value for name, value in strategy.extra_state().items()}
    state["memory_views"] = strategy.memory_views
    state = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    meta = {
        "done": str(done),
        "model": base.fingerprint(),
        "posterior": model.posterior,
        "text": json.dumps([model.class_names, model.templates]),
    }
    temporary = path.with_suffix(".writing")
    save_file(state, temporary, metadata=meta)
    temporary.replace(path)


def load_checkpoint(path: Path, strategy: Any, base: Clip) -> int:
    """Put a fresh strategy into the saved state. :returns: number of finished experiences.

    :raises UserError: if the file is missing, damaged, or of a run that began with another model.
    """
    if not path.is_file():
        return 0
    try:
        with safe_open(path, framework="pt") as file:
            meta = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"checkpoint {path} is damaged ({error})", "start again with --overwrite"
        ) from error
    if meta.get("model") != base.fingerprint():
        raise UserError(
            f"checkpoint {path} began with other model weights", "resume with the same model"
        )
    if meta.get("posterior") != strategy.model.posterior:
        raise UserError(
            f"checkpoint {path} is of posterior {meta.get('posterior')}",
            f"resume with it, not with {strategy.model.posterior}",
        )

    def part(name: str) -> dict[str, torch.Tensor]:
        return {k.removeprefix(name): v for k, v in state.items() if k.startswith(name)}

    model = strategy.model
    try:
        changed = part("clip.")
        model.clip.model.load_state_dict({**model.clip.model.state_dict(), **changed})
        head = part("head.")
        model.head.load_state_dict(head)
        strategy.memory.load_state_dict(part("memory."))
        strategy.load_extra_state(part("strategy."))
        strategy.memory_views = state["memory_views"].to(model.clip.device)
        strategy.cache.use(model.clip)
        names, templates = json.loads(meta["text"])
        model.describe(names, templates)
    except (KeyError, RuntimeError, ValueError) as error:
        raise UserError(
            f"checkpoint {path} is not of such a run ({type(error).__name__})",
            "start again with --overwrite",
        ) from error
    strategy.clock.train_exp_counter = int(meta["done"])
    return int(meta["done"])
