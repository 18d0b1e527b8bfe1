"""What each option of each layer costs and saves when it is applied alone: the tables of `effects`, for people and programs."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from autocompress.choices.space import CHANNELS, OBSERVERS, OPS
from autocompress.display.progress import Progress
from autocompress.network.graph import BaseGraph
from autocompress.policy import UNSTRUCTURED, ChannelPolicy, LayerPolicy
from autocompress.prediction.effects import SensitivitySettings, measure_effects
from autocompress.prediction.latency_model import LatencyFeatures
from autocompress.prediction.sure_drop import sure_drops
from autocompress.prediction.timed_options import TimedOptions, time_options
from autocompress.problem import Effect
from autocompress.quality import Quality
from autocompress.workspace import Workspace

Decision = LayerPolicy | ChannelPolicy

SHARE = 0.5
"""A layer is left alone when it alone surely costs more than this share of the allowed drop."""

LAST = ("channels ", "operators ")
"""How labels of options begin that are not about a layer's own weights."""

ALLOWED_DROP = 0.01
"""Where the budget names none."""


@dataclass(frozen=True)
class OptionSensitivity:
    """One option alone.

    Attributes:
        label: words for people, such as `int4 sparse 50%`.
        parameter, index: where the search space has it.
        saved_ms: None where the file does not run, or nobody timed it.
    """

    label: str
    parameter: str
    index: int
    effect: Effect
    saved_bytes: int
    saved_ms: float | None

    @property
    def runs(self) -> bool:
        """Whether its file does."""
        return math.isfinite(self.effect.divergence)

    @property
    def saves(self) -> bool:
        """Whether the file that it gives is smaller or faster."""
        return self.runs and (self.saved_bytes > 0 or (self.saved_ms or 0.0) > 0)


@dataclass(frozen=True)
class LayerSensitivity:
    """Every option of a layer but FP32, and of the channel group that is named after it; or of a kind of region of operators.

    Attributes:
        name: of the layer, or the parameter of the region.
        size_bytes: of the weight in float; 0 for a region.
        macs: multiply-accumulates for one example; 0 for a region.
    """

    name: str
    size_bytes: int
    macs: int
    options: Sequence[OptionSensitivity]

    @cached_property
    def mildest(self) -> OptionSensitivity:
        """The option of least divergence."""
        return min(self.options, key=lambda option: option.effect.divergence)

    @property
    def is_region(self) -> bool:
        """Whether this is about operators between layers; they have no weights to leave alone."""
        return self.name.startswith(OPS)

    @property
    def useful(self) -> list[OptionSensitivity]:
        """The options that save bytes or time; one that does not run saves nothing."""
        return [option for option in self.options if option.saves]


@dataclass(frozen=True)
class Sensitivity:
    """The tables of a model.

    Attributes:
        layers: the most sensitive first, by their mildest option.
        order: names of the same layers as the file has them.
        examples: calibration examples that each option was run on.
        allowed_drop: of the metric.
        observers: tensor to what each observer that may give its range adds to the divergence beyond the best one.
    """

    layers: Sequence[LayerSensitivity]
    order: Sequence[str]
    quality: Quality
    examples: int
    allowed_drop: float = ALLOWED_DROP
    observers: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def rule(self) -> str:
        """When a layer is left alone, in the metric's unit."""
        limit, allowed = (self.quality.difference(drop, digits=2) for drop in (SHARE * self.allowed_drop, self.allowed_drop))
        return (
            f"none of its options runs, or each that saves anything surely costs more than {limit} alone ({SHARE:.0%} of the "
            f"allowed {allowed}): what options of such a divergence cost on average, less two standard errors"
        )

    @property
    def labels(self) -> list[str]:
        """Of all options: one precision beside the other, those of channels and operators last."""
        found = dict.fromkeys(option.label for layer in self.layers for option in layer.options)
        precisions = list(dict.fromkeys(label.split()[0] for label in found))
        return sorted(found, key=lambda label: (label.startswith(LAST), precisions.index(label.split()[0]), label))

    @cached_property
    def leave_alone(self) -> list[str]:
        """The layers that `rule` names, the most sensitive first."""
        options = [option for layer in self.layers for option in layer.options]
        divergences, drops = (np.array([getattr(o.effect, name) for o in options]) for name in ("divergence", "drop"))
        resolution = 1 / self.examples if self.quality.percent else 0.0
        places = [(option.parameter, option.index) for option in options]
        sure = dict(zip(places, sure_drops(divergences, drops, resolution), strict=True))
        limit = SHARE * self.allowed_drop
        return [
            layer.name
            for layer in self.layers
            if not layer.is_region
            and _is_costly(layer, [sure[option.parameter, option.index] for option in layer.useful], limit)
        ]

    @property
    def override(self) -> str:
        """The Hydra override that leaves these layers alone."""
        return f"space.exclude=[{','.join(map(_quoted, self.leave_alone))}]"


def _is_costly(layer: LayerSensitivity, costs: Sequence[float], limit: float) -> bool:
    """Whether the options that save something all cost more than the limit, or nothing runs."""
    return min(costs) > limit if costs else not any(option.runs for option in layer.options)


