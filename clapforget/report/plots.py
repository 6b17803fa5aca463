"""The figures of the report: pure functions from numbers to inline SVG (or PNG data) strings."""

from __future__ import annotations

import base64
import html
import io
import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter
from PIL import Image

from clapforget.report.canvas import COLOURS, new_figure, style, svg

__all__ = ["curve", "dots", "lines", "montage", "strips"]

SERIES = {
    "retain_accuracy": ("retained, strategy", "retain", "o", "-"),
    "forget_accuracy": ("forgotten, strategy", "forget", "X", "-"),
    "zero_shot_retain_accuracy": ("retained, bare CLIP", "zero-shot", "s", "--"),
    "bystander_accuracy": ("bystanders, bare CLIP", "bystander", "^", ":"),
}
"""Metric: legend, colour, marker, line style."""

VIEWS = {"retain": "retained", "forget": "forgotten", "unseen": "unseen"}
"""The rows of a strip plot, top to bottom: the forgotten data lie between their two references."""


def _array(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if v is None else v for v in values], dtype=float)


def lines(
    ticks: Sequence[str], series: Mapping[str, Sequence[float | None]], forgets: Sequence[int]
) -> str:
    """Accuracies over the stream, with a band at each forget request.

    :param ticks: a short text for each point in time, [n]. :param series: by key of
        :data:`SERIES`, fractions, [n] each. :param forgets: indices of the forget requests.
    """
    n = len(ticks)
    with style():
        width = max(760, 40 * n + 120)
        figure = new_figure(width, 320, layout="constrained")
        axes = figure.add_subplot()
        for at in forgets:
            axes.axvspan(at - 0.5, at + 0.5, color=COLOURS["forget"], alpha=0.10, lw=0)
        for key, values in series.items():
            label, colour, marker, dash = SERIES[key]
            axes.plot(
                range(n), _array(values), color=COLOURS[colour], marker=marker, ls=dash, lw=2,
                ms=6.5, mec=COLOURS["card"], mew=0.8, label=label, clip_on=False, zorder=3,
            )  # fmt: skip
        every = max(1, -(-n // 40))
        slanted = n > 12 or max((len(t) for t in ticks), default=0) > 9
        axes.set_xticks(range(0, n, every), list(ticks)[::every])
        if slanted:
            for tick in axes.get_xticklabels():
                tick.set(rotation=40, ha="right", rotation_mode="anchor")
        axes.set(xlim=(-0.5, n - 0.5), ylim=(0, 1))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.grid(axis="y")
        axes.tick_params(length=0)
        axes.spines["left"].set_visible(False)
        if series:
            figure.legend(loc="outside upper left", ncols=4, columnspacing=1.4, handlelength=2.2)
        return svg(figure, "Accuracies after each experience", 560)


def _strip(axes: Axes, quantiles: Mapping[str, Sequence[float]], title: str) -> None:
    for row, view in enumerate(VIEWS):
        q = quantiles.get(view)
        if q is None:
            axes.text(0.5, row, "–", transform=axes.get_yaxis_transform(), va="center")
            continue
        colour = COLOURS[view]
        axes.plot([q[0], q[4]], [row, row], color=colour, lw=2, solid_capstyle="butt")
        axes.barh(row, q[3] - q[1], left=q[1], height=0.5, color=colour, alpha=0.45, lw=0)
        axes.plot([q[2], q[2]], [row - 0.32, row + 0.32], color=colour, lw=3)
    unseen = quantiles.get("unseen")
    if unseen is not None:
        axes.axvline(unseen[2], color=COLOURS["unseen"], lw=1.2, ls=(0, (4, 3)), zorder=0)
    axes.set_title(title, loc="left", pad=4)


def strips(
    before: Mapping[str, Sequence[float]], after: Mapping[str, Sequence[float]], title: str
) -> str:
    """Quantile strips of one score, before and after a request, side by side on one scale.

    :param before, after: by view of :data:`VIEWS`, five quantiles (5, 25, 50, 75, 95 %).
    :param title: of the figure, for screen readers.
    """
    with style():
        figure = new_figure(520, 132)
        left, right = figure.subplots(1, 2, sharex=True, sharey=True)
        figure.subplots_adjust(left=0.145, right=0.975, top=0.85, bottom=0.16, wspace=0.08)
        _strip(left, before, "before")
        _strip(right, after, "after")
        left.set_yticks(range(len(VIEWS)), list(VIEWS.values()))
        left.set_ylim(len(VIEWS) - 0.4, -0.6)
        for axes in (left, right):
            axes.grid(axis="x")
            axes.tick_params(length=0)
            axes.spines["left"].set_visible(False)
            axes.xaxis.set_major_locator(MaxNLocator(4))
        return svg(figure, title, 320)


def curve(
    values: Sequence[float | None],
    title: str,
    *,
    colour: str = "retain",
    percent: bool = False,
    marks: Sequence[int] = (),
    at_most: int = 200,
) -> str:
    """One small curve. Long ones are averaged over equal stretches, to ``at_most`` points.

    :param values: [n]. :param percent: the values are fractions. :param marks: indices to shade.
    """
    y, x = _array(values), np.arange(1.0, len(values) + 1)
    if len(y) > at_most:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a stretch without any number
            y = np.array([np.nanmean(part) for part in np.array_split(y, at_most)])
        x = np.array([part.mean() for part in np.array_split(x, at_most)])
    with style():
        figure = new_figure(260, 120)
        axes = figure.add_subplot()
        figure.subplots_adjust(left=0.19, right=0.97, top=0.94, bottom=0.17)
        for at in marks:
            axes.axvspan(at + 0.5, at + 1.5, color=COLOURS["forget"], alpha=0.10, lw=0)
        dotted = "o" if len(y) < 15 else ""
        axes.plot(x, y, color=COLOURS[colour], lw=1.8, marker=dotted, ms=4)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(3))
        if percent:
            axes.yaxis.set_major_formatter(PercentFormatter(1))
            low, high = axes.get_ylim()
            axes.set_ylim(low if (y < 0).any() else 0, max(high, 0))
        axes.grid(axis="y")
        axes.tick_params(length=0, labelsize=10)
        return svg(figure, title, 200)


def dots(
    value: float | None,
    interval: tuple[float, float] | None,
    before: float | None,
    reference: float | None,
    reference_interval: tuple[float, float] | None,
    *,
    zoom: bool = False,
    write: Callable[[float], str] = "{:.3g}".format,
) -> str:
    """One row of evidence drawn: a ring for before, a dot with its interval for after, against
    the reference (a line in its band). Empty where there is nothing to draw.

    :param zoom: fit the scale to the numbers; otherwise it begins at zero.
    :param write: how the two ends of the scale are written.
    """
    known = [v for v in (value, before, reference) if v is not None]
    known += [v for pair in (interval, reference_interval) if pair for v in pair]
    if not known:
        return ""
    low, high = min(known), max(known)
    if not zoom:
        low, high = min(0.0, low), max(0.0, high)
        high = 1.0 if low >= 0 and 0.2 < high <= 1 else high
    span = (high - low) or abs(high) or 1.0
    high = low + span
    x = lambda v: 8 + 154 * (v - low) / span  # noqa: E731
    part = ['<path d="M8 14H162" class="axis"/>']
    if reference_interval:
        a, b = map(x, reference_interval)
        part.append(f'<rect x="{a:.1f}" y="4" width="{max(b - a, 1):.1f}" height="20" '
                    'class="band"/>')  # fmt: skip
    if reference is not None:
        part.append(f'<path d="M{x(reference):.1f} 3V25" class="reference"/>')
    if before is not None:
        part.append(f'<circle cx="{x(before):.1f}" cy="14" r="4" class="before"/>')
    if interval:
        part.append(f'<path d="M{x(interval[0]):.1f} 14H{x(interval[1]):.1f}" class="interval"/>')
    if value is not None:
        part.append(f'<circle cx="{x(value):.1f}" cy="14" r="4.5" class="after"/>')
    part.append(f'<text x="8" y="36">{html.escape(write(low))}</text>')
    part.append(f'<text x="162" y="36" class="end">{html.escape(write(high))}</text>')
    return f'<svg class="dots" viewBox="0 0 170 39" aria-hidden="true">{"".join(part)}</svg>'


def montage(images: np.ndarray, count: int = 4, side: int = 96) -> str:
    """The first images of a class beside each other, as a PNG ``data:`` address.

    :param images: uint8 [n, h, w, 3]. :param side: larger images are shrunk to it.
    """
    parts = []
    for image in np.asarray(images)[:count]:
        picture = Image.fromarray(np.ascontiguousarray(image, dtype=np.uint8))
        picture.thumbnail((side, side))
        parts.append(np.asarray(picture))
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(parts, axis=1)).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
