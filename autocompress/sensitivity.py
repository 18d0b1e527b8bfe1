"""What each option of each layer costs and saves when it is applied alone: the tables of `effects`, for people and programs."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from autocompress.effects import SensitivitySettings, measure_effects
from autocompress.latency_model import LatencyFeatures
from autocompress.policy import UNSTRUCTURED, ChannelPolicy, LayerPolicy
from autocompress.probes import Probes, time_options
from autocompress.problem import Effect
from autocompress.progress import Progress
from autocompress.quality import Quality
from autocompress.space import CHANNELS
from autocompress.workspace import Workspace

Decision = LayerPolicy | ChannelPolicy

STANDS_OUT = 3.0
"""A layer is left alone when its share of the loss is more than so many times what it can give."""

RULE = (
    f"a layer is left alone when its mildest option does not run, or causes more than {STANDS_OUT:g} times its share of the "
    "divergence: the largest of an even share, its share of the bytes that mildest options save, and of the "
    "multiply-accumulates"
)


@dataclass(frozen=True)
class OptionSensitivity:
    """One option alone.

    Attributes:
        label: words for people, such as `int4 sparse 50%`.
        parameter, index: where the search space has it.
        saved_ms: None where the file does not run.
    """

    label: str
    parameter: str
    index: int
    effect: Effect
    saved_bytes: int
    saved_ms: float | None


@dataclass(frozen=True)
class LayerSensitivity:
    """Every option of a layer but FP32, and of the channel group that is named after it.

    Attributes:
        size_bytes: of the weight in float.
        macs: multiply-accumulates for one example.
    """

    name: str
    size_bytes: int
    macs: int
    options: Sequence[OptionSensitivity]

    @cached_property
    def mildest(self) -> OptionSensitivity:
        """The option of least divergence."""
        return min(self.options, key=lambda option: option.effect.divergence)


@dataclass(frozen=True)
class Sensitivity:
    """The tables of a model.

    Attributes:
        layers: the most sensitive first, by their mildest option.
        order: names of the same layers as the file has them.
        examples: calibration examples that each option was run on.
    """

    layers: Sequence[LayerSensitivity]
    order: Sequence[str]
    quality: Quality
    examples: int

    @property
    def labels(self) -> list[str]:
        """Of all options: one precision beside the other, those of channels last."""
        found = dict.fromkeys(option.label for layer in self.layers for option in layer.options)
        precisions = list(dict.fromkeys(label.split()[0] for label in found))
        return sorted(found, key=lambda label: (label.startswith("channels "), precisions.index(label.split()[0]), label))

    @cached_property
    def leave_alone(self) -> list[str]:
        """The layers that `RULE` names, the most sensitive first."""
        mildest = [layer.mildest for layer in self.layers]
        loss = _shares([option.effect.divergence for option in mildest])
        saved = _shares([option.saved_bytes for option in mildest])
        macs = _shares([layer.macs for layer in self.layers])
        gives = [max(1 / len(self.layers), *parts) for parts in zip(saved, macs, strict=True)]
        pairs = zip(self.layers, loss, gives, strict=True)
        return [layer.name for layer, share, given in pairs if share > STANDS_OUT * given]

    @property
    def override(self) -> str:
        """The Hydra override that leaves these layers alone."""
        return f"space.exclude=[{','.join(map(_quoted, self.leave_alone))}]"


def measure_sensitivity(workspace: Workspace, settings: SensitivitySettings, progress: Progress) -> Sensitivity:
    """Measure what the journal does not hold, and put it in order."""
    evaluator, graph = workspace.bench.evaluator, workspace.bench.graph
    effects = measure_effects(workspace.bench, workspace.space, settings, workspace.journal, progress)
    probes = _probes(workspace, settings, progress)
    found = dict[str, list[OptionSensitivity]]()
    for parameter, column in effects.items():
        found.setdefault(parameter.removeprefix(CHANNELS), []).extend(_options(workspace, parameter, column, probes))
    order = [name for name in graph.layers if found.get(name)]
    layers = [
        LayerSensitivity(name, 4 * graph.layers[name].parameters, graph.layers[name].macs, tuple(found[name])) for name in order
    ]
    return Sensitivity(
        layers=sorted(layers, key=lambda layer: -layer.mildest.effect.divergence),
        order=order,
        quality=Quality.of(evaluator.metric),
        examples=min(settings.images, len(evaluator.targets["calibration"])),
    )


def _probes(workspace: Workspace, settings: SensitivitySettings, progress: Progress) -> Probes:
    bench = workspace.bench
    features = LatencyFeatures(bench.graph, bench.groups, bench.components.target.capabilities())
    return time_options(bench, workspace.space, features, settings.seconds, workspace.journal, progress)


def _saved_ms(probes: Probes, parameter: str, index: int) -> float | None:
    ratio = probes.ratios[parameter][index]
    return None if ratio is None else probes.reference_ms * (1 - ratio)


def _options(workspace: Workspace, parameter: str, effects: Sequence[Effect], probes: Probes) -> Iterator[OptionSensitivity]:
    fp32 = len(workspace.bench.graph.data)
    for index, effect in enumerate(effects):
        policy = workspace.space.alone(parameter, index)
        decided: list[Decision] = [*policy.layers.values(), *policy.channels.values()]  # none for FP32, else one
        for option in decided:
            saved_bytes, saved_ms = fp32 - effect.size_bytes, _saved_ms(probes, parameter, index)
            yield OptionSensitivity(_label(option), parameter, index, effect, saved_bytes, saved_ms)


def _label(option: Decision) -> str:
    words = ["channels"] if isinstance(option, ChannelPolicy) else [_precision(option)]
    if option.prunes:
        words += [str(option.pruner), _cut(option)]
    if isinstance(option, LayerPolicy) and option.quantizer is not None and option.activation != LayerPolicy().activation:
        words.append(option.activation)
    return " ".join(words)


def _precision(option: LayerPolicy) -> str:
    """`int8`, `gptq4`: the quantizer, and its bits unless the name ends with them."""
    if option.quantizer is None:
        return "float"
    return option.quantizer if option.quantizer.endswith(str(option.bits)) else f"{option.quantizer}{option.bits}"


def _cut(option: Decision) -> str:
    if isinstance(option, LayerPolicy) and option.structure != UNSTRUCTURED:
        return option.structure
    return f"{100 * option.sparsity:.0f}%" if option.threshold is None else f">{option.threshold:.2g}"


def _shares(values: Sequence[float]) -> list[float]:
    """Of the finite sum; what is not finite has an infinite share."""
    total = sum(value for value in values if math.isfinite(value))
    return [value / total if total > 0 and math.isfinite(value) else value if math.isinf(value) else 0.0 for value in values]


def _quoted(name: str) -> str:
    """As Hydra reads it in a list."""
    return name if re.fullmatch(r"[\w./\-]+", name) else f"'{name}'"
