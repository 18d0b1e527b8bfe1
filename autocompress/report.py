"""The result for people and programs: result.json and a table."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from statistics import fmean, median
from typing import Any

from autocompress.record import Final, SearchResult


def result_dict(result: SearchResult) -> dict[str, Any]:
    """The content of result.json; documented in the README."""
    states = Counter(record.state for record in result.records)
    seconds = [sum(record.seconds.values()) for record in result.records if record.is_measured]
    constraint = result.binding_constraint
    return {
        "status": result.status,
        "objective": result.objective,
        "metric": result.quality.metric,
        "budget": result.budget.limits(),
        "reasons": list(result.reasons),
        "baseline": _final_dict(result.baseline),
        "best": {
            **_final_dict(result.best),
            "trial": result.best_trial,
            "path": _relative(result.best.artifact.path, result.folder),
        },
        "drop": result.drop,
        "drop_ci": list(result.drop_ci),
        "drop_upper": result.drop_upper,
        "selection_gap": result.selection_gap,
        "binding_constraint": None if constraint is None else vars(constraint),
        "trials": {state: states.get(state, 0) for state in ("complete", "pruned", "failed")},
        "pareto_front": list(result.front),
        "seconds": result.seconds,
        "seconds_per_trial_median": median(seconds) if seconds else None,
        "versions": dict(result.versions),
        "device": result.device,
        "minimum_runtime": dict(result.minimum_runtime),
        "mask_overlap": {layer: vars(overlap) for layer, overlap in result.mask_overlap.items()},
    }


def _relative(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else path.name


def _final_dict(final: Final) -> dict[str, Any]:
    figures = final.measurement
    latency = figures.latency
    return {
        "accuracy": figures.accuracy,
        "accuracy_ci": list(final.accuracy_ci),
        "images": figures.images,
        "size_bytes": figures.size_bytes,
        "size_ratio": figures.size_ratio,
        "latency_ms_median": latency.median_ms if latency else None,
        "latency_ms_p95": latency.p95_ms if latency else None,
        "latency_ratio": figures.latency_ratio,
        "latency_ratio_ci": [latency.ratio_low, latency.ratio_high] if latency else None,
        "sha256": final.artifact.sha256,
    }


def write_result(result: SearchResult) -> Path:
    """Write result.json, whole or not at all."""
    path = result.folder / "result.json"
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result_dict(result), indent=2) + "\n", encoding="utf-8")
    partial.replace(path)
    return path


def times(ratio: float, below: str, above: str) -> str:
    """`2.43x faster` for a latency ratio of 0.41, `1.65x slower` for 1.65."""
    return f"{1 / ratio:.2f}x {below}" if ratio <= 1 else f"{ratio:.2f}x {above}"


def table(result: SearchResult) -> str:
    """FP32 beside the best file, in plain text."""
    base, best = result.baseline.measurement, result.best.measurement
    assert base.accuracy is not None and best.accuracy is not None and base.latency and best.latency
    assert base.size_bytes and best.size_bytes
    quality = result.quality
    rows = [
        ("", "FP32", "best", "change"),
        (quality.metric, quality.value(base.accuracy), quality.value(best.accuracy), quality.signed(result.drop, 2)),
        (
            "size",
            f"{base.size_bytes:,} B",
            f"{best.size_bytes:,} B",
            times(best.size_bytes / base.size_bytes, "smaller", "larger"),
        ),
        (
            "latency",
            f"{base.latency.median_ms:.3f} ms",
            f"{best.latency.median_ms:.3f} ms",
            times(best.latency.ratio, "faster", "slower"),
        ),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    drop, bounds = quality.difference(result.drop, digits=2), quality.difference(*result.drop_ci, digits=2)
    lines.append(f"drop {drop}, 95 % interval {bounds}, on {best.images} report examples")
    return "\n".join([f"status: {result.status}", *lines, *_overlap_line(result), *result.reasons])


def _overlap_line(result: SearchResult) -> list[str]:
    """How far the pruner would remove the same weights again; nothing where none were removed."""
    found = result.mask_overlap
    if not found:
        return []
    mean, chance = (fmean(getattr(overlap, name) for overlap in found.values()) for name in ("jaccard", "by_chance"))
    least = min(found, key=lambda layer: found[layer].jaccard)
    return [
        f"masks from disjoint halves of the calibration data share {100 * mean:.0f} % of what stays ({100 * chance:.0f} % by "
        f"chance), mean of {len(found)} layers; least: {least}, {100 * found[least].jaccard:.0f} %"
    ]
