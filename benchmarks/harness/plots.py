"""Rows as pictures. matplotlib is imported when something is drawn; without it nothing is, and the output says so."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

COLOURS = {"floor": "#8c8c8c", "dspool": "#c8443c", "peer": "#4c78a8"}
"""By a contestant's kind, so that one finds ours at a glance."""


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        title: what this panel alone shows.
        bars: (label, value, kind) from top to bottom; or
        lines: label -> (xs, ys, kind).
        x_label, y_label: with their units.
        log_x, log_y: logarithmic axes. Bars have a value axis only, the horizontal one.
        x_ticks: the ticks' places and labels; none: matplotlib's own.
    """

    title: str
    x_label: str
    y_label: str = ""
    bars: Sequence[tuple[str, float, str]] = ()
    lines: Mapping[str, tuple[Sequence[float], Sequence[float], str]] = field(default_factory=dict)
    log_x: bool = False
    log_y: bool = False
    x_ticks: tuple[Sequence[float], Sequence[str]] | None = None


@dataclass(frozen=True)
class Figure:
    """One picture: its file's name without ending, the question it answers, and its panels side by side."""

    name: str
    question: str
    panels: Sequence[Panel]


def draw(figures: Sequence[Figure], folder: Path) -> list[str]:
    """Write each figure as a PNG. Returns a line for each, or one that says why there is none."""
    try:
        backend: Any = importlib.import_module("matplotlib.backends.backend_agg")
        figure_module: Any = importlib.import_module("matplotlib.figure")
    except ImportError:
        return ["note: no plots, because matplotlib is not installed (it is in the extra `peers`)"]
    lines = []
    for figure in figures:
        panels = [panel for panel in figure.panels if panel.bars or panel.lines]
        if not panels:
            continue
        height = max(4.2, 1.6 + 0.3 * max(len(panel.bars) for panel in panels))
        canvas = figure_module.Figure(figsize=(5.8 * len(panels) + 1.6, height), layout="constrained")
        backend.FigureCanvasAgg(canvas)
        canvas.suptitle(figure.question, fontsize=13)
        numbers = numbered(panels)
        for axes, panel in zip(canvas.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            _draw_bars(axes, panel) if panel.bars else _draw_lines(axes, panel, numbers)
            axes.set_title(panel.title, fontsize=11)
            axes.set_xlabel(panel.x_label)
            axes.set_ylabel(panel.y_label)
            axes.spines[["top", "right"]].set_visible(False)
        _add_legend(canvas)
        path = folder / f"{figure.name}.png"
        canvas.savefig(path, dpi=110)
        lines.append(f"wrote {path}")
    return lines


def _add_legend(canvas: Any) -> None:
    """One for all panels, beside them: over the lines it would hide some."""
    handles: dict[str, Any] = {}
    for axes in canvas.axes:
        lines, labels = axes.get_legend_handles_labels()
        handles |= {label: line for line, label in zip(lines, labels, strict=True) if label not in handles}
    if len(handles) > 0 and any(axes.lines for axes in canvas.axes):
        canvas.legend(handles.values(), handles.keys(), loc="outside right center", fontsize=9, frameon=False)


def _plain_log(axis: Any, longest: float) -> None:
    """1, 2, 5, 10, 20, ... instead of powers alone, of which a plot may show one; powers over `longest`."""
    ticker: Any = importlib.import_module("matplotlib.ticker")
    low, high = axis.get_view_interval()
    steps = (1.0, 2.0, 5.0) if high < longest * max(low, 1e-12) else (1.0,)
    axis.set_major_locator(ticker.LogLocator(subs=steps))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_formatter(ticker.NullFormatter())


def _draw_bars(axes: Any, panel: Panel) -> None:
    labels = [label for label, _, _ in panel.bars]
    values = [value for _, value, _ in panel.bars]
    drawn = axes.barh(labels, values, color=[COLOURS[kind] for _, _, kind in panel.bars], height=0.7)
    axes.bar_label(drawn, labels=[f"{value:,.3g}" if value < 1000 else f"{value:,.0f}" for value in values], padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    if panel.log_x:
        axes.set_xscale("log")
        axes.set_xlim(right=max(values) * 3)
        _plain_log(axes.xaxis, 100)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)


_MARKERS = "osD^vP*X<>h"


def numbered(panels: Sequence[Panel]) -> dict[str, int]:
    """Each line's number among those of its kind, the same in all panels: one that is missing shifts no other."""
    numbers: dict[str, int] = {}
    seen: dict[str, int] = {}
    for panel in panels:
        for label, (_, _, kind) in panel.lines.items():
            if label not in numbers:
                numbers[label] = seen[kind] = seen.get(kind, -1) + 1
    return numbers


def _draw_lines(axes: Any, panel: Panel, numbers: dict[str, int]) -> None:
    """Ours thick and red, floors grey and dashed, each peer in a colour of its own."""
    every: Any = importlib.import_module("matplotlib").colormaps["tab20"].colors
    cycle = [*every[:6], *every[8:14], *every[16:]]  # without the reds, which are ours, and the greys, the floors'
    for label, (xs, ys, kind) in panel.lines.items():
        number = numbers[label]
        style: dict[str, Any] = {"label": label, "marker": _MARKERS[number % len(_MARKERS)], "markersize": 5}
        if kind == "peer":
            style.update(color=cycle[number % len(cycle)], linewidth=1.2)
        else:
            dashes = ("-", "--", ":", "-.")[number % 4]
            style.update(color=COLOURS[kind], linewidth=2.4 if kind == "dspool" else 1.6, zorder=5)
            style.update(linestyle=dashes if kind == "dspool" else (0, (4, 1 + number)))
        axes.plot(xs, ys, **style)
    if panel.log_x:
        axes.set_xscale("log", base=2)
    if panel.log_y:
        axes.set_yscale("log")
        _plain_log(axes.yaxis, 1000)
    if panel.x_ticks is not None:
        axes.set_xticks(panel.x_ticks[0], panel.x_ticks[1])
        axes.minorticks_off()
    if not panel.log_y:
        axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
