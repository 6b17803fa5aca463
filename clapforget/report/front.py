"""SLUG's Pareto front as a figure: which tensors carry the concept and leave the rest alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clapforget.report.canvas import COLOURS, new_figure, style, svg
from clapforget.report.load import items, mapping, number, text

__all__ = ["pareto_fronts", "scatter"]

_TOWERS = {"image": "retain", "text": "unseen"}
"""Colour of a tower's tensors."""


def pareto_fronts(forget: Mapping[str, Any], label: str) -> list[dict[str, str]]:
    """One figure for each concept of a forgetter that reports ``front`` and ``dominated``.

    :param forget: the forgetter's part of an event. :param label: what the figures' titles begin
        with.
    :returns: ``concept``, ``chosen`` (the edited tensor, or nothing) and ``plot``.
    """
    rows = [(row, True) for row in items(forget.get("front"))]
    rows += [(row, False) for row in items(forget.get("dominated"))]
    chosen = {
        text(mapping(row).get("concept")): text(mapping(row).get("tensor"))
        for row in items(forget.get("choice"))
    }
    concepts: dict[str, list[tuple[str, str, float, float, bool]]] = {}
    for row, front in rows:
        values = mapping(row)
        alignment, importance = number(values.get("alignment")), number(values.get("importance"))
        if alignment is not None and importance is not None and importance > 0:
            point = (text(values.get("tensor")), text(values.get("tower")), alignment, importance, front)  # fmt: skip
            concepts.setdefault(text(values.get("concept")), []).append(point)
    return [
        {
            "concept": concept, "chosen": chosen.get(concept, ""),
            "plot": scatter(points, chosen.get(concept, ""), f"{label}: Pareto front for {concept}"),
        }
        for concept, points in concepts.items()
    ]  # fmt: skip


def scatter(points: Sequence[tuple[str, str, float, float, bool]], chosen: str, title: str) -> str:
    """Tensors by alignment (how much the rest depends on the same change) and importance.

    :param points: name, tower, alignment in [0, 1], importance above 0, whether on its tower's
        front. :param chosen: name of the edited tensor, ringed and written out.
    """
    with style():
        figure = new_figure(520, 300)
        axes = figure.add_subplot()
        figure.subplots_adjust(left=0.13, right=0.97, top=0.90, bottom=0.16)
        for tower, colour in _TOWERS.items():
            own = [p for p in points if p[1] == tower]
            front = sorted((p for p in own if p[4]), key=lambda p: p[2])
            rest = [p for p in own if not p[4]]
            axes.plot(
                [p[2] for p in rest], [p[3] for p in rest], "o", ms=3.5, alpha=0.35,
                color=COLOURS[colour],
            )  # fmt: skip
            axes.plot(
                [p[2] for p in front], [p[3] for p in front], "o-", ms=6, lw=1.2,
                color=COLOURS[colour], label=f"{tower} tower, front",
            )  # fmt: skip
        for name, _, alignment, importance, _front in points:
            if name == chosen:
                axes.plot([alignment], [importance], "o", ms=13, mfc="none", mew=1.8,
                          color=COLOURS["forget"], label=f"edited: {name}")  # fmt: skip
        axes.set(yscale="log", xlabel="alignment with the retain gradient", ylabel="importance")
        axes.grid(True)
        axes.tick_params(length=0)
        axes.legend(loc="lower right", fontsize=9)
        return svg(figure, title, 320)
