"""Ours: a forgotten name becomes a stranger, a name that the model has never met.

A model that was never taught a name still gives it some text feature, and images some cosine with it.
For lack of a twin the best guess of both is what the model makes of *other* names it never met. With g
the text tower, ⁰ the model before, n a name to forget and w a prompt template:

=================  =================================================================================
strange words      made up from the seed; they share no token with any name or template
own tokens of n    tokens of n that no kept text has: names of the vocabulary and of the retain pairs
by rows            where n has own tokens, their rows of the embedding table are drawn anew from
                   N(m, diag s²), m and s² the mean and variance of the strange words' rows; K draws
by training        where it has none (or ``rows=False``): K strange words are its candidates, and the
                   text tower is trained for g(w(n)) to be g⁰(w(stand-in)) and for g(w(k)) to stay
                   g⁰(w(k)), k the kept names and strange words:
                   ``mean 1 − cos`` of the first + λ ``mean 1 − cos`` of the second
stand-in           of the K candidates the one whose cosine with n's images is nearest to the mean
                   over all K, which is what not knowing looks like, among those that would answer for
                   fewest of the images; none stands in for two names
=================  =================================================================================

Two-sided by construction: a stranger is as near to the images, and to all else, as a name that means
nothing; a matched cosine pushed lower gives the request away. By rows no gradient is taken, the old rows
are gone from the weights, and every text without those tokens has the feature it had, to the last bit:
no bystander can be harmed whose name is not made of them. Whoever uses such a token for something else,
in a text that was not shown as kept, loses it with the name.

The claim is about the association of name and images: the image tower is not touched, and other words
for the same thing (synonyms, plurals) stay known unless they are given as names to forget. A name that
the retain set shows too (single samples of a class that stays) is left as it is: a model without those
samples would know it. Captions are taken as one concept, whose own tokens are those of more than half of
them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from clapforget.clip import Clip
from clapforget.errors import UserError, check_most
from clapforget.prefix import Prefix
from clapforget.seeding import generator_for
from clapforget.unlearn.base import FORGETTERS, ForgetTask, Forgetter, Unlearned
from clapforget.unlearn.losses import matched_cosine_loss
from clapforget.unlearn.parameters import trainable_copy
from clapforget.unlearn.strangers import (
    choose_stand_ins,
    own_tokens,
    strange_words,
    text_tokens,
)

__all__ = ["Stranger", "StrangerSettings"]


@dataclass(frozen=True)
class StrangerSettings:
    """How many strangers are asked; how names without own tokens are trained (Adam, rate to 0)."""

    rows: bool = True
    strangers: int = 32
    """K."""
    asked: int = 16
    """Texts of a concept at most, evenly spread over its captions, by which its stranger is chosen."""
    lr: float = 2e-3
    steps: int = 80
    keep_weight: float = 30.0
    """λ."""
    batch: int = 128
    """Texts of either kind in a step."""

    def __post_init__(self) -> None:
        """:raises UserError: for numbers that cannot work."""
        for name in ("strangers", "asked", "steps", "batch"):
            if getattr(self, name) < 1:
                raise UserError(f"setting {name}={getattr(self, name)}", "give 1 or more")
        check_most(self, "forget", strangers=4096, lr=10)
        if self.keep_weight < 0:
            raise UserError(f"setting keep_weight={self.keep_weight}", "give 0 or more")
        if self.lr <= 0:
            raise UserError(f"setting lr={self.lr}", "give a positive number")


@dataclass
class _Concept:
    """What is forgotten as one: a name, or the captions of a request."""

    texts: list[str]
    images: Tensor
    """Unit features [n, d] of its images."""
    own: Tensor
    """Token ids [m]."""


@FORGETTERS.register("stranger")
class Stranger(Forgetter):
    """Makes the names to forget like names never met; the image tower stays."""

    Settings = StrangerSettings
    settings: StrangerSettings

    def unlearn(self, clip: Clip, task: ForgetTask) -> Unlearned:
        s = self.settings
        if not len(task.forget):
            raise UserError("the forget set is empty", "give the data to forget")
        rng = generator_for(task.seed, 3)
        names = set(task.forget.names)
        kept = [w for w in dict.fromkeys([*task.vocabulary, *task.retain.names]) if w not in names]
        stays = names & set(task.retain.names)
        changed = clip.trainable_copy([])
        result = Unlearned(changed, 0, {}, {"settings": asdict(s), "remarks": [
            f"{name}: other samples of it are to be kept, its name is left as it is"
            for name in sorted(stays)
        ]})  # fmt: skip
        concepts = self._concepts(clip, task, [*kept, *stays])
        if not concepts:
            return result
        known = [t.format(name) for name in [*names, *kept] for t in task.templates]
        words = strange_words(clip, known, s.strangers, rng)
        rest = clip.class_features([*kept, *stays], task.templates) if kept or stays else None
        by_rows = [c for c in concepts if len(c.own)]
        trained = [c for c in concepts if not len(c.own)]
        for how, some in (("by_rows", by_rows), ("trained", trained)):
            result.notes[how] = [c.texts[0] for c in some]
        levels = self._draw_rows(changed, task, by_rows, words, rest, rng)
        if trained:
            found, stand_ins = self._stand_ins(clip, task, trained, words, rest)
            levels += found
            keep = [*kept, *stays, *words]
            self._train(result, task, trained, stand_ins, keep, rng)
        result.notes["levels"] = dict(zip([c.texts[0] for c in by_rows + trained], levels))
        return result

    @torch.no_grad()
    def _concepts(self, clip: Clip, task: ForgetTask, kept: Sequence[str]) -> list[_Concept]:
        distinct = [name for name in dict.fromkeys(task.forget.names) if name not in set(kept)]
        captions = task.of_captions
        groups = [distinct] if captions and distinct else [[name] for name in distinct]
        texts = [t.format(name) for name in kept for t in task.templates]
        texts += [t.format("") for t in task.templates]
        v = clip.encode_image(task.forget.images)
        known = self.settings.rows and clip.token_table is not None
        concepts = []
        for group in groups:
            wanted = torch.tensor([name in set(group) for name in task.forget.names])
            own = own_tokens(clip, group, texts, 0.5 if captions else 0.0)
            concepts.append(_Concept(group, v[wanted.to(v.device)], own if known else own[:0]))
        return concepts

    @torch.no_grad()
    def _draw_rows(
        self, changed: Clip, task: ForgetTask, concepts: Sequence[_Concept], words: list[str],
        rest: Tensor | None, rng: torch.Generator,
    ) -> list[float]:  # fmt: skip
        """Draw the own tokens' rows of every concept anew, in place; return the levels."""
        if not concepts or changed.token_table is None:
            return []
        table = changed.token_table.weight
        strange = table[text_tokens(changed, words)].float()
        mean, std = strange.mean(0), strange.std(0)
        ids = torch.cat([c.own for c in concepts]).unique()
        shape = (self.settings.strangers, len(ids), table.shape[1])
        draws = (mean + std * torch.randn(shape, generator=rng).to(mean)).to(table)

        asked = [_spread(c.texts, self.settings.asked) for c in concepts]

        def features(k: int) -> list[Tensor]:
            table[ids] = draws[k]
            return [changed.class_features(texts, task.templates) for texts in asked]

        chosen, levels = _choose(concepts, features, len(draws), rest)
        for concept, k in zip(concepts, chosen):
            table[concept.own] = draws[k][torch.isin(ids, concept.own)]
        return levels

    @torch.no_grad()
    def _stand_ins(
        self, clip: Clip, task: ForgetTask, concepts: Sequence[_Concept], words: list[str],
        rest: Tensor | None,
    ) -> tuple[list[float], list[list[str]]]:  # fmt: skip
        """The level of every concept, and a strange word for each word of its texts."""

        def phrases(texts: Sequence[str], k: int) -> list[str]:
            turned = words[k:] + words[:k]
            counts = [len(text.split()) for text in texts]
            return [" ".join(turned[i % len(turned)] for i in range(n)) for n in counts]

        asked = [_spread(c.texts, self.settings.asked) for c in concepts]

        def features(k: int) -> list[Tensor]:
            return [clip.class_features(phrases(texts, k), task.templates) for texts in asked]

        chosen, levels = _choose(concepts, features, len(words), rest)
        return levels, [phrases(c.texts, k) for c, k in zip(concepts, chosen)]

    def _train(
        self, result: Unlearned, task: ForgetTask, concepts: Sequence[_Concept],
        stand_ins: Sequence[Sequence[str]], kept: Sequence[str], rng: torch.Generator,
    ) -> None:  # fmt: skip
        s, before = self.settings, result.clip
        changed, chosen = trainable_copy(before, "text", 1, 1, rng)

        def texts(of: Sequence[str]) -> Prefix:
            tokens = before.tokenize([t.format(name) for name in of for t in task.templates])
            return Prefix(before, "text", tokens, chosen)

        forget, keep = texts([text for c in concepts for text in c.texts]), texts(kept)
        target = texts([text for part in stand_ins for text in part]).reference
        optimizer = torch.optim.Adam(chosen.values(), lr=s.lr, betas=(0.9, 0.98))
        rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, s.steps)
        losses: dict[str, list[float]] = {"forgetting": [], "keeping": []}
        for step in range(s.steps):
            terms = []
            for part, goal in ((forget, target), (keep, keep.reference)):
                rows = torch.randperm(len(part), generator=rng)[: s.batch]
                cosines = (part(changed, rows) * goal[rows.to(goal.device)]).sum(-1)
                terms.append(matched_cosine_loss(cosines))
            optimizer.zero_grad(set_to_none=True)
            (terms[0] + s.keep_weight * terms[1]).backward()
            optimizer.step()
            rate.step()
            for name, value in zip(losses, terms):
                losses[name].append(round(value.item(), 6))
            task.progress(step + 1, s.steps)
        changed.requires_grad_(False)
        result.clip, result.steps, result.losses = changed, s.steps, losses


def _spread(texts: Sequence[str], most: int) -> list[str]:
    """At most so many of the texts, evenly spread, the first and the last among them."""
    if len(texts) <= most:
        return list(texts)
    return [texts[i] for i in torch.linspace(0, len(texts) - 1, most).long().tolist()]


def _choose(
    concepts: Sequence[_Concept], features: Callable[[int], list[Tensor]], count: int,
    rest: Tensor | None,
) -> tuple[list[int], list[float]]:  # fmt: skip
    """Each concept's candidate, and its level. :param features: of a candidate's texts by concept."""
    cosines = torch.zeros(len(concepts), count)
    answers = torch.zeros(len(concepts), count)
    for k in range(count):
        for i, (concept, t) in enumerate(zip(concepts, features(k))):
            cosine = concept.images @ t.mean(0)
            cosines[i, k] = cosine.mean().item()
            if rest is not None:
                best = (concept.images @ rest.T).max(1).values
                answers[i, k] = (concept.images @ t.T).max(1).values.gt(best).float().mean().item()
    return choose_stand_ins(cosines, answers), [round(x, 6) for x in cosines.mean(1).tolist()]
