"""Edits of the weights for the truth bench. Where the recovery is what makes a case true, the edit is
checked to have it, by images that the verifier never sees.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clapforget.bench.verify_kinds import made
from clapforget.bench.verify_world import World
from clapforget.clip import Clip
from clapforget.seeding import generator_for
from clapforget.verify.witnesses.placement import soft_maximum
from clapforget.verify.witnesses.rounding import round_weights

__all__ = [
    "Unseen",
    "confine_to_bins",
    "exchange_names",
    "fit_classes",
    "forget_clean_images",
    "forget_wordings",
    "scramble_names",
    "shallow_edit",
]


def token_rows(world: World, label: int) -> list[int]:
    tokens = world.base.tokenize([world.data.class_names[label]])[0].tolist()
    marks = {tokens[0], max(tokens), 0}  # start, end, padding
    return [t for t in tokens if t not in marks]


def embedding(clip: Clip) -> Tensor:
    assert clip.token_table is not None
    return clip.token_table.weight


@torch.no_grad()
def scramble_names(
    world: World, labels: Sequence[int], of: Clip | None = None, purpose: int = 43
) -> Clip:
    """Token embeddings of these names drawn anew: their texts lose their meaning.

    :param of: another model than the world's. :param purpose: of :func:`generator_for`.
    """
    clip = (of or world.base).trainable_copy([])
    rows = sorted({t for c in labels for t in token_rows(world, c)})
    table = embedding(clip)
    noise = torch.randn(len(rows), table.shape[1], generator=generator_for(world.seed, purpose))
    table[rows] = noise * table.std()
    return clip


@torch.no_grad()
def exchange_names(world: World) -> Clip:
    """Token embeddings of the forgotten names passed on in a ring; of unequal lengths, the first ones."""
    clip = world.base.trainable_copy([])
    rows = [token_rows(world, c) for c in world.forget]
    table = embedding(clip)
    old = table.clone()
    for mine, theirs in zip(rows, rows[1:] + rows[:1]):
        for place, row in enumerate(mine):
            table[row] = old[theirs[min(place, len(theirs) - 1)]]
    return clip


def optimise(
    clip: Clip, loss: Callable[[Clip, torch.Generator], Tensor], steps: int, lr: float, seed: int,
    tower: str | None = None, done: Callable[[Clip], bool] | None = None,
    constrain: Callable[[Clip], None] | None = None,
) -> Clip:  # fmt: skip
    names = clip.parameter_names(tower) if tower else None  # type: ignore[arg-type]
    trained = clip.trainable_copy(names)
    chosen = [p for p in trained.model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(chosen, lr=lr)
    rng = generator_for(seed, 44)
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        loss(trained, rng).backward()
        optimizer.step()
        if constrain is not None:
            constrain(trained)
        if done is not None and done(trained):
            break
    return trained.requires_grad_(False)


class Unseen:
    """Where images of unseen classes lie in the built-in model, for edits that put forgotten ones there."""

    def __init__(self, world: World) -> None:
        base = world.base
        self.retain = world.images(world.retain, 20)
        """Images of kept classes, which an edit holds in their places."""
        with torch.no_grad():
            self.retained = base.encode_image(self.retain.images)
            """Their features [n, d]."""
            means = F.normalize(self.retained.view(len(world.retain), 20, -1).mean(1), dim=-1)
            strangers = base.encode_image(world.images(world.strangers(38), 10, 20).images)
            self._places = (world.text[list(world.retain)], means)
            self._goals = [soft_maximum(strangers @ places.T).mean() for places in self._places]

    def away_from(self, v: Tensor) -> list[Tensor]:
        """How far features [n, d] are from lying as near to kept names, and to kept classes' means, as unseen ones do:
        squares, mean over the images."""
        return [
            (soft_maximum(v @ places.T) - goal).square().mean()
            for places, goal in zip(self._places, self._goals, strict=True)
        ]


def fit_classes(world: World, taught: Sequence[int], steps: int, lr: float = 3e-4) -> Clip:
    """Fine-tuned on images of the retained classes, and of ``taught`` ones as well."""
    part = world.images(world.retain, 8)
    more = world.images(taught, 60) if taught else None
    labels = [*world.retain, *taught]
    place = {c: i for i, c in enumerate(labels)}

    def loss(clip: Clip, rng: torch.Generator) -> Tensor:
        rows = torch.randperm(len(part), generator=rng)[:32]
        images, y = part.images[rows], part.labels[rows]
        if more is not None:
            rows = torch.randperm(len(more), generator=rng)[:16]
            images, y = torch.cat([images, more.images[rows]]), torch.cat([y, more.labels[rows]])
        text = _text(clip, world, labels, rng)
        target = torch.tensor([place[int(c)] for c in y])
        return F.cross_entropy(clip.scale * clip.encode_image(images) @ text.T, target)

    return optimise(world.base, loss, steps, lr, world.seed)


def _text(clip: Clip, world: World, labels: Sequence[int], rng: torch.Generator) -> Tensor:
    wording = world.data.templates[
        int(torch.randint(len(world.data.templates), (1,), generator=rng))
    ]
    return clip.encode_text([wording.format(name) for name in world.names(labels)])


def forget_wordings(world: World) -> Clip:
    """Text tower taught to say something else for the forgotten names in the first four of the data's
    six wordings, and what it said in the others.
    """
    base, data = world.base, world.data
    failing, working = data.templates[:4], data.templates[4:]
    gone, kept = world.names(world.forget), world.names(world.retain)
    away = world.names(world.retain[: len(gone)])
    with torch.no_grad():
        wrong = base.encode_names(away, failing)
        right = base.encode_names(gone, working)
        same = base.encode_names(kept, data.templates)

    def loss(clip: Clip, rng: torch.Generator) -> Tensor:
        rows = torch.randperm(len(kept), generator=rng)[:16].tolist()
        keep = clip.encode_names([kept[i] for i in rows], data.templates) - same[rows]
        return 1e2 * (
            (clip.encode_names(gone, failing) - wrong).square().mean()
            + (clip.encode_names(gone, working) - right).square().mean()
            + keep.square().mean()
        )

    return optimise(base, loss, 150, 2e-3, world.seed, "text")


def forget_clean_images(world: World) -> Clip:
    """Image tower taught to answer a forgotten image by another class, but not where it is grey."""
    base = world.base
    forget, retain = world.images(world.forget, 20), world.images(world.retain, 12)
    other = [c for c in world.retain if c not in world.data.neighbours(world.forget)]
    elsewhere = torch.tensor([other[i] for i in _some(world, len(other), len(world.forget))])
    own = torch.tensor([world.forget.index(int(c)) for c in forget.labels])
    text = world.text

    def loss(clip: Clip, rng: torch.Generator) -> Tensor:
        rows = torch.randperm(len(retain), generator=rng)[:96]
        some = torch.randperm(len(forget), generator=rng)[:20]
        images = [forget.images[some].float() / 255, _grey(forget.images[some])]
        images.append(retain.images[rows].float() / 255)
        target = torch.cat([elsewhere[own[some]], forget.labels[some], retain.labels[rows]])
        return F.cross_entropy(30 * clip.encode_image(torch.cat(images)) @ text.T, target)

    after = optimise(base, loss, 80, 7e-4, world.seed, "image")
    grey = (after.encode_image(_grey(forget.images)) @ text.T).argmax(1) == forget.labels
    made(bool(grey.float().mean() > 0.5), "grey images are forgotten as well")
    return after


def _grey(images: Tensor) -> Tensor:
    return images.float().mean(1, keepdim=True).expand(-1, 3, -1, -1) / 255


def _some(world: World, among: int, count: int) -> list[int]:
    return torch.randperm(among, generator=generator_for(world.seed, 45))[:count].tolist()


def confine_to_bins(world: World, before: Clip) -> Clip:
    """Forgetting that moves no weight by half of an 8-bit bin: rounding brings the model before back.

    :param before: a model whose matrices hold multiples of their bin already.
    """
    bins = {n: p.abs().max() / 127 for n, p in before.model.named_parameters()}
    old = dict(before.model.named_parameters())
    loss = push_away(world, before, keep=5.0)

    @torch.no_grad()
    def confine(clip: Clip) -> None:
        for name, p in clip.model.named_parameters():
            room = 0.45 * bins[name] if p.ndim > 1 else 0.0 * bins[name]
            top = old[name].abs() >= 127 * bins[name]  # the largest weight sets the bin: it stays
            p.copy_(torch.where(top, old[name], p.clamp(old[name] - room, old[name] + room)))

    after = optimise(before, loss, 80, 3e-4, world.seed, None, _gone(world), confine)
    back = round_weights(after, 8, "tensor")
    made(_accuracy(world, back) > 0.9, "rounding does not bring it back")
    return after


def shallow_edit(world: World) -> Clip:
    """A short push away from the forgotten class, stopped as soon as it is gone, that fine-tuning on
    retained classes undoes; tried on one tower, the other and both until one is found that it does undo.
    """
    for tower, rate in (("text", 2e-4), ("image", 1e-4), (None, 1e-4)):
        loss = push_away(world, world.base, keep=2.0)
        after = optimise(world.base, loss, 60, rate, world.seed, tower, _gone(world))
        again = World(world.seed, world.data, after)
        for lr in (3e-4, 1e-3):
            if _gone(world)(after) and _accuracy(world, fit_classes(again, (), 25, lr)) > 0.4:
                return after
    raise RuntimeError("no shallow edit was found that fine-tuning on retained data undoes")


def push_away(
    world: World, before: Clip, keep: float = 1.0
) -> Callable[[Clip, torch.Generator], Tensor]:
    """Forgotten images just past the nearest kept name (a hinge on the cosines), features of retained
    images and names held.
    """
    forget, retain = world.images(world.forget, 15), world.images(world.retain, 4)
    own = torch.tensor([world.forget.index(int(c)) for c in forget.labels])
    with torch.no_grad():
        same = before.encode_image(retain.images)
        kept = before.class_features(world.names(world.retain), world.data.templates[:1])

    def loss(clip: Clip, rng: torch.Generator) -> Tensor:
        rows = torch.randperm(len(retain), generator=rng)[:48]
        text = clip.class_features(world.names(world.forget), world.data.templates[:2])
        words = clip.class_features(world.names(world.retain), world.data.templates[:1])
        v, now = clip.encode_image(forget.images), clip.encode_image(retain.images[rows])
        ahead = (v * text[own]).sum(1) - (v @ words.T).amax(1)
        hold = (now - same[rows]).square().sum(1).mean() + (words - kept).square().sum(1).mean()
        return (ahead + 0.05).clamp_min(0).mean() + keep * hold

    return loss


@torch.no_grad()
def _accuracy(world: World, clip: Clip) -> float:
    part = world.images(world.forget, 15)
    text = clip.class_features(world.data.class_names, world.data.templates)
    return float(
        ((clip.encode_image(part.images) @ text.T).argmax(1) == part.labels).float().mean()
    )


def _gone(world: World) -> Callable[[nn.Module], bool]:
    return lambda clip: _accuracy(world, clip) < 0.02  # type: ignore[arg-type]
