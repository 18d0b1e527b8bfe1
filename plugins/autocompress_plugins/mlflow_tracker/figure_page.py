"""The figures of a study on one page."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autocompress import Figure

_STYLE = "body{max-width:900px;margin:1em auto;padding:0 1em;font-family:system-ui,sans-serif;color:#333}p{color:#666}"


def page(title: str, figures: Mapping[str, Figure]) -> str:
    """HTML that needs no network: the first figure brings Plotly's script along."""
    drawn = [figure.html(plotly_js=not place, page=False) for place, figure in enumerate(figures.values())]
    parts = [
        f"<section id='{escape(name)}'>{figure}<p>{escape(figures[name].explanation)}</p></section>"
        for name, figure in zip(figures, drawn, strict=True)
    ]
    head = f"<meta charset='utf-8'><title>{escape(title)}</title><style>{_STYLE}</style>"
    return f"<!doctype html><html><head>{head}</head><body>{''.join(parts)}</body></html>\n"
