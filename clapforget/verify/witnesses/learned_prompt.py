"""A prompt learned on a few forgotten images (CoOp): is there a wording that finds it?"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clapforget.prompts.insertion import encode_prompted
from clapforget.seeding import generator_for
from clapforget.verify.material import Material, Part
from clapforget.verify.reading import Reading, read, witness
from clapforget.verify.subject import Subject
from clapforget.verify.witnesses.training import some_names

__all__ = ["learn_context", "learned_prompt"]

_CONTEXT = 4
_SHOTS = 5
_STEPS = 20
_LR = 0.02


@witness("learned_prompt", level="full")
def learned_prompt(subject: Subject, m: Material, seed: int) -> list[Reading]:
    """Zero-shot accuracy with four context vectors before the name, learned by Adam on five attack
    images of each forgotten and each unseen class with the weights frozen (CoOp, Zhou et al. 2022).

    Needs a text tower with a table of token vectors (all of open_clip's own); else it is left out.
    """
    given = [m.shots[k].first(_SHOTS) for k in ("forget", "unseen") if k in m.shots]
    if not given or subject.clip.token_table is None:
        return []
    part = Part(torch.cat([p.images for p in given]), torch.cat([p.labels for p in given]))
    labels = some_names(m, part.classes(), seed)
    text = learn_context(subject, part, [m.names[c] for c in labels],
                         [labels.index(int(c)) for c in part.labels], seed)  # fmt: skip
    chosen = torch.tensor(labels, device=text.device)

    def right(test: Part) -> Tensor:
        best = chosen[(subject.features(test) @ text.T).argmax(1)]
        return (best == test.labels.to(best.device)).float()

    return [read("learned_prompt", "answered with a learned prompt", "attack", m, right,
                 role="accuses", margin=0.5)]  # fmt: skip


def learn_context(
    subject: Subject, part: Part, names: list[str], targets: list[int], seed: int
) -> Tensor:
    """Text features [C, d] of names behind a learned context.

    :param targets: place in ``names`` of each image of ``part``.
    """
    clip = subject.clip
    assert clip.token_table is not None
    tokens = clip.tokenize([" ".join(["a"] * _CONTEXT) + " " + name for name in names])
    start = clip.token_table.weight[tokens[0, 1]].detach()
    rng = generator_for(seed, 33)
    noise = torch.randn(_CONTEXT, len(start), generator=rng).to(start)
    context = (start + noise * start.std()).requires_grad_(True)
    features = subject.features(part)
    target = torch.tensor(targets, device=features.device)
    optimizer = torch.optim.Adam([context], lr=_LR)
    for _ in range(_STEPS):
        text = encode_prompted(clip, tokens, [context])
        loss = F.cross_entropy(clip.scale * features @ text.T, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return encode_prompted(clip, tokens, [context])
