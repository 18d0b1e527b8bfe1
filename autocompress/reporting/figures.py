"""What the figures of a study show: the same for the report and for every tracker."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autocompress.budget import Measurement
from autocompress.display.progress import describe
from autocompress.quality import Quality
from autocompress.record import LayerRow, SearchResult, StudyContext, TrialRecord
from autocompress.reporting.curves import study_curves
from autocompress.reporting.figure import Bars, Figure, HeatMap, Line, Mark, Panel, Points
from autocompress.reporting.trial_names import trial_name

RATIO = "latency, as a share of FP32's"
SENSITIVITY = "sensitivity.json"


def study_figures(study: StudyContext, result: SearchResult) -> dict[str, Figure]:
    """The figures that there is something to show in, by name.

    `pareto_front`: accuracy against latency, size as colour; `best_layers`: bits and sparsity of the winner's layers;
    `sensitivity`: what each option costs alone, where the study's folder has the tables; `latency_prediction`: predicted
    against measured; `seconds`: where the time went; `progress`: the best so far and the hypervolume over the trials.
    """
    found = {
        "pareto_front": pareto_front(study, result),
        "best_layers": best_layers(result),
        "sensitivity": sensitivity(study.folder / SENSITIVITY),
        "latency_prediction": latency_prediction(result),
        "seconds": seconds(result),
        "progress": progress(study, result),
    }
    return {name: figure for name, figure in found.items() if figure is not None}


def pareto_front(study: StudyContext, result: SearchResult) -> Figure | None:
    """Every completely measured trial; accuracies are those of the search set, on which all of them were compared."""
    complete = [record for record in result.records if record.state == "complete" and record.kind != "repeated"]
    winner = [record for record in complete if record.number == result.best_trial]
    if not complete:
        return None
    quality, front = study.quality, set(result.front)
    fitting = [record for record in complete if record.feasible]
    others = [record for record in complete if not record.feasible]
    staircase = sorted(_places(record for record in complete if record.number in front))
    marks: list[Mark] = [Line("front", *_columns(_highest(staircase)), role="muted", steps=True)] if front else []
    marks += [_trials("over the budget", others, quality, coloured=False)] if others else []
    marks += [_trials("trials", fitting, quality, coloured=True)] if fitting else []
    marks.append(Points("FP32", [1.0], [study.baseline.accuracy or 0.0], [_fp32(study.baseline, quality)], role="reference"))
    marks += (
        [Points("winner", *_columns(_places(winner)), [_told(record, quality) for record in winner], role="winner")]
        if winner
        else []
    )
    panel = Panel(
        marks,
        f"latency on {study.device}, as a share of FP32's",
        f"{quality.metric} on the search set",
        "size, as a share of FP32's",
        _percent(quality),
    )
    told = (
        "Further left is faster, further up is better, dark is small. No trial beats those of the front in accuracy, "
        "latency and size at once; the line connects the fastest and most accurate of them."
    )
    return Figure("Accuracy and latency of all trials", told, [panel])


def _percent(quality: Quality) -> tuple[str, ...]:
    return ("x", "y", "colour") if quality.percent else ("x", "colour")


def _places(records: Any) -> list[tuple[float, float]]:
    return [(record.measurement.latency_ratio or 0.0, record.measurement.accuracy or 0.0) for record in records]


def _columns(places: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in places], [y for _, y in places]


def _highest(places: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of places sorted by x, those that are higher than all before."""
    kept: list[tuple[float, float]] = []
    for x, y in places:
        if not kept or y > kept[-1][1]:
            kept.append((x, y))
    return kept


def _trials(name: str, records: Sequence[TrialRecord], quality: Quality, coloured: bool) -> Points:
    sizes = [record.measurement.size_ratio or 0.0 for record in records] if coloured else []
    return Points(
        name, *_columns(_places(records)), [_told(r, quality) for r in records], sizes, "plain" if coloured else "muted"
    )


def _told(record: TrialRecord, quality: Quality) -> str:
    """All figures of a trial, and by how much it misses what."""
    misses = [f"{name} exceeded by {excess:.0%}" for name, excess in record.violations.items() if excess > 0]
    return "\n".join([trial_name(record, quality), *describe(record.measurement, quality).split(", "), *misses])


def _fp32(baseline: Measurement, quality: Quality) -> str:
    return "\n".join(["FP32", *describe(baseline, quality).split(", ")])


def winner_layers(result: SearchResult) -> Sequence[LayerRow]:
    """The per-layer table of the trial that won; empty when FP32 ships or nothing is known."""
    return next((record.layers for record in result.records if record.number == result.best_trial), ())


def best_layers(result: SearchResult) -> Figure | None:
    """Bits as length, sparsity as colour, the layers as the file has them."""
    rows = winner_layers(result)
    if not rows:
        return None
    cut = any(row.sparsity for row in rows)
    bars = Bars(
        [row.layer for row in rows],
        [float(row.bits) for row in rows],
        [f"{row.bits}{f', {row.sparsity:.0%} zero' if row.sparsity else ''}" for row in rows],
        [layer_told(row) for row in rows],
        [row.sparsity for row in rows] if cut else [],
    )
    panel = Panel([bars], "bits of a weight", "", "share of weights that are zero" if cut else "", ("colour",))
    return Figure("Bits and sparsity of the winner's layers", "Layers as the file has them; 32 bits are FP32.", [panel])


