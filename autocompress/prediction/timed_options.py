"""The time that single options save, measured on their files; options whose operators are equal are timed once."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from autocompress.budget import Latency
from autocompress.choices.space import OBSERVERS, SearchSpace
from autocompress.display.progress import Progress
from autocompress.errors import AutocompressError, UnreachableError
from autocompress.guarding.time_limit import TimeUpError, within
from autocompress.policy import Policy
from autocompress.prediction.attempts import attempt
from autocompress.prediction.effects import Journal, measure_missing
from autocompress.prediction.latency_model import LatencyFeatures, Observation
from autocompress.trials.trial import Bench

LATENCY = "latency"
"""What the journal calls these figures."""

TOGETHER = 8
"""Files that are timed in the same rounds: FP32 is timed once for all of them, and as many sessions fit into memory."""


@dataclass(frozen=True)
class TimedOptions:
    """Timed files of single options.

    Attributes:
        observed: one for each way of computing that the options differ in.
        ratios: parameter to the latency ratio of each option alone; None where the file does not run.
        reference_ms: of FP32, timed in the same rounds.
    """

    observed: Sequence[Observation]
    ratios: Mapping[str, Sequence[float | None]]
    reference_ms: float


def time_options(
    bench: Bench, space: SearchSpace, features: LatencyFeatures, seconds: float, journal: Journal, progress: Progress
) -> TimedOptions:
    """Time the file of each option alone against FP32; only what the journal does not hold is measured."""
    _, distinct = _distinct(space, features)

    def measure(batch: Sequence[Policy]) -> None:
        _time(bench, batch, seconds, journal)

    measure_missing(journal, LATENCY, list(distinct.values()), measure, "latency of single options", progress, TOGETHER)
    return known_options(space, features, journal)


def known_options(space: SearchSpace, features: LatencyFeatures, journal: Journal) -> TimedOptions:
    """As far as the journal has them."""
    keys, distinct = _distinct(space, features)
    timed = {key: values for key, policy in distinct.items() if (values := journal.get(LATENCY, policy)) is not None}
    failed = dict.fromkeys(distinct.keys() - timed.keys())
    ratios = {**failed, **{key: values["ratio"] for key, values in timed.items()}}
    return TimedOptions(
        observed=[Observation(distinct[key], values["ratio"], values["spread"]) for key, values in timed.items()],
        ratios={name: [ratios.get(key, 1.0) for key in options] for name, options in keys.items()},
        reference_ms=median(values["reference_ms"] for values in timed.values()) if timed else 0.0,
    )


def _distinct(space: SearchSpace, features: LatencyFeatures) -> tuple[dict[str, list[bytes]], dict[bytes, Policy]]:
    """Parameter to what each of its options computes like, and one policy for each way of computing but FP32's."""
    counts = {name: count for name, count in space.sizes.items() if not name.startswith(OBSERVERS)}  # they take no time
    policies = {name: [space.alone(name, index) for index in range(count)] for name, count in counts.items()}
    keys = {name: [features.of(policy).tobytes() for policy in options] for name, options in policies.items()}
    distinct = {key: policy for name in policies for key, policy in zip(keys[name], policies[name], strict=True)}
    distinct.pop(features.of(Policy()).tobytes(), None)
    return keys, distinct


def _time(bench: Bench, policies: Sequence[Policy], seconds: float, journal: Journal) -> None:
    """Keep ratio, spread and FP32's milliseconds of each policy's file, timed together; of those that cannot run nothing."""
    with tempfile.TemporaryDirectory(dir=bench.evaluator.folder) as folder:
        built = [(policy, path) for policy in policies if (path := _built(bench, policy, Path(folder), journal)) is not None]
        for (policy, _), latency in zip(built, _latencies(bench, [path for _, path in built], seconds), strict=True):
            if latency is not None:
                observation = Observation.of(policy, latency)
                values = {"ratio": observation.ratio, "spread": observation.spread, "reference_ms": latency.reference_median_ms}
                journal.put(LATENCY, policy, values)


def _built(bench: Bench, policy: Policy, folder: Path, journal: Journal) -> Path | None:
    path = folder / f"{policy.digest}.onnx"
    with contextlib.suppress(AutocompressError, TimeUpError), attempt(journal, policy) as is_worth_it:
        if is_worth_it:
            within(bench.trial_timeout, lambda: bench.build(policy, path))
            return path
    return None


def _latencies(bench: Bench, paths: Sequence[Path], seconds: float) -> list[Latency | None]:
    """Figures of each file; when the runtime fails, each alone, None for those that fail."""
    timing, example = replace(bench.timing, seconds=seconds), bench.evaluator.inputs("example")
    if not paths:
        return []
    limit = bench.trial_timeout and bench.trial_timeout * len(paths)
    try:
        found = within(limit, lambda: bench.device.latencies(bench.graph.path, paths, example, timing, bench.no_limits))
        return list(found)
    except UnreachableError:
        raise
    except (AutocompressError, TimeUpError):
        bench.check_files()
        return [None] if len(paths) == 1 else [_latencies(bench, [path], seconds)[0] for path in paths]
