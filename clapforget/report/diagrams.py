"""The figures on whether what is claimed can be trusted: reliability, detection of novel data, and what
the verifier's witnesses said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.ticker import PercentFormatter
from scipy.stats import binomtest

from clapforget.report.canvas import COLOURS, new_figure, style, svg

__all__ = ["Witness", "attack", "auroc_dots", "reliability", "witnesses"]

_SHOWN = (-1.0, 1.6)  # of the witnesses' scale; what lies beyond is drawn at the edge


def reliability(
    counts: Sequence[float], confidence: Sequence[float], accuracy: Sequence[float]
) -> str:
    """Reliability diagram: how often the prediction is right where it is so sure, and below how
    many images are. The gap to the mean confidence has one colour where it is too sure, and
    another where it is not sure enough; the intervals are Wilson's, 95 %.

    :param counts: images in each of n equal-width bins of confidence, at least one in all.
    :param confidence, accuracy: their means in each bin, fractions.
    """
    n, total = len(counts), sum(counts)
    with style():
        figure = new_figure(340, 340)
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4.2, 1))
        figure.subplots_adjust(left=0.15, right=0.94, top=0.98, bottom=0.13, hspace=0.1)
        upper.plot([0, 1], [0, 1], color=COLOURS["muted"], lw=1.2, ls=(0, (4, 3)), zorder=4)
        for b in range(n):
            if not counts[b]:
                continue
            left, sure, right = b / n, confidence[b], accuracy[b]
            gap = COLOURS["forget" if sure > right else "retain"]
            bar = {"width": 0.94 / n, "align": "edge", "lw": 0}
            upper.bar(left, min(right, sure), color=COLOURS["retain"], alpha=0.45, **bar)
            upper.bar(
                left, abs(sure - right), bottom=min(right, sure), color=gap, alpha=0.22, **bar
            )
            test = binomtest(round(right * counts[b]), round(counts[b]))
            low, high = test.proportion_ci(0.95, "wilson")
            upper.plot([sure, sure], [low, high], color=COLOURS["retain"], lw=1.4)
            upper.plot(
                [sure], [right], "o", color=COLOURS["retain"], ms=4.5, clip_on=False, zorder=5
            )
        shares = np.array(counts) / total
        lower.bar(np.arange(n) / n, shares, 0.94 / n, align="edge", color=COLOURS["muted"], lw=0)
        upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="answered rightly")
        lower.set(ylim=(0, max(shares) * 1.08), ylabel="images", xlabel="confidence")
        for axes in (upper, lower):
            axes.grid(axis="y")
            axes.tick_params(length=0)
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            axes.spines["left"].set_visible(False)
        lower.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        lower.set_yticks([max(shares)])
        figure.align_ylabels()
        return svg(figure, "Reliability diagram: accuracy by confidence", 260)


def auroc_dots(scores: Mapping[str, Sequence[float]]) -> str:
    """One row a score: a small dot for the AUROC after each experience, a large one for the mean.

    :param scores: by title, in drawing order; fractions.
    """
    with style():
        figure = new_figure(420, 46 + 27 * len(scores))
        axes = figure.add_subplot()
        room = 46 / (46 + 27 * len(scores))
        figure.subplots_adjust(left=0.33, right=0.96, top=0.99, bottom=room)
        axes.axvline(0.5, color=COLOURS["muted"], lw=1.2, ls=(0, (4, 3)), zorder=1)
        for row, values in enumerate(scores.values()):
            axes.plot(values, [row] * len(values), "o", color=COLOURS["retain"], ms=5, alpha=0.4,
                      mew=0, clip_on=False)  # fmt: skip
            axes.plot([np.mean(values)], [row], "D", color=COLOURS["retain"], ms=7.5,
                      mec=COLOURS["card"], mew=1, clip_on=False, zorder=3)  # fmt: skip
        axes.set(xlim=(0, 1), ylim=(len(scores) - 0.5, -0.5), xlabel="AUROC")
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_yticks(range(len(scores)), list(scores))
        axes.grid(axis="x")
        axes.tick_params(length=0)
        axes.spines["left"].set_visible(False)
        return svg(figure, "AUROC of each score, after each experience and in the mean", 300)


@dataclass(frozen=True)
class Witness:
    """One row of :func:`witnesses`; numbers are 0 at the reference and 1 at what is known."""

    title: str
    value: float
    interval: tuple[float, float]
    before: float | None
    allowed: float
    """How far above 0 the value may lie."""
    must: bool
    """Whether it must be cleared, or only accuses."""
    holds: bool | None


def witnesses(rows: Sequence[Witness], title: str) -> str:
    """One row a witness: ring before, dot with its interval after, the margin as a bar from 0."""
    height = 58 + 25 * len(rows)
    with style():
        figure = new_figure(860, height)
        axes = figure.add_subplot()
        figure.subplots_adjust(left=0.5, right=0.975, top=1 - 24 / height, bottom=30 / height)
        axes.axvline(0, color=COLOURS["unseen"], lw=1.4, ls=(0, (4, 3)), zorder=1)
        axes.axvline(1, color=COLOURS["retain"], lw=1.4, ls=(0, (4, 3)), zorder=1)
        for place, row in enumerate(rows):
            named = "muted" if row.holds is None else "retain" if row.holds else "forget"
            colour = COLOURS[named]
            low, high, value = (float(np.clip(x, *_SHOWN)) for x in (*row.interval, row.value))
            reach = min(row.allowed, _SHOWN[1])
            axes.barh(place, reach, height=0.62, color=COLOURS["unseen"], alpha=0.16, lw=0)
            axes.plot([low, high], [place, place], color=colour, lw=2.4)
            if row.before is not None:
                axes.plot([float(np.clip(row.before, *_SHOWN))], [place], "o", ms=6.5, mfc="none",
                          mec=COLOURS["muted"], mew=1.4, clip_on=False)  # fmt: skip
            outside = ">" if row.value > _SHOWN[1] else "<" if row.value < _SHOWN[0] else "o"
            axes.plot([value], [place], outside, ms=7, color=colour, zorder=3, clip_on=False,
                      mfc=colour if row.must else COLOURS["card"], mew=1.6)  # fmt: skip
        axes.set(xlim=_SHOWN, ylim=(len(rows) - 0.4, -0.6))
        axes.set_yticks(range(len(rows)), [row.title for row in rows])
        axes.set_xticks([-1, -0.5, 0, 0.5, 1, 1.5])
        axes.text(0, -0.75, "never learned", ha="center", color=COLOURS["unseen"])
        axes.text(1, -0.75, "known", ha="center", color=COLOURS["retain"])
        axes.tick_params(length=0)
        axes.spines["left"].set_visible(False)
        return svg(figure, title, 560)


_ATTACKED = {
    "before": ("before", "muted", (0, (2, 2))),
    "unseen": ("unseen classes", "unseen", (0, (4, 3))),
    "twin": ("twin", "zero-shot", (0, (1, 1))),
    "forget": ("forgotten classes", "forget", "-"),
}


def attack(steps: Sequence[float], lines: Mapping[str, Sequence[float]], title: str) -> str:
    """Accuracy over steps of training: forgotten classes after the request beside unseen ones in the
    same run, and beside the model before (and the twin).

    :param steps: [n]. :param lines: by name, fractions [n].
    """
    with style():
        figure = new_figure(300, 190)
        axes = figure.add_subplot()
        figure.subplots_adjust(left=0.15, right=0.97, top=0.8, bottom=0.2)
        for name, (label, colour, dash) in _ATTACKED.items():
            if name in lines:
                axes.plot(steps, lines[name], color=COLOURS[colour], ls=dash, lw=2, label=label,
                          marker="o", ms=3.5, clip_on=False)  # fmt: skip
        axes.set(ylim=(0, 1), xlim=(min(steps), max(steps)), xlabel="steps")
        axes.set_xticks(list(steps), [f"{step:g}" for step in steps])
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.grid(axis="y")
        axes.tick_params(length=0, labelsize=10)
        axes.spines["left"].set_visible(False)
        figure.legend(loc="upper left", ncols=2, fontsize=9.5, handlelength=1.8, columnspacing=1)
        return svg(figure, title, 240)
