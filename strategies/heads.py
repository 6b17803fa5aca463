"""Every posterior as a strategy of its own: the same stream, memory and forgetters, another head."""

from __future__ import annotations

from clapforget.posterior import HEADS
from clapforget.strategies.clap_forget import build_clap_forget
from clapforget.strategies.registry import STRATEGIES, StrategyEntry
from clapforget.strategies.training import PRESETS

__all__: list[str] = []

STRATEGIES.register("clapforget")(StrategyEntry(build_clap_forget, "variational", presets=PRESETS))
for _name in HEADS.names():
    if _name != "variational":
        STRATEGIES.register(_name)(StrategyEntry(build_clap_forget, _name))
