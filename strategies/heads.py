"""Every posterior, and every style of learned prompts without one, as a strategy of its own: the same
stream, memory and forgetters, another head."""

from __future__ import annotations

from clapforget.posterior import HEADS
from clapforget.prompts import PROMPTS, PromptSettings
from clapforget.strategies.clap_forget import build_clap_forget
from clapforget.strategies.registry import STRATEGIES, StrategyEntry
from clapforget.strategies.training import PRESETS

__all__: list[str] = []

STRATEGIES.register("clapforget")(
    StrategyEntry(
        build_clap_forget, "variational", extra={"prompt": PromptSettings}, presets=PRESETS
    )
)
for _name in PROMPTS.names():
    _presets = {"default": {"prompt.style": _name}}
    STRATEGIES.register(_name)(
        StrategyEntry(
            build_clap_forget, "prompted", extra={"prompt": PromptSettings}, presets=_presets
        )
    )
for _name in HEADS.names():
    if _name not in ("variational", "prompted"):
        STRATEGIES.register(_name)(StrategyEntry(build_clap_forget, _name))
