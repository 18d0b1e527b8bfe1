"""Figures as pictures, drawn by matplotlib without a display."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import PercentFormatter

from autocompress.reporting.figure import COLOURS, Bars, Figure, HeatMap, Line, Panel, Points, Role, shortened

MARKERS: dict[Role, str] = {"plain": "o", "muted": "x", "winner": "*", "reference": "D"}
AREAS: dict[Role, int] = {"plain": 22, "muted": 14, "winner": 170, "reference": 45}

WIDTH_INCHES = 8.0
PANEL_INCHES = 3.4
ROW_INCHES = 0.17
LARGEST_INCHES = 60.0
DPI = 120
SMALLEST = 1e-12
LONGEST = 80
"""Characters of an axis's title."""


def write_png(figure: Figure, path: Path) -> Path:
    """See `Figure.png`."""
    with matplotlib.rc_context({"text.parse_math": False, "font.size": 9}):  # a name may hold a dollar sign
        heights = [_inches(panel) for panel in figure.panels]
        canvas = Canvas(figsize=(WIDTH_INCHES, min(LARGEST_INCHES, sum(heights) + 0.5)), dpi=DPI, layout="constrained")
        FigureCanvasAgg(canvas)
        axes = canvas.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
        for panel, place in zip(figure.panels, axes, strict=True):
            _draw(canvas, place, panel)
        canvas.suptitle(figure.title)
        canvas.savefig(path, metadata={"Software": None})
    return path


def _inches(panel: Panel) -> float:
    rows = [
        len(mark.labels if isinstance(mark, Bars) else mark.rows) for mark in panel.marks if isinstance(mark, Bars | HeatMap)
    ]
    return ROW_INCHES * max(rows) + 1.3 if rows else PANEL_INCHES


def _draw(canvas: Canvas, axes: Axes, panel: Panel) -> None:
    for mark in panel.marks:
        if isinstance(mark, Points):
            _points(canvas, axes, mark, panel)
        elif isinstance(mark, Line):
            style = "steps-post" if mark.steps else "default"
            axes.plot(mark.x, mark.y, label=mark.name, color=COLOURS[mark.role], linewidth=1.3, drawstyle=style)
        elif isinstance(mark, Bars):
            _bars(canvas, axes, mark, panel)
        else:
            _heat(canvas, axes, mark, panel)
    axes.set(xlabel=shortened(panel.x, LONGEST), ylabel=shortened(panel.y, LONGEST))
    if "x" in panel.percent:
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    if "y" in panel.percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    if len(axes.get_legend_handles_labels()[1]) > 1:
        axes.legend(fontsize=8)


def _points(canvas: Canvas, axes: Axes, mark: Points, panel: Panel) -> None:
    colour: dict[str, Any] = {"c": mark.values, "cmap": "viridis"} if mark.values else {"color": COLOURS[mark.role]}
    order = 4 if mark.role in ("winner", "reference") else 3
    drawn = axes.scatter(mark.x, mark.y, s=AREAS[mark.role], marker=MARKERS[mark.role], label=mark.name, zorder=order, **colour)
    if mark.values:
        _colour_bar(canvas, axes, drawn, panel)


def _bars(canvas: Canvas, axes: Axes, mark: Bars, panel: Panel) -> None:
    rows = range(len(mark.labels))
    shades = _shades(mark)
    drawn = axes.barh(rows, mark.lengths, color=COLOURS["plain"] if shades is None else shades.to_rgba(mark.values))
    if mark.written:
        axes.bar_label(drawn, mark.written, fontsize=7, padding=2)
    if shades is not None:
        _colour_bar(canvas, axes, shades, panel)
    axes.set_yticks(rows, [shortened(label) for label in mark.labels], fontsize=7)
    axes.invert_yaxis()


def _shades(mark: Bars) -> Any:
    if not mark.values:
        return None
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    return ScalarMappable(Normalize(min(mark.values), max(*mark.values, min(mark.values) + SMALLEST)), "viridis")


def _colour_bar(canvas: Canvas, axes: Axes, drawn: Any, panel: Panel) -> None:
    logarithmic = any(isinstance(mark, HeatMap) for mark in panel.marks)
    written = PercentFormatter(1.0) if "colour" in panel.percent else "%.0e" if logarithmic else None
    canvas.colorbar(drawn, ax=axes, label=shortened(panel.colour, LONGEST), aspect=40, format=written)


def _heat(canvas: Canvas, axes: Axes, mark: HeatMap, panel: Panel) -> None:
    """Grey: there is none; red: it fails."""
    values = np.array(mark.values, dtype=np.float64).reshape(len(mark.rows), len(mark.columns))
    low, high = _limits(values)
    colours = colormaps["viridis"].with_extremes(bad="lightgrey", over="red")
    image = axes.imshow(np.maximum(values, low), norm=LogNorm(low, high), cmap=colours, aspect="auto", interpolation="none")
    axes.set_yticks(range(len(mark.rows)), [shortened(row) for row in mark.rows], fontsize=7)
    names = [shortened(column) for column in mark.columns]
    axes.set_xticks(range(len(names)), names, fontsize=7, rotation=60, ha="left", rotation_mode="anchor")
    axes.xaxis.tick_top()
    _colour_bar(canvas, axes, image, panel)


def _limits(values: np.ndarray[Any, np.dtype[np.float64]]) -> tuple[float, float]:
    """Of the colours: from the least to the largest value that is neither 0 nor infinite."""
    known = values[np.isfinite(values) & (values > SMALLEST)]
    low = float(known.min()) if known.size else SMALLEST
    high = float(known.max()) if known.size else 1.0
    return low, high if not math.isclose(low, high) else 10 * low