def layer_told(row: LayerRow) -> str:
    """What was done to a layer, a line for each fact."""
    how = row.encoding or row.quantizer or "FP32"
    computes = f", computed {row.activation}" if row.activation else ""
    cut = [f"{row.sparsity:.0%} zero by {row.pruner}{f', {row.structure}' if row.structure else ''}"] if row.sparsity else []
    return "\n".join(
        [row.layer, f"{row.kind}, {row.parameters:,} weights", f"{how}{computes}", *cut, f"{row.stored_bytes:,} bytes"]
    )


def sensitivity(path: Path) -> Figure | None:
    """From the file that `autocompress sensitivity` and searches that measured the tables leave; None: there is none such."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return heat_map(content) if content["layers"] else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def heat_map(content: Mapping[str, Any]) -> Figure:
    """Divergence of each layer with each option alone, of the content of sensitivity.json; layers as the model has them."""
    layers = {layer["layer"]: layer for layer in content["layers"]}
    order = [name for name in content.get("order", layers) if name in layers]
    columns = list(content.get("options") or dict.fromkeys(o["option"] for layer in layers.values() for o in layer["options"]))
    alone = set(content["leave_alone"]["layers"])
    values = [_divergences(layers[name]["options"], columns) for name in order]
    marked = [f"* {name}" if name in alone else name for name in order]
    unit = f"squared error / FP32's power, {content['examples']} examples"
    told = "What each way of compressing a layer does to the outputs when it is the only one. "
    starred = f"*: {content['leave_alone']['rule']}." if alone else "Light is harmful."
    return Figure("Sensitivity of the layers", told + starred, [Panel([HeatMap(marked, columns, values)], colour=unit)])


def _divergences(options: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> list[float]:
    """NaN: the layer has no such option; infinite: its file does not run."""
    known = {option["option"]: math.inf if option["divergence"] is None else option["divergence"] for option in options}
    return [known.get(column, math.nan) for column in columns]


def latency_prediction(result: SearchResult) -> Figure | None:
    """Trials whose latency was predicted from the other measurements; None: too few to predict any."""
    timed = {record.number: record for record in result.records if record.measurement.latency_ratio is not None}
    pairs = [(predicted, timed[number]) for number, predicted in result.latency_predictions.items() if number in timed]
    if not pairs:
        return None
    predicted, measured = [ratio for ratio, _ in pairs], [record.measurement.latency_ratio or 0.0 for _, record in pairs]
    ends = [min(predicted + measured), max(predicted + measured)]
    texts = [
        f"{trial_name(r, result.quality)}\npredicted {ratio:.3f}\nmeasured {r.measurement.latency_ratio:.3f}"
        for ratio, r in pairs
    ]
    marks: list[Mark] = [Line("equal", ends, ends, role="muted"), Points("trials", predicted, measured, texts)]
    told = "Each trial was predicted from all the others and from timed single options; on the line, the prediction is right."
    return Figure(
        "Latency, predicted and measured", told, [Panel(marks, f"predicted {RATIO}", f"measured {RATIO}", percent=("x", "y"))]
    )


def seconds(result: SearchResult) -> Figure | None:
    """Seconds of each stage over all trials, and of what is no trial."""
    stages: dict[str, float] = defaultdict(float)
    for record in result.records:
        for stage, spent in record.seconds.items():
            stages[stage] += spent
    rest = result.seconds - sum(stages.values())
    parts = {**stages, **({"outside of trials": rest} if rest > 0 and stages else {})}
    if not parts:
        return None
    ended = Counter[str](record.gate for record in result.records if record.state != "complete" and record.is_measured)
    texts = [
        f"{name}: {spent:.1f} s{f', {ended[name]} trials ended here' if ended[name] else ''}" for name, spent in parts.items()
    ]
    bars = Bars([*parts], [*parts.values()], [f"{spent:.1f} s" for spent in parts.values()], texts)
    told = "All trials, stage by stage. Outside of trials: preparation, tables, finalists and the report set."
    return Figure("Where the time went", told, [Panel([bars], "seconds")])


def progress(study: StudyContext, result: SearchResult) -> Figure | None:
    """The best figure so far among what fits the budget, and the hypervolume."""
    found = study_curves(study, result.records)
    if not found.trials:
        return None
    best = [(number, value) for number, value in zip(found.trials, found.best, strict=True) if value is not None]
    name = study.metric if found.figure == "accuracy" else found.figure.replace("_", " ")
    share = ("y",) if found.figure != "accuracy" or study.percent else ()
    first = Panel(
        [Line("best so far", *_columns(best), role="winner", steps=True)], "trial", f"best {name} so far", percent=share
    )
    volume = Line("hypervolume", found.trials, found.hypervolume, steps=True)
    second = Panel([volume], "trial", "hypervolume", percent=("y",))
    told = (
        "Above: the best trial so far that fits the budget. Below: how much of the box between no loss, no time, no bytes and "
        "FP32's own (10 % loss) the front holds."
    )
    return Figure("Progress of the search", told, [first, second] if best else [second])
