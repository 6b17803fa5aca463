"""From evidence to one of five words, by rules that are few and written down.

In this order; the first that fires decides:

1. **damaged**: something that was to be kept lost more than ``damage_margin`` of accuracy, with
   the paired 95 % interval of the loss wholly above it: the strategy's retained classes or
   neighbours, bare CLIP's retained classes known from pretraining, neighbours or bystanders.
2. **inconclusive**: fewer than ``minimum_images`` test images of the forgotten classes.
3. **retained**: the system still answers: the interval of the forgotten classes' accuracy is
   wholly above ``answer_margin``. The answer is the strategy's where it has a head, else CLIP's. To the
   strategy's margin comes how often unseen images are taken for the class: where few classes were
   met, an image that fits none must be answered by one of them, and that is no memory.
4. **inconclusive**: that interval reaches across the margin.
5. **suppressed**: gone from the answers, still inside: bare CLIP's accuracy (or with its best
   wording) is above the reference by more than ``answer_margin``, interval and all; or the matched
   cosine kept more than ``residue`` of its lead over the reference; or the forgotten classes'
   posterior holds more than ``residue`` of the nats that the retained classes' hold.
6. **inconclusive**: nothing stands in for a model that never knew (no unseen classes, no twin).
7. **forgotten**.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from clapforget.verify.evidence import Evidence

__all__ = ["VERDICTS", "Judgement", "Rules", "judge"]

VERDICTS = ("forgotten", "suppressed", "retained", "damaged", "inconclusive")
_KEPT = ("retain_accuracy", "neighbours_accuracy", "clip_known_accuracy",
         "clip_neighbours_accuracy", "clip_bystanders_accuracy")  # fmt: skip


@dataclass(frozen=True)
class Rules:
    """The margins. Accuracies are fractions."""

    damage_margin: float = 0.05
    answer_margin: float = 0.10
    residue: float = 0.25
    minimum_images: int = 20


@dataclass
class Judgement:
    """A verdict with its reasons."""

    verdict: str
    rule: str
    weakest: str
    """The evidence that came closest to overturning a good verdict, or the one that decided."""
    claim: str
    not_tested: list[str] = field(default_factory=list)


def judge(evidence: list[Evidence], rules: Rules | None = None) -> Judgement:
    """Apply the rules; sets ``holds`` of every piece of evidence they look at."""
    rules = rules or Rules()
    found = {piece.name: piece for piece in evidence}
    damage = _damage(found, rules)
    inside = _inside(found, rules)
    answer = found.get("forget_accuracy") or found.get("clip_forget_accuracy")
    untested = [
        "relearning from a few images, probes and prototypes on the image features",
        "membership of single images",
        "rounding of the weights",
    ]
    claim = (
        "that the association between the name and its images is gone from the answers, from CLIP's "
        "text-image similarity and from the adapters' posterior; not that the image tower can no "
        "longer tell the images apart"
    )

    def say(verdict: str, rule: str, weakest: str) -> Judgement:
        return Judgement(verdict, rule, weakest, claim, untested)

    if answer is None:
        return say(
            "inconclusive", "2: no test image of the forgotten classes", "no answers were observed"
        )
    low, high = answer.interval
    allowed = rules.answer_margin
    if answer.name == "forget_accuracy" and answer.reference_interval is not None:
        allowed += answer.reference_interval[1]
    answer.holds = high <= allowed
    hurt = [piece for piece, excess in damage if excess > 0]
    if hurt:
        worst = max(hurt, key=lambda piece: piece.drop or 0)
        return say("damaged", f"1: more than {rules.damage_margin:.0%} was lost", _lost(worst))
    if answer.n < rules.minimum_images:
        need = rules.minimum_images - answer.n
        return say(
            "inconclusive", f"2: {answer.n} test images are too few", f"{need} more are needed"
        )
    shown = f"{answer.title}: {answer.value:.1%} [{low:.1%}, {high:.1%}]"
    if low > allowed:
        return say("retained", f"3: it still answers above {allowed:.0%}", shown)
    if high > allowed:
        wanted = _images_needed(allowed, answer.value)
        return say(
            "inconclusive", "4: the interval reaches across the margin", f"{shown}; {wanted}"
        )
    kept = [(piece, amount) for piece, amount in inside if amount > 1]
    if kept:
        worst = max(kept, key=lambda pair: pair[1])[0]
        return say("suppressed", "5: gone from the answers, still inside", _inside_text(worst))
    cosine = found.get("matched_cosine")
    if cosine is None or cosine.reference_name != "matched pairs of unseen classes":
        return say(
            "inconclusive", "6: no unseen classes to compare with", "give data of unseen classes"
        )
    nearest = [
        (1 + excess / max(rules.damage_margin, 1e-9), _lost(piece)) for piece, excess in damage
    ]
    nearest += [(amount, _inside_text(piece)) for piece, amount in inside]
    nearest.append((high / allowed, shown))
    return say(
        "forgotten", "7: gone from the answers and from what was looked at inside", max(nearest)[1]
    )


def _damage(found: dict[str, Evidence], rules: Rules) -> list[tuple[Evidence, float]]:
    """Kept things, with how far the lower end of their loss is above the margin."""
    pieces = [
        found[name] for name in _KEPT if name in found and found[name].drop_interval is not None
    ]
    result = []
    for piece in pieces:
        assert piece.drop_interval is not None
        piece.holds = piece.drop_interval[0] <= rules.damage_margin
        result.append((piece, piece.drop_interval[0] - rules.damage_margin))
    return result


def _inside(found: dict[str, Evidence], rules: Rules) -> list[tuple[Evidence, float]]:
    """What may still be inside, as a multiple of what the rules allow (above 1: too much)."""
    result = []
    for name in ("clip_forget_accuracy", "clip_forget_accuracy_best_prompt"):
        if piece := found.get(name):
            allowed = (piece.reference_interval or (0, 0))[1] + rules.answer_margin
            result.append((piece, piece.interval[0] / allowed))
    cosine = found.get("matched_cosine")
    if cosine and cosine.before is not None and cosine.reference is not None:
        lead = cosine.before - cosine.reference
        if lead > 0.05:  # else there was nothing to lose
            result.append((cosine, (cosine.interval[0] - cosine.reference) / lead / rules.residue))
    nats = found.get("posterior_nats")
    if nats and nats.reference:
        result.append((nats, nats.value / nats.reference / rules.residue))
    for piece, amount in result:
        piece.holds = amount <= 1
    return result


def _lost(piece: Evidence) -> str:
    low, high = piece.drop_interval or (0.0, 0.0)
    return f"{piece.title}: lost {piece.drop or 0:.1%} [{low:.1%}, {high:.1%}]"


def _inside_text(piece: Evidence) -> str:
    share = "accuracy" in piece.name
    value = f"{piece.value:.1%}" if share else f"{piece.value:.2f}"
    if piece.reference is None:
        return f"{piece.title}: {value}"
    reference = f"{piece.reference:.1%}" if share else f"{piece.reference:.2f}"
    return f"{piece.title}: {value} ({piece.reference_name}: {reference})"


def _images_needed(margin: float, value: float) -> str:
    """How many images would bring the interval clear of the margin at this value (normal rule)."""
    gap = abs(margin - value)
    if gap < 0.01:
        return "no affordable number of images would settle a value this close to the margin"
    return f"about {int(3.84 * max(value * (1 - value), 0.05) / gap**2) + 1} images would settle it"
