"""What stands at the top of the page: a sentence, the figures of the end, what was run."""

from __future__ import annotations

from collections import Counter

from clapforget.report import tables, words
from clapforget.report.load import Run, mapping, number
from clapforget.report.load import text as string

__all__ = ["at_start", "cards", "facts", "reading"]


def facts(run: Run) -> list[tuple[str, str]]:
    """What was run, and how long it took."""
    keys = ("sequence", "strategy", "forgetter", "model", "pretrained", "data", "seed")
    facts = [(key, string(run.config.get(key), words.DASH) or words.DASH) for key in keys]
    return [*facts, ("took", words.seconds(_final(run, "seconds")))]


def _final(run: Run, key: str) -> float | None:
    """A number of the end: from the summary, or of the last experience of an unfinished run."""
    if run.summary or not run.events:
        return number(run.summary.get(key))
    if key == "seconds":
        return sum(event.seconds or 0.0 for event in run.events)
    return run.events[-1].metrics.get(key)


def at_start(run: Run, key: str) -> float | None:
    """A number of before the stream."""
    return number(mapping(run.summary.get("before")).get(key))


def _just_before(run: Run) -> float | None:
    """The strategy's accuracy on the forgotten classes one experience before their requests."""
    values = [
        tables.mean_accuracy(run.events[request.position - 1].strategy, request.classes)[0]
        for request in run.requests
        if request.position
    ]
    found = [value for value in values if value is not None]
    return sum(found) / len(found) if found else None


def cards(run: Run) -> list[dict[str, str]]:
    """The large figures, each with what it was before."""
    beside = {
        "retain_accuracy": ("zero-shot before", at_start(run, "zero_shot_retain_accuracy")),
        "forget_accuracy": ("just before the requests", _just_before(run)),
        "zero_shot_retain_accuracy": ("before", at_start(run, "zero_shot_retain_accuracy")),
        "bystander_accuracy": ("before", at_start(run, "bystander_accuracy")),
    }
    cards = []
    for key, (title, what) in words.CARDS.items():
        value = _final(run, key)
        card = {"key": key, "title": title, "what": what, "label": "", "before": ""}
        if key in beside:
            label, before = beside[key]
            card |= {"value": words.percent(value), "label": label}
            card["before"] = words.percent(before)
        else:
            card["value"] = words.points(value)
        cards.append(card)
    return cards


def reading(run: Run) -> str:
    """One sentence for somebody who reads no further."""
    parts = []
    if run.requests:
        counts = Counter(request.verdict or "without a verdict" for request in run.requests)
        done = counts.pop("forgotten", 0)
        total = len(run.requests)
        said = [f"{done} of {total} request{'s' * (total != 1)} forgotten"]
        parts.append(", ".join([*said, *(f"{n} {verdict}" for verdict, n in counts.items())]))
    else:
        parts.append("nothing was to be forgotten")
    end, start = _final(run, "retain_accuracy"), at_start(run, "zero_shot_retain_accuracy")
    if end is not None and start is not None:
        parts.append(
            f"retained classes went from {words.percent(start)} zero-shot to {words.percent(end)}"
        )
    elif end is not None:
        parts.append(f"retained classes are at {words.percent(end)}")
    end, start = _final(run, "bystander_accuracy"), at_start(run, "bystander_accuracy")
    if end is not None and start is not None:
        parts.append(f"bystanders {words.percent(start)} → {words.percent(end)}")
    sentence = "; ".join(parts)
    return sentence[0].upper() + sentence[1:] + "."
