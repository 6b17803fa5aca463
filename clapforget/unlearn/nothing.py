"""Control: a forgetter that does nothing. Its verdict must be ``retained``."""

from __future__ import annotations

from clapforget.clip import Clip
from clapforget.unlearn.base import FORGETTERS, ForgetTask, Forgetter, Unlearned

__all__ = ["Nothing"]


@FORGETTERS.register("nothing")
class Nothing(Forgetter):
    """Leaves encoder and posterior as they are."""

    unlearns_posterior = False

    def unlearn(self, clip: Clip, task: ForgetTask) -> Unlearned:
        return Unlearned(clip)
