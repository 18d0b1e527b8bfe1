"""Figures for a browser, drawn by Plotly: what is pointed at tells its figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go
import plotly.io

from autocompress.reporting.figure import COLOURS, Bars, Figure, HeatMap, Line, Panel, Points, Role, shortened

SYMBOLS: dict[Role, str] = {"plain": "circle", "muted": "x-thin-open", "winner": "star", "reference": "diamond"}
SIZES: dict[Role, int] = {"plain": 8, "muted": 6, "winner": 17, "reference": 12}
GREY = "#808080"
"""Readable on white and on black."""

ROW_PIXELS = 19
PANEL_PIXELS = 300
TITLE_PIXELS = 35
MARGINS_PIXELS = 130
PADDING = 0.07
"""Share of what an axis spans that stays free at its ends."""

WRITTEN = 1.3
"""Room for what is written at the end of the longest bar, its own length included."""

LEAST_SPAN = 0.02
"""Of an axis, as a share of its values."""


def to_html(figure: Figure, plotly_js: bool | str, page: bool) -> str:
    """See `Figure.html`."""
    config = {"displaylogo": False, "responsive": True, "displayModeBar": False}
    drawn = drawing(figure)
    if not page:  # what surrounds it has the title
        drawn.update_layout(title=None, margin_t=15, height=drawn.layout.height - TITLE_PIXELS)
    height = f"{drawn.layout.height}px"
    return str(plotly.io.to_html(drawn, config=config, include_plotlyjs=plotly_js, full_html=page, default_height=height))


def drawing(figure: Figure) -> go.Figure:
    """Plotly's own object."""
    heights = [_pixels(panel) for panel in figure.panels]
    drawn = go.Figure(layout=_layout(figure, sum(heights)))
    top = 1.0
    gap = 0.12 if len(heights) > 1 else 0.0
    for place, (panel, height) in enumerate(zip(figure.panels, heights, strict=True)):
        share = (1 - gap * (len(heights) - 1)) * height / sum(heights)
        _draw(drawn, panel, place, (max(0.0, top - share), top))
        top -= share + gap
    return drawn


def _pixels(panel: Panel) -> int:
    rows = [
        len(mark.labels if isinstance(mark, Bars) else mark.rows) for mark in panel.marks if isinstance(mark, Bars | HeatMap)
    ]
    return ROW_PIXELS * max(rows) + 40 if rows else PANEL_PIXELS


def _layout(figure: Figure, height: int) -> dict[str, Any]:
    return {
        "title": {"text": escape(figure.title), "x": 0, "xref": "paper", "font": {"size": 15}},
        "height": height + MARGINS_PIXELS,
        "margin": {"l": 10, "r": 10, "t": 50, "b": 40},
        "font": {"color": GREY, "family": "system-ui, sans-serif", "size": 12},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "hoverlabel": {"align": "left"},
        "legend": {"orientation": "h", "yanchor": "top", "y": -70 / height, "x": 0},
        "showlegend": any(len([m for m in panel.marks if isinstance(m, Points | Line)]) > 1 for panel in figure.panels),
        "bargap": 0.25,
        "dragmode": False,
    }


def _draw(drawn: go.Figure, panel: Panel, place: int, domain: tuple[float, float]) -> None:
    suffix = str(place + 1) if place else ""
    axes = {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}"}
    for mark in panel.marks:
        drawn.add_trace(_trace(mark, panel, domain).update(axes))
    rows = any(isinstance(mark, Bars | HeatMap) for mark in panel.marks)
    drawn.layout[f"xaxis{suffix}"] = _axis(panel, "x") | {"anchor": axes["yaxis"], **_columns(panel)}
    drawn.layout[f"yaxis{suffix}"] = _axis(panel, "y") | {
        "anchor": axes["xaxis"],
        "domain": domain,
        **(_rows() if rows else {}),
    }


def _rows() -> dict[str, Any]:
    return {"autorange": "reversed", "type": "category", "showgrid": False, "tickfont": {"size": 11}, "dtick": 1}


def _columns(panel: Panel) -> dict[str, Any]:
    heat = any(isinstance(mark, HeatMap) for mark in panel.marks)
    return {"side": "top", "type": "category", "showgrid": False, "tickangle": -60, "tickfont": {"size": 10}} if heat else {}


def _axis(panel: Panel, name: str) -> dict[str, Any]:
    title = {"text": escape(getattr(panel, name)), "font": {"size": 12}, "standoff": 6}
    share = {"tickformat": ".4~%"} if name in panel.percent else {}
    return {
        "title": title,
        "automargin": True,
        **_range(panel, name),
        "gridcolor": "rgba(128,128,128,0.25)",
        "zeroline": False,
        **share,
    }


