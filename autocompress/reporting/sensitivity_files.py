"""The sensitivity tables on disk: sensitivity.json and sensitivity.csv, each written whole or not at all."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autocompress.guarding.whole_file import write_whole
from autocompress.reporting.sensitivity import LayerSensitivity, OptionSensitivity, Sensitivity

COLUMNS = ("divergence", "drop", "size_bytes", "saved_bytes", "saved_latency_ms")


def write_sensitivity(found: Sensitivity, folder: Path) -> None:
    """Write both files; documented in docs/sensitivity.md."""
    write_whole(folder / "sensitivity.json", json.dumps(sensitivity_content(found), indent=2, allow_nan=False) + "\n")
    write_whole(folder / "sensitivity.csv", _csv(found))


def sensitivity_content(found: Sensitivity) -> dict[str, Any]:
    """The content of sensitivity.json; `order` and `options` are those of the heat map."""
    return {
        "metric": found.quality.metric,
        "divergence": "squared error as a share of FP32's power",
        "examples": found.examples,
        "leave_alone": {"rule": found.rule, "layers": found.leave_alone, "override": found.override},
        "order": list(found.order),
        "options": found.labels,
        "layers": [_layer(layer) for layer in found.layers],
        **({"observers": {name: _finite(losses) for name, losses in found.observers.items()}} if found.observers else {}),
    }


def _finite(losses: Mapping[str, float]) -> dict[str, float | None]:
    """None: the file does not run."""
    return {name: loss if math.isfinite(loss) else None for name, loss in losses.items()}


def _layer(layer: LayerSensitivity) -> dict[str, Any]:
    return {
        "layer": layer.name,
        "weight_bytes": layer.size_bytes,
        "macs": layer.macs,
        "mildest": layer.mildest.label,
        "options": [
            {"option": option.label, "parameter": option.parameter, "index": option.index, **_figures(option)}
            for option in layer.options
        ],
    }


def _figures(option: OptionSensitivity) -> dict[str, float | None]:
    """The values of `COLUMNS`; None: the file does not run, or nobody knows."""
    effect = option.effect
    runs = math.isfinite(effect.divergence)
    loss = (effect.divergence, effect.drop) if runs else (None, None)
    return dict(zip(COLUMNS, (*loss, effect.size_bytes, option.saved_bytes, option.saved_ms), strict=True))


def _csv(found: Sensitivity) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("layer", "option", *COLUMNS))
    for layer in found.layers:
        writer.writerows((layer.name, option.label, *_figures(option).values()) for option in layer.options)
    return text.getvalue()
