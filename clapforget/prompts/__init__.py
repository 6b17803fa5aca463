"""Learned prompts: one file a style."""

from clapforget.prompts.base import PROMPTS, Prompt, PromptSettings, make_prompt

__all__ = ["PROMPTS", "Prompt", "PromptSettings", "make_prompt"]