def measure_sensitivity(
    workspace: Workspace, settings: SensitivitySettings, progress: Progress, allowed_drop: float | None = None
) -> Sensitivity:
    """Measure what the journal does not hold, and put it in order.

    Args:
        allowed_drop: by the budget; None: it names none.
    """
    effects = measure_effects(workspace.bench, workspace.space, settings, workspace.journal, progress)
    return sensitivity_of(workspace, settings, effects, _timed_options(workspace, settings, progress), allowed_drop)


def sensitivity_of(
    workspace: Workspace,
    settings: SensitivitySettings,
    effects: Mapping[str, Sequence[Effect]],
    timed_options: TimedOptions,
    allowed_drop: float | None = None,
) -> Sensitivity:
    """Put what was measured in order; times that were not are left out."""
    evaluator, graph = workspace.bench.evaluator, workspace.bench.graph
    found = dict[str, list[OptionSensitivity]]()
    for parameter, column in effects.items():
        if parameter.startswith(OBSERVERS):
            continue
        found.setdefault(parameter.removeprefix(CHANNELS), []).extend(_options(workspace, parameter, column, timed_options))
    order = [name for name in [*graph.layers, *(OPS + kind for kind in workspace.space.ops)] if found.get(name)]
    layers = [_row(graph, name, found[name]) for name in order]
    return Sensitivity(
        layers=sorted(layers, key=lambda layer: -layer.mildest.effect.divergence),
        order=order,
        quality=Quality.of(evaluator.metric),
        examples=min(settings.images, len(evaluator.targets["calibration"])),
        allowed_drop=ALLOWED_DROP if allowed_drop is None else allowed_drop,
        observers=_observers(workspace, effects),
    )


def _row(graph: BaseGraph, name: str, options: Sequence[OptionSensitivity]) -> LayerSensitivity:
    layer = graph.layers.get(name)
    return LayerSensitivity(name, 4 * layer.parameters if layer else 0, layer.macs if layer else 0, tuple(options))


def _observers(workspace: Workspace, effects: Mapping[str, Sequence[Effect]]) -> dict[str, dict[str, float]]:
    configured = workspace.bench.components.observer.name
    return {
        name: {o.observer or configured: e.divergence for o, e in zip(options, effects[OBSERVERS + name], strict=True)}
        for name, options in workspace.space.observers.items()
    }


def _timed_options(workspace: Workspace, settings: SensitivitySettings, progress: Progress) -> TimedOptions:
    bench = workspace.bench
    features = LatencyFeatures(bench.graph, bench.groups, bench.components.target.capabilities())
    return time_options(bench, workspace.space, features, settings.seconds, workspace.journal, progress)


def _saved_ms(timed_options: TimedOptions, parameter: str, index: int) -> float | None:
    ratio = timed_options.ratios[parameter][index] if parameter in timed_options.ratios else None
    return None if ratio is None else timed_options.reference_ms * (1 - ratio)


def _options(
    workspace: Workspace, parameter: str, effects: Sequence[Effect], timed_options: TimedOptions
) -> Iterator[OptionSensitivity]:
    fp32 = len(workspace.bench.graph.data)
    for index, effect in enumerate(effects):
        policy = workspace.space.alone(parameter, index)
        decided: list[Decision] = [*policy.layers.values(), *policy.channels.values()]  # none for FP32, else one
        labels = [option_label(option) for option in decided] + [
            f"operators {precision}" for precision in {*policy.ops.values()}
        ]
        for label in labels:
            saved_bytes, saved_ms = fp32 - effect.size_bytes, _saved_ms(timed_options, parameter, index)
            yield OptionSensitivity(label, parameter, index, effect, saved_bytes, saved_ms)


def option_label(option: Decision) -> str:
    """Words for people, such as `int4 sparse 50%`; those of `OptionSensitivity.label`."""
    words = ["channels"] if isinstance(option, ChannelPolicy) else [_precision(option)]
    if option.prunes:
        words += [str(option.pruner), _cut(option)]
    if isinstance(option, LayerPolicy) and option.quantizer is not None and option.activation != LayerPolicy().activation:
        words.append(option.activation)
    return " ".join(words)


def _precision(option: LayerPolicy) -> str:
    """`int8`, `gptq4`, `int8/7`: the quantizer, and its bits unless the name ends with them."""
    if option.quantizer is None:
        return "float"
    if option.quantizer.endswith(str(option.bits)):
        return option.quantizer
    return f"{option.quantizer}{'/' if option.quantizer[-1].isdigit() else ''}{option.bits}"


def _cut(option: Decision) -> str:
    if isinstance(option, LayerPolicy) and option.structure != UNSTRUCTURED:
        return option.structure
    return f"{100 * option.sparsity:.0f}%" if option.threshold is None else f">{option.threshold:.2g}"


def _quoted(name: str) -> str:
    """As Hydra reads it in a list."""
    return name if re.fullmatch(r"[\w./\-]+", name) else f"'{name}'"
