"""Control: a forgetter that only pretends. Its verdict must be ``suppressed``."""

from __future__ import annotations

from clapforget.clip import Clip
from clapforget.unlearn.base import FORGETTERS, ForgetTask, Forgetter, Unlearned

__all__ = ["Hide"]


@FORGETTERS.register("hide")
class Hide(Forgetter):
    """Takes the class's name out of the head's answers and touches nothing else."""

    hides = True
    unlearns_posterior = False

    def unlearn(self, clip: Clip, task: ForgetTask) -> Unlearned:
        return Unlearned(clip)
