"""What the report calls things, and how it writes numbers."""

from __future__ import annotations

__all__ = [
    "CARDS", "COURSE", "DASH", "GLOSSARY", "GROUPS", "MEASURES", "NOVELTY", "SAID", "SCORES", "TASKS", "VERDICTS",
    "amount", "badge", "percent", "points", "seconds",
]  # fmt: skip

DASH = "–"
"""Stands for every number that a run does not have."""

VERDICTS = {
    "forgotten": ("✓", "what the model says about the data is what never having known looks like"),
    "suppressed": ("◐", "gone from the outputs, still inside the model"),
    "retained": ("●", "the model still knows it"),
    "damaged": ("✕", "the request forgot more than was asked"),
    "inconclusive": ("?", "the evidence does not decide"),
}
"""Verdict: a mark that tells it apart without colour, and what it means."""

GROUPS = {
    "behaviour": "Behaviour of the strategy",
    "clip": "The bare CLIP model",
    "posterior": "The posterior as witness",
    "visual": "What the image tower still knows",
    "attack": "Attacks",
    "head": "What the head stores",
    "twin": "Beside the twin",
}

MEASURES = {
    "retain_accuracy": "Retained classes, strategy",
    "forget_accuracy": "Forgotten classes, strategy",
    "average_accuracy": "Average accuracy, mean over the stream",
    "last_accuracy": "Last accuracy, mean over tasks",
    "task_aware_accuracy": "The same where the task is told",
    "backward_transfer": "Backward transfer",
    "forgetting": "Unasked forgetting",
    "forward_transfer": "Forward transfer, bare CLIP",
    "ece": "Expected calibration error",
    "legacy_ece": "The same by batches of 32 (legacy)",
    "brier": "Brier score, 0 to 2",
    "nll": "Negative log likelihood, nats",
    "zero_shot_retain_accuracy": "Retained classes, bare CLIP",
    "zero_shot_forget_accuracy": "Forgotten classes, bare CLIP",
    "bystander_accuracy": "Bystanders, bare CLIP",
    "spill": "Spill",
    "relapse": "Relapse",
    "persistence": "Persistence of what was forgotten",
}

COURSE = {
    "persistence": ("Persistence", "classes forgotten that stayed so", "forget", True),
    "relapse": ("Relapse", "largest rise since a request", "forget", True),
    "spill": ("Spill", "retained accuracy lost in a request", "retain", True),
    "seconds": ("Seconds", "each experience took", "zero-shot", False),
}
"""Lines over the stream: title, what the number is, colour, whether it is a fraction."""

TASKS = {
    "zero_shot": "Zero-shot classification",
    "image_retrieval@1": "Image retrieval, R@1",
    "image_retrieval@5": "Image retrieval, R@5",
    "image_retrieval@10": "Image retrieval, R@10",
    "text_retrieval@1": "Text retrieval, R@1",
    "text_retrieval@5": "Text retrieval, R@5",
    "text_retrieval@10": "Text retrieval, R@10",
    "matching_accuracy": "Image–text matching, two-way choice",
    "matching_auc": "Image–text matching, area under the ROC curve",
}
"""The four CLIP tasks around a request."""

CARDS = {
    "retain_accuracy": ("Retained classes", "strategy, at the end"),
    "forget_accuracy": ("Forgotten classes", "strategy, at the end"),
    "zero_shot_retain_accuracy": ("Retained, bare CLIP", "zero-shot, at the end"),
    "bystander_accuracy": ("Bystanders", "bare CLIP, at the end"),
    "spill": ("Spill", "lost by forgetting"),
    "relapse": ("Relapse", "came back later"),
}
"""The headline numbers: title and what the number is."""

SAID = {
    "rule": "Rule",
    "weakest": "Weakest point",
    "claim": "Claim",
    "reference": "Reference",
    "level": "Level",
}
"""What a certificate says in words, by its key."""

