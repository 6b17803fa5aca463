"""How fast it comes back from 1, 5 and 20 images a class."""

from __future__ import annotations

import numpy as np
import torch

from clapforget.clip import Clip
from clapforget.verify.material import Material, Part
from clapforget.verify.reading import Reading, witness
from clapforget.verify.subject import Subject
from clapforget.verify.witnesses.training import fit, some_names

__all__ = ["SHOTS", "STEPS", "relearning"]

SHOTS = (1, 5, 20)
STEPS = (0, 2, 4, 8, 16)
_TESTED = 10


@witness("relearning", level="full")
def relearning(subject: Subject, m: Material, seed: int) -> list[Reading]:
    """Accuracy on test images over steps of relearning, and its area (the mean of the curve).

    Forgotten and unseen classes are learned together in one run, from equally many images each: at most as many as
    every class has (one run, where two would come to the same). The unseen ones show how fast something new is
    learned by this very model. Faster than they: something stayed. Slower: a scar (relearn time, Golatkar et al.
    2020; both directions are told).
    """
    if "forget" not in m.shots:
        return []
    tests = {k: m.test[k].first(_TESTED) for k in ("forget", "unseen") if k in m.test}
    given = [m.shots[k] for k in ("forget", "unseen") if k in m.shots]
    whole = Part(torch.cat([p.images for p in given]), torch.cat([p.labels for p in given]))
    most = int(whole.labels.unique(return_counts=True)[1].min())
    found: list[Reading] = []
    for place, count in enumerate(SHOTS):
        number = min(count, most)
        if place and number <= SHOTS[place - 1]:
            break  # the run before had all that there is
        part = whole.first(number)
        labels = torch.tensor(some_names(m, part.classes(), seed))
        curves: dict[str, list[np.ndarray]] = {k: [] for k in tests}

        def look(clip: Clip, step: int, curves: dict[str, list[np.ndarray]] = curves,
                 labels: torch.Tensor = labels) -> None:  # fmt: skip
            text = clip.class_features([m.names[c] for c in labels.tolist()], m.templates[:1])
            for name, test in tests.items():
                best = labels[(clip.encode_image(test.images) @ text.T).argmax(1).cpu()]
                curves[name].append((best == test.labels).numpy().astype(float))

        fit(subject.clip, part, m, labels.tolist(), STEPS, look, seed)
        area = {k: np.mean(v, axis=0) for k, v in curves.items()}
        reading = Reading(
            f"relearning_{count}", f"relearned from {number} image{'s' * (number > 1)} a class (mean of the curve)",
            "attack", area["forget"], tests["forget"].labels.numpy(), role="accuses", margin=0.5,
            curve={k: [float(np.mean(x)) for x in v] for k, v in curves.items()}, curve_at=STEPS,
        )  # fmt: skip
        if "unseen" in tests:
            reading.unseen, reading.unseen_labels = area["unseen"], tests["unseen"].labels.numpy()
        found.append(reading)
    return found
