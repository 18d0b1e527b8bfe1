"""A figure as plain values: what it shows, not how it is drawn. Plotly draws it for a browser, matplotlib as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Role = Literal["plain", "muted", "winner", "reference"]
"""What something is to the reader, who sees it by its colour and shape."""

COLOURS: dict[Role, str] = {"plain": "#3f7cbf", "muted": "#9a9a9a", "winner": "#d1495b", "reference": "#7d5ba6"}
"""Readable on white and on black."""


@dataclass(frozen=True)
class Points:
    """Things with two figures each.

    Attributes:
        texts: one each, lines of text, shown when pointed at.
        values: one each, shown as colour; empty: the colour of the role.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    texts: Sequence[str] = ()
    values: Sequence[float] = ()
    role: Role = "plain"


@dataclass(frozen=True)
class Line:
    """Points that are connected; with `steps` a value holds until the next."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    role: Role = "plain"
    steps: bool = False


@dataclass(frozen=True)
class Bars:
    """Lengths by name, the first one on top.

    Attributes:
        texts, values: as those of `Points`.
        written: one each, at the end of the bar.
    """

    labels: Sequence[str]
    lengths: Sequence[float]
    written: Sequence[str] = ()
    texts: Sequence[str] = ()
    values: Sequence[float] = ()


@dataclass(frozen=True)
class HeatMap:
    """Values of rows and columns in logarithmic colours, the first row on top.

    Attributes:
        values: shape (rows, columns); NaN: there is none, infinite: it fails.
    """

    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float]]


Mark = Points | Line | Bars | HeatMap


@dataclass(frozen=True)
class Panel:
    """Marks with common axes.

    Attributes:
        x, y: what the axes show, with units; empty: the labels say it.
        colour: what colours show.
        percent: axes, of `x`, `y` and `colour`, whose values are shares that are written in per cent.
    """

    marks: Sequence[Mark]
    x: str = ""
    y: str = ""
    colour: str = ""
    percent: Sequence[str] = ()


@dataclass(frozen=True)
class Figure:
    """Panels below each other.

    Attributes:
        explanation: how to read it, in a sentence or two.
    """

    title: str
    explanation: str
    panels: Sequence[Panel]

    def html(self, plotly_js: bool | str = True, page: bool = True) -> str:
        """Drawn by Plotly.

        Args:
            plotly_js: as `include_plotlyjs` of `plotly.io.to_html`: True: the script is in it; `cdn`: loaded; False: not there.
            page: a whole page, else one element of it.
        """
        from autocompress.reporting.figure_html import to_html

        return to_html(self, plotly_js, page)

    def png(self, path: Path) -> Path:
        """Drawn by matplotlib, without a display; returns the path."""
        from autocompress.reporting.figure_png import write_png

        return write_png(self, path)


def shortened(name: str, characters: int = 26) -> str:
    """Narrow enough for a phone: the ends of a layer's name tell it from others better than its middle."""
    head = characters // 3
    return name if len(name) <= characters else f"{name[:head]}…{name[-(characters - head - 1) :]}"
