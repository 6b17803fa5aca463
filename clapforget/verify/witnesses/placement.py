"""Where the images lie: at a place of their own, or among the kept classes like any unseen one."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from clapforget.verify.material import Material, Part
from clapforget.verify.reading import Reading, read, witness
from clapforget.verify.subject import Subject

__all__ = ["placement", "soft_maximum"]

SHARPNESS = 30.0
"""Of the soft maximum."""


def soft_maximum(cosine: Tensor) -> Tensor:
    """``log Σ_c exp(30 cos_c) / 30`` over the last dimension of [n, C]."""
    return (SHARPNESS * cosine).logsumexp(-1) / SHARPNESS


@witness("placement")
def placement(subject: Subject, m: Material, seed: int) -> list[Reading]:
    """Soft maximum of the cosines with all *kept* names, ``log Σ_c exp(30 cos_c) / 30``: an energy
    (Liu et al. 2020) that leaves the own name out (a retained image's too).

    A class that the image tower has learned lies apart from every other name; images of a class
    that it never learned come to lie near names that resemble them. Nothing that is done to the text
    of the forgotten name changes it: it witnesses visual knowledge.

    The same beside the means of kept classes' attack images: there no text enters, so that kept names
    drawn near the forgotten images do not pass for the loss of a place.
    """

    def nearness(part: Part, places: Tensor) -> Tensor:
        kept = m.kept.to(places.device)
        own = part.labels.to(places.device)[:, None] == kept
        cosine = (subject.features(part) @ places.T).masked_fill(own, -1.0)
        return soft_maximum(cosine)

    def by(name: str, title: str, places: Tensor, margin: float) -> Reading:
        return read(name, f"nearness of forgotten images to {title}", "visual", m,
                    lambda part: nearness(part, places), share=False, margin=margin, minimum_lead=0.02,
                    known_is="low")  # fmt: skip

    names = subject.names(m.names, m.templates)[m.kept.to(subject.clip.device)]
    found = [by("placement", "kept names", names, 0.6)]
    shots = m.shots.get("retain")
    if shots is not None and shots.classes() == sorted(m.retain):
        v = subject.features(shots)
        member = (m.kept[:, None] == shots.labels[None]).to(v)
        found.append(
            by("placement_images", "images of kept classes", F.normalize(member @ v, dim=-1), 0.75)
        )
    return found
