"""What the processor that a model runs on can do."""

from __future__ import annotations

import torch

__all__ = ["has_bfloat16"]


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies matrices in bfloat16 itself; where it does not, torch emulates it, many
    times slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    tell = getattr(torch.cpu, "get_capabilities", None)
    if tell is not None:
        return any(tell().get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    older = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in older)
