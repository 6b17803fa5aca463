"""Whether a device has bfloat16, against what the kernel says of the processor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from clapforget import load_clip
from clapforget.errors import UserError
from clapforget.posterior import ClapSettings
from clapforget.processor import has_bfloat16
from clapforget.strategies import ClapForget

_CPU = torch.device("cpu")


def flags() -> set[str]:
    told = Path("/proc/cpuinfo")
    if not told.is_file():
        pytest.skip("only Linux says")
    lines = [
        line
        for line in told.read_text().lower().splitlines()
        if line.startswith(("flags", "features"))
    ]
    return set(" ".join(lines).replace(":", " ").split())


def test_a_cpu_has_what_its_flags_say() -> None:
    assert has_bfloat16(_CPU) == bool(flags() & {"avx512_bf16", "amx_bf16", "bf16"})


def test_older_torch_tells_by_single_questions_or_not_at_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("get_capabilities", "_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert not has_bfloat16(_CPU)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    assert not has_bfloat16(_CPU)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    assert has_bfloat16(_CPU)


def test_a_device_of_another_kind_is_not_said_to_have_it() -> None:
    assert not has_bfloat16(torch.device("meta"))


@pytest.mark.parametrize("says", [True, False])
def test_a_strategy_refuses_bfloat16_where_there_is_none(
    monkeypatch: pytest.MonkeyPatch, says: bool
) -> None:
    told = dict.fromkeys(("avx512_bf16", "amx_bf16"), says)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told, raising=False)
    model, half = load_clip("lab-tiny"), ClapSettings(precision="bfloat16")
    if says:
        ClapForget(model, head=half, certify=False)
        return
    with pytest.raises(
        UserError, match=r"clap.precision=bfloat16: this cpu.*use clap.precision=float32"
    ):
        ClapForget(model, head=half, certify=False)
    ClapForget(model, certify=False)