SCORES = {
    "entropy": ("Entropy", "how spread the prediction is, in nats"),
    "expected_entropy": ("Expected entropy", "spread that more data would not remove, in nats"),
    "mutual_information": ("Mutual information", "doubt about the weights themselves, in nats"),
    "variance": ("Variance", "how far draws from the posterior disagree"),
    "matched_cosine": ("Matched cosine", "likeness of an image and its own caption"),
    "energy": ("Energy", "the higher, the more familiar"),
    "placement": ("Placement", "nearness to kept names: what the image tower learned lies apart"),
    "conformal_size": ("Conformal set", "how many names a 90 % set holds"),
    "nats": ("Nats over prior", "what the posterior has learned beyond its prior"),
}

NOVELTY = {
    "energy": "energy",
    "max_softmax": "largest probability",
    "entropy": "entropy",
    "mutual_information": "mutual information",
    "logit_variance": "variance of logits",
    "softmax_variance": "variance of softmax",
}
"""Scores that tell learned from novel data."""

GLOSSARY = {
    "Learn and forget requests": "What the stream is made of: an ordered list of requests to learn "
    "some classes or to forget some.",
    "Forget set, retain set": "The data named by a forget request; everything learned and not "
    "forgotten.",
    "Zero-shot": "The bare CLIP model choosing among all class names, without the adapters.",
    "Unseen": "Data of classes that the model has never learned: the stand-in for the twin where "
    "no twin exists. Forgotten data should look like them.",
    "Twin": "The model that lived through the same stream without ever seeing the forgotten data "
    "(retrained). The gold standard.",
    "Neighbour": "A retained class that resembles a forgotten one. Forgetting too much shows here "
    "first.",
    "Bystander": "A class the model knows from pretraining that neither the request nor the "
    "exemplar memory shows. Harm to bystanders is invisible to a forget/retain split.",
    "Spill": "Loss on retained classes caused by a forget request.",
    "Relapse": "A forgotten class that comes back after later learning.",
    "Nats over prior": "How much the posterior over the class weights knows beyond its prior, in "
    "nats (one nat is about 1.44 bits). A class never learned has none.",
    "Witness": "One way to read off a model, for forgotten and for unseen images alike, what it still "
    "knows. Some must be shown to lie near the reference, others are heard only when they accuse.",
    "Evidence": "One number with its confidence interval, its reference and the direction it "
    "should go.",
    "Backward, forward transfer": "What later learning did to earlier tasks; what earlier requests "
    "did to tasks before they were learned. Above zero is gain.",
    "Unasked forgetting": "Mean fall of a task from its best accuracy to the last one, on classes "
    "that nobody asked to forget.",
    "AUROC, AUPR, FPR95": "How well a score tells learned from novel images: the chance that a "
    "learned one scores higher; the average precision; the part of the novel ones accepted where "
    "95 % of the learned ones are.",
    "Expected calibration error": "The mean gap between how sure the prediction is and how often "
    "it is right. Zero is perfect.",
}


def percent(value: float | None, sign: bool = False) -> str:
    """A fraction as a percentage with one decimal."""
    if value is None:
        return DASH
    shown = f"{100 * value:{'+' if sign else ''}.1f}"
    return ("0.0" if float(shown) == 0 else shown).replace("-", "−") + "%"


def points(value: float | None, sign: bool = False) -> str:
    """A difference of two fractions, in percentage points."""
    return DASH if value is None else percent(value, sign)[:-1] + " pts"


def amount(value: float | None) -> str:
    """A number of unknown unit, to about three figures."""
    if value is None:
        return DASH
    size = abs(value)
    if value == 0 or 0.001 <= size < 10:
        shown = f"{value:.3f}"
    elif size < 0.001 or size >= 1e6:
        shown = f"{value:.1e}"
    else:
        shown = f"{value:.{1 if size < 100 else 0}f}"
    return shown.replace("-", "−", 1) if value < 0 else shown


def seconds(value: float | None) -> str:
    """A duration for people."""
    if value is None:
        return DASH
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def badge(verdict: str | None) -> dict[str, str]:
    """Mark, text and style of a verdict; an unknown one is shown in its own words, plainly."""
    mark, meaning = VERDICTS.get(verdict or "", ("?", ""))
    style = verdict if verdict in VERDICTS else "inconclusive"
    return {"text": verdict or "no verdict", "style": str(style), "mark": mark, "meaning": meaning}
