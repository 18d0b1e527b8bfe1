"""The sensitivity tables as a picture: layers as the file has them, options, and the divergence in logarithmic colours."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autocompress.sensitivity import Sensitivity

INCHES_PER_LAYER = 0.17
INCHES_PER_OPTION = 0.5
LARGEST_INCHES = 60.0
DPI = 100
SMALLEST = 1e-12


def heat_values(found: Sensitivity) -> NDArray[np.float64]:
    """Divergences, shape (layers, options): NaN where a layer has no such option, infinite where its file does not run."""
    layers, labels = {layer.name: layer for layer in found.layers}, found.labels
    values = np.full((len(found.order), len(labels)), np.nan)
    for row, name in enumerate(found.order):
        for option in layers[name].options:
            values[row, labels.index(option.label)] = option.effect.divergence
    return values


def write_heatmap(found: Sensitivity, path: Path) -> None:
    """Draw without a display; grey: no such option, red: its file does not run."""
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    values = heat_values(found)
    height = min(LARGEST_INCHES, INCHES_PER_LAYER * len(values) + 1.8)
    figure = Figure(figsize=(INCHES_PER_OPTION * values.shape[1] + 5, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    colours = colormaps["viridis"].with_extremes(bad="lightgrey", over="red")
    low, high = _limits(values)
    image = axes.imshow(np.maximum(values, low), norm=LogNorm(low, high), cmap=colours, aspect="auto", interpolation="none")
    names = [f"* {name}" if name in found.leave_alone else name for name in found.order]
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set_xticks(range(len(found.labels)), found.labels, fontsize=7, rotation=60, ha="left", rotation_mode="anchor")
    axes.xaxis.tick_top()
    unit = "squared error / FP32's power"
    figure.colorbar(image, ax=axes, label=f"{unit}, {found.examples} examples", aspect=40)
    figure.savefig(path, metadata={"Software": None})


def _limits(values: NDArray[np.float64]) -> tuple[float, float]:
    """Of the colours: from the least to the largest divergence that is neither 0 nor infinite."""
    known = values[np.isfinite(values) & (values > SMALLEST)]
    low = float(known.min()) if known.size else SMALLEST
    high = float(known.max()) if known.size else 1.0
    return low, high if not math.isclose(low, high) else 10 * low