def _range(panel: Panel, name: str) -> dict[str, Any]:
    """A little more than the points need; Plotly's own begins at 0 where all are equal."""
    longest = max((max(mark.lengths) for mark in panel.marks if isinstance(mark, Bars)), default=0.0)
    if longest > 0 and name == "x":
        return {"range": [0, WRITTEN * longest]}
    values = [value for mark in panel.marks if isinstance(mark, Points | Line) for value in getattr(mark, name)]
    if not values:
        return {}
    low, high = min(values), max(values)
    rest = max(0.0, LEAST_SPAN * abs(high) - (high - low)) / 2 + PADDING * max(high - low, LEAST_SPAN * abs(high))
    return {"range": [low - rest, high + rest]}


def _trace(mark: Points | Line | Bars | HeatMap, panel: Panel, domain: tuple[float, float]) -> Any:
    bar = _colour_bar(panel, domain)
    if isinstance(mark, Points):
        return _points(mark, bar)
    if isinstance(mark, Line):
        line = {"color": COLOURS[mark.role], "width": 1.6, "shape": "hv" if mark.steps else "linear"}
        return go.Scatter(name=escape(mark.name), x=mark.x, y=mark.y, mode="lines", line=line, hoverinfo="skip")
    return _bars(mark, bar) if isinstance(mark, Bars) else _heat(mark, bar)


def _colour_bar(panel: Panel, domain: tuple[float, float]) -> dict[str, Any]:
    title = {"text": escape(panel.colour), "side": "right", "font": {"size": 11}}
    share = {"tickformat": ".3~%"} if "colour" in panel.percent else {}
    return {"title": title, "thickness": 10, "outlinewidth": 0, "len": domain[1] - domain[0], "y": sum(domain) / 2, **share}


def _points(mark: Points, bar: dict[str, Any]) -> Any:
    colour = {"color": mark.values, "colorscale": "Viridis", "colorbar": bar, "showscale": True} if mark.values else {}
    style = {
        "color": COLOURS[mark.role],
        "symbol": SYMBOLS[mark.role],
        "size": SIZES[mark.role],
        "line": {"width": 1, "color": GREY},
    }
    return go.Scatter(
        name=escape(mark.name), x=mark.x, y=mark.y, mode="markers", marker=style | colour, **_hover(mark.texts, "%{x}, %{y}")
    )


def _bars(mark: Bars, bar: dict[str, Any]) -> Any:
    colour = {"color": mark.values, "colorscale": "Viridis", "colorbar": bar} if mark.values else {"color": COLOURS["plain"]}
    return go.Bar(
        x=mark.lengths,
        y=_labels(mark.labels),
        orientation="h",
        marker=colour,
        text=[escape(text) for text in mark.written] or None,
        textposition="outside",
        cliponaxis=False,
        showlegend=False,
        **_hover(mark.texts, "%{y}: %{x}"),
    )


def _heat(mark: HeatMap, bar: dict[str, Any]) -> Any:
    """Plotly has no logarithmic colours: it draws the exponents; what fails is as bad as the worst, and says so."""
    known = [value for row in mark.values for value in row if math.isfinite(value) and value > 0]
    low, high = (min(known), max(known)) if known else (1e-12, 1.0)
    exponents = [[_exponent(value, low, high) for value in row] for row in mark.values]
    ticks = list(range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1))
    texts = [
        [
            f"{row}\n{column}: {'fails' if math.isinf(value) else f'{value:.3g}'}"
            for column, value in zip(mark.columns, line, strict=True)
        ]
        for row, line in zip(mark.rows, mark.values, strict=True)
    ]
    return go.Heatmap(
        z=exponents,
        x=_labels(mark.columns),
        y=_labels(mark.rows),
        text=[[_lines(text) for text in row] for row in texts],
        hovertemplate="%{text}<extra></extra>",
        hoverongaps=False,
        colorscale="Viridis",
        colorbar=bar | {"tickvals": ticks, "ticktext": [f"1e{tick}" for tick in ticks]},
        xgap=1,
        ygap=1,
    )


def _exponent(value: float, low: float, high: float) -> float | None:
    return None if math.isnan(value) else math.log10(min(max(value, low), high))


def _labels(names: Sequence[str]) -> list[str]:
    """Unique, since equal ones would share a place."""
    shown = [escape(shortened(name)) for name in names]
    return [f"{text} ({place})" if shown.count(text) > 1 else text for place, text in enumerate(shown, 1)]


def _hover(texts: Sequence[str], otherwise: str) -> dict[str, Any]:
    if not texts:
        return {"hovertemplate": f"{otherwise}<extra></extra>"}
    return {"hovertext": [_lines(text) for text in texts], "hovertemplate": "%{hovertext}<extra></extra>"}


def _lines(text: str) -> str:
    return escape(text).replace("\n", "<br>")
