"""Fine-tuning on retained classes alone: does the forgotten one come back by itself?"""

from __future__ import annotations

import numpy as np

from clapforget.clip import Clip
from clapforget.verify.material import Material
from clapforget.verify.reading import Reading, witness
from clapforget.verify.subject import Subject
from clapforget.verify.witnesses.training import fit, some_names

__all__ = ["RATES", "STEPS", "resurfacing"]

STEPS = (0, 4, 10, 24)
RATES = (3e-4, 1e-3)


@witness("resurfacing", level="full")
def resurfacing(subject: Subject, m: Material, seed: int) -> list[Reading]:
    """Zero-shot accuracy among all names while a copy is fine-tuned on attack images of retained
    classes only, at the step and rate where it is highest (arXiv 2505.22310).

    Only kept names are trained: nothing of the forgotten class, not even its name, takes part.
    """
    given = m.shots.get("retain")
    if given is None or not len(given):
        return []
    part = given.of(some_names(m, (), seed))
    tests = {k: m.test[k] for k in ("forget", "unseen") if k in m.test}
    seen: dict[str, list[np.ndarray]] = {k: [] for k in tests}

    def look(clip: Clip, step: int) -> None:
        text = clip.class_features(m.names, m.templates[:1])
        for name, test in tests.items():
            best = (clip.encode_image(test.images) @ text.T).argmax(1).cpu()
            seen[name].append((best == test.labels).numpy().astype(float))

    for rate in RATES:
        fit(subject.clip, part, m, part.classes(), STEPS, look, seed, rate)

    def pick(v: list[np.ndarray]) -> np.ndarray:
        return v[int(np.argmax([x.mean() for x in v]))]

    curve = {k: [float(x.mean()) for x in v[: len(STEPS)]] for k, v in seen.items()}
    reading = Reading(
        "resurfacing", "zero-shot after fine-tuning on retained classes only (the highest of the curve)",
        "attack", pick(seen["forget"]), tests["forget"].labels.numpy(), curve=curve, curve_at=STEPS,
    )  # fmt: skip
    if "unseen" in tests:
        reading.unseen, reading.unseen_labels = pick(seen["unseen"]), tests["unseen"].labels.numpy()
    return [reading]
