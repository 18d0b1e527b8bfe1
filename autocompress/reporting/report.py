"""The result for people and programs: result.json and a table."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from statistics import fmean, median
from typing import Any

from autocompress.accuracy.changes import write_changes
from autocompress.accuracy.class_drops import worst_classes
from autocompress.accuracy.significance import LEVEL
from autocompress.budget import Latency, Measurement
from autocompress.guarding.whole_file import write_whole
from autocompress.quality import Quality
from autocompress.record import Final, SearchResult
from autocompress.reporting.answer import EXPLAINED, answer, times

Row = tuple[str, str, str, str]

EXPANDED = 1.2
"""Memory that falls by so much less than the file has to be explained."""

SMALLEST_P = 0.001
"""Smaller ones are written as such."""


def result_dict(result: SearchResult) -> dict[str, Any]:
    """The content of result.json; documented in docs/result.md."""
    states = Counter(record.state for record in result.records)
    seconds = [sum(record.seconds.values()) for record in result.records if record.is_measured]
    constraint = result.binding_constraint
    return {
        "status": result.status,
        "objective": result.objective,
        "metric": result.quality.metric,
        "budget": result.budget.limits(),
        "reasons": list(result.reasons),
        "baseline": final_dict(result.baseline),
        "best": {
            **final_dict(result.best),
            "trial": result.best_trial,
            "path": _relative(result.best.artifact.path, result.folder),
        },
        "accuracy_host": result.host_accuracy,
        "drop": result.drop,
        "drop_ci": list(result.drop_ci),
        "drop_upper": result.drop_upper,
        "drop_p": result.drop_p,
        "worst_classes": [vars(found) for found in worst_classes(result.changes.classes)],
        "observers": dict(result.policy.observers),
        "predicted": dict(result.predicted),
        "latency_predictions": {str(number): ratio for number, ratio in result.latency_predictions.items()},
        "selection_gap": result.selection_gap,
        "binding_constraint": None if constraint is None else vars(constraint),
        "trials": {state: states.get(state, 0) for state in ("complete", "pruned", "failed")},
        "pareto_front": list(result.front),
        "seconds": result.seconds,
        "seconds_per_trial_median": median(seconds) if seconds else None,
        "versions": dict(result.versions),
        "device": result.device,
        "environment": dict(result.environment),
        "self_check": _self_check(result.self_check),
        "minimum_runtime": dict(result.minimum_runtime),
        "mask_overlap": {layer: vars(overlap) for layer, overlap in result.mask_overlap.items()},
    }


def _relative(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else path.name


def final_dict(final: Final) -> dict[str, Any]:
    """The figures of one file; documented in docs/result.md."""
    figures = final.measurement
    latency, footprint, energy = figures.latency, figures.footprint, figures.energy
    return {
        "accuracy": figures.accuracy,
        "accuracy_ci": list(final.accuracy_ci),
        "images": figures.images,
        "divergence": figures.divergence,
        "size_bytes": figures.size_bytes,
        "size_ratio": figures.size_ratio,
        "latency_ms": figures.latency_ms,
        "latency_ms_median": latency.median_ms if latency else None,
        "latency_ms_p95": latency.p95_ms if latency else None,
        "latency_ratio": figures.latency_ratio,
        "latency_ratio_ci": [latency.ratio_low, latency.ratio_high] if latency else None,
        "latency_percentile": latency.percentile if latency else None,
        "deadline_missed": latency.missed if latency else None,
        "environment": latency.environment if latency else None,
        "load": latency.load if latency else None,
        "memory_bytes": figures.memory_bytes,
        "process_bytes": footprint.process_bytes if footprint else None,
        "load_ms": figures.load_ms,
        "reload_ms": footprint.reload_ms if footprint else None,
        "first_inference_ms": footprint.first_inference_ms if footprint else None,
        "energy_joules": energy.joules if energy else None,
        "energy_reason": energy.reason if energy else "not measured",
        "sha256": final.artifact.sha256,
    }


def _self_check(check: Latency | None) -> dict[str, Any] | None:
    if check is None:
        return None
    return {"ratio": check.ratio, "ratio_ci": [check.ratio_low, check.ratio_high], "resolution": check.resolution}


def resolution_note(check: Latency) -> str:
    """How fine this machine tells latencies apart."""
    return f"latencies that differ by less than {check.resolution:.1%} cannot be told apart on this machine"


def write_result(result: SearchResult) -> Path:
    """Write result.json, whole or not at all, and beside it which examples and classes of the report set changed."""
    write_changes(result.changes, result.folder)
    return write_whole(result.folder / "result.json", json.dumps(result_dict(result), indent=2) + "\n")


def table(result: SearchResult) -> str:
    """FP32 beside the best file, in plain text."""
    rows = [("", "FP32", "best", "change"), *comparison(result)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join([answer(result), f"status: {result.status} ({EXPLAINED[result.status]})", *lines, *notes(result)])


def comparison(result: SearchResult) -> list[Row]:
    """Name, FP32's figure, the best file's and the change, of each figure that is known of both."""
    base, best, quality = result.baseline.measurement, result.best.measurement, result.quality
    rows = list[Row]()
    if base.accuracy is not None and best.accuracy is not None:
        rows.append(
            (quality.metric, quality.value(base.accuracy), quality.value(best.accuracy), quality.signed(result.drop, 2))
        )
    rows += _row("size", "{:,} B", base.size_bytes, best.size_bytes, "smaller", "larger")
    if base.latency_ms and best.latency_ms:
        change = times(best.latency_ratio, "faster", "slower")
        rows.append(("latency", f"{base.latency_ms:.3f} ms", f"{best.latency_ms:.3f} ms", change))
    return [*rows, *_deployment_rows(base, best)]


def notes(result: SearchResult) -> list[str]:
    """How sure the figures are, what is odd about them, and what the search has to say."""
    return [
        *_drop_line(result),
        *_latency_lines(result),
        *_deployment_lines(result),
        *_significance_line(result),
        *_host_line(result),
        *_classes_line(result),
        *_observers_line(result),
        *_prediction_line(result),
        *_overlap_line(result),
        *result.reasons,
    ]


def intervals(result: SearchResult) -> dict[str, str]:
    """Name of a row of `comparison` to the 95 % interval of its change."""
    latency, found = result.best.measurement.latency, {}
    if not math.isnan(result.drop_ci[0]):
        low, high = (result.quality.signed(bound, 2) for bound in reversed(result.drop_ci))
        found[result.quality.metric] = f"{low.removesuffix(' points')} to {high}"
    if latency is not None and result.best_trial is not None:
        found["latency"] = f"{times(latency.ratio_high, 'faster', 'slower')} to {times(latency.ratio_low, 'faster', 'slower')}"
    return found


def _drop_line(result: SearchResult) -> list[str]:
    if math.isnan(result.drop_ci[0]):
        return []
    quality, examples = result.quality, f"{result.best.measurement.images} {report_set(result)} examples"
    drop, bounds = quality.difference(result.drop, digits=2), quality.difference(*result.drop_ci, digits=2)
    return [f"drop {drop}, 95 % interval {bounds}, on {examples}"]


def report_set(result: SearchResult) -> str:
    """Which examples the figures of quality are of: those that the search never saw, once it has ended."""
    return "search" if math.isnan(result.selection_gap) else "report"


def _latency_lines(result: SearchResult) -> list[str]:
    """How sure the latency is; of FP32 there is no ratio."""
    latency = result.best.measurement.latency
    lines = [resolution_note(result.self_check)] if result.self_check else []
    if latency is None or result.best_trial is None:
        return lines
    of = "" if latency.percentile == 50 else f" of percentile {latency.percentile:g}"
    missed = "" if latency.missed is None else f"; {latency.missed:.1%} of the calls miss the deadline"
    bounds = f"latency ratio{of} {latency.ratio:.3f}, 95 % interval {latency.ratio_low:.3f} to {latency.ratio_high:.3f}"
    return [f"{bounds}{missed}", *lines, *latency.warnings]


def _deployment_rows(base: Measurement, best: Measurement) -> list[Row]:
    """Memory, load time and energy, as far as they were measured of both."""
    before, after = (figures.energy.joules if figures.energy else None for figures in (base, best))
    return [
        *_row("memory", "{:,} B", base.memory_bytes, best.memory_bytes, "less", "more"),
        *_row("load", "{:.1f} ms", base.load_ms, best.load_ms, "faster", "slower"),
        *_row("energy", "{:.3g} J", before, after, "less", "more"),
    ]


def _row(name: str, unit: str, before: float | None, after: float | None, below: str, above: str) -> list[Row]:
    if not before or not after:
        return []
    return [(name, unit.format(before), unit.format(after), times(after / before, below, above))]


def _deployment_lines(result: SearchResult) -> list[str]:
    """What memory means where it does not follow the size of the file, and why there is no energy."""
    base, best = result.baseline.measurement, result.best.measurement
    lines = []
    if _expands(base, best):
        lines.append(
            "memory does not fall with the file: the runtime needs its own, and weights in 4 bits, codebooks and packed "
            "sparse ones expand when a file is loaded"
        )
    if best.energy and best.energy.reason:
        lines.append(f"energy per inference was not measured: {best.energy.reason}")
    return lines


def _expands(base: Measurement, best: Measurement) -> bool:
    sizes = base.size_bytes, best.size_bytes, base.memory_bytes, best.memory_bytes
    if None in sizes:
        return False
    before, after, resident_before, resident_after = (float(size or 0) for size in sizes)
    return resident_after * before > EXPANDED * resident_before * after


def _significance_line(result: SearchResult) -> list[str]:
    """Whether the paired test calls the difference real; nothing where there is none."""
    if not result.drop:
        return []
    what, size = "drop" if result.drop > 0 else "gain", result.quality.difference(abs(result.drop), digits=2)
    verdict = "is real" if result.drop_p < LEVEL else "is within chance"
    p = f"p = {result.drop_p:.2g}" if result.drop_p >= SMALLEST_P else f"p < {SMALLEST_P}"
    return [f"the {what} of {size} {verdict} ({p})"]


def _host_line(result: SearchResult) -> list[str]:
    """How far the device's accuracy is from this machine's; nothing where they are the same machine."""
    accuracy, here = result.best.measurement.accuracy, result.host_accuracy
    if here is None or accuracy is None:
        return []
    quality, change = result.quality, result.quality.signed(here - accuracy, digits=2)
    return [f"on the machine that searched, the same file has {quality.metric} {quality.value(here)}; on the device {change}"]


def _classes_line(result: SearchResult) -> list[str]:
    """The classes that lost most; nothing where none did."""
    quality = Quality(percent=True)
    worst = [
        f"class {found.label} {quality.signed(found.drop)} of {found.examples} examples"
        for found in worst_classes(result.changes.classes)
    ]
    flips = len(result.changes.flips)
    changed = f"{flips} {'example' if flips == 1 else 'examples'} changed their top choice; " if flips else ""
    return [f"{changed}most was lost by {', '.join(worst)}"] if worst else []


def _observers_line(result: SearchResult) -> list[str]:
    """How many tensors have their range from another observer than the configured one; nothing where none does."""
    counts = Counter(result.policy.observers.values()).most_common()
    return [f"ranges of tensors by other observers: {', '.join(f'{count} {name}' for name, count in counts)}"] if counts else []


def _prediction_line(result: SearchResult) -> list[str]:
    """What was predicted of the best file beside what was measured; nothing where nothing was."""
    pairs = [(name, value, getattr(result.best.measurement, name)) for name, value in result.predicted.items()]
    shown = [f"{name} {value:.4g} ({measured:.4g})" for name, value, measured in pairs if measured is not None]
    return [f"predicted (measured): {', '.join(shown)}"] if shown else []


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
