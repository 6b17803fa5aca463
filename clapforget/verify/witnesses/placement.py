"""Where the images lie: at a place of their own, or among the kept classes like any unseen one."""

from __future__ import annotations

from torch import Tensor

from clapforget.verify.material import Material, Part
from clapforget.verify.reading import Reading, read, witness
from clapforget.verify.subject import Subject

__all__ = ["SHARPNESS", "placement"]

SHARPNESS = 30.0
"""Of the soft maximum."""


@witness("placement")
def placement(subject: Subject, m: Material, seed: int) -> list[Reading]:
    """Soft maximum of the cosines with all *kept* names, ``log Σ_c exp(30 cos_c) / 30``: an energy
    (Liu et al. 2020) that leaves the own name out (a retained image's too).

    A class that the image tower has learned lies apart from every other name; images of a class
    that it never learned come to lie near names that resemble them. Nothing that is done to the text
    of the forgotten name changes it: it witnesses visual knowledge.
    """

    def look(part: Part) -> Tensor:
        similarity = subject.zero_shot(part, m.names, m.templates)
        own = part.labels.to(similarity.device)[:, None] == m.kept.to(similarity.device)
        kept = similarity[:, m.kept.to(similarity.device)].masked_fill(own, -1.0)
        return (SHARPNESS * kept).logsumexp(1) / SHARPNESS

    return [read("placement", "nearness of forgotten images to kept names", "visual", m, look,
                 share=False, margin=0.6, minimum_lead=0.02, known_is="low")]  # fmt: skip
