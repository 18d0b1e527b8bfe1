"""The time that single options save, measured on their files; options whose operators are equal are timed once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autocompress.device import TimingSettings
from autocompress.effects import Journal
from autocompress.errors import AutocompressError
from autocompress.latency_model import LatencyFeatures, Observation
from autocompress.policy import Policy
from autocompress.progress import Progress
from autocompress.space import SearchSpace
from autocompress.trial import Bench


@dataclass(frozen=True)
class Probes:
    """Timed files of single options.

    Attributes:
        observed: one for each way of computing that the options differ in.
        ratios: parameter to the latency ratio of each option alone; None where the file does not run.
    """

    observed: Sequence[Observation]
    ratios: Mapping[str, Sequence[float | None]]


def time_options(
    bench: Bench, space: SearchSpace, features: LatencyFeatures, seconds: float, journal: Journal, progress: Progress
) -> Probes:
    """Time the file of each option alone against FP32; only what the journal does not hold is measured."""
    policies = {name: [space.alone(name, index) for index in range(count)] for name, count in space.sizes.items()}
    distinct: dict[bytes, Policy] = {}
    for options in policies.values():
        for policy in options:
            distinct.setdefault(features.of(policy).tobytes(), policy)
    timed = {}
    for done, (key, policy) in enumerate(distinct.items(), start=1):
        progress.step("latency of single options", done, len(distinct))
        timed[key] = _timed(bench, policy, seconds, journal) if features.of(policy).any() else Observation(policy, 1.0, 0.0)
    ratios = {name: [_ratio(timed[features.of(policy).tobytes()]) for policy in options] for name, options in policies.items()}
    return Probes([observation for observation in timed.values() if observation is not None], ratios)


def _ratio(observation: Observation | None) -> float | None:
    return None if observation is None else observation.ratio


def _timed(bench: Bench, policy: Policy, seconds: float, journal: Journal) -> Observation | None:
    """None: the file cannot be built or run."""
    known = journal.get("latency", policy)
    if known is None:
        path = bench.evaluator.folder / "probe.onnx"
        try:
            bench.build(policy, path)
            timing = TimingSettings(seconds, bench.timing.precision)
            latency = bench.device.latency(bench.graph.path, path, bench.evaluator.inputs("example"), timing)
        except AutocompressError:
            return None
        finally:
            path.unlink(missing_ok=True)
        observation = Observation.of(policy, latency)
        known = {"ratio": observation.ratio, "spread": observation.spread}
        journal.put("latency", policy, known)
    return Observation(policy, known["ratio"], known["spread"])
