"""Finalists are built first, then timed together; more are looked at only while none holds."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autocompress import Budget, Latency, LayerPolicy, Measurement, Policy, SyntheticProblem, TrialRecord
from autocompress.components import Recovery
from autocompress.device import Device, TimingSettings
from autocompress.errors import RuntimeCrashError
from autocompress.finalists import Finalist, find_finalists
from autocompress.loop import Goal, SearchRun, SearchSettings
from autocompress.progress import Progress
from autocompress.trial import Bench

INT8 = LayerPolicy("int8", 8)


class Recorder(Device):
    """Gives made-up ratios by file name, and keeps what was timed together."""

    def __init__(self, bench: Bench, ratios: dict[str, float], crash: str = "") -> None:
        super().__init__(bench.components.target, threads=1)
        self.ratios, self.crash = ratios, crash
        self.batches: list[list[str]] = []
        self.seconds: set[float] = set()

    def latencies(
        self, reference: Path, candidates: Sequence[Path], inputs: Path, timing: TimingSettings, limit: float | None = None
    ) -> list[Latency]:
        names = [path.stem for path in candidates]
        assert all(path.is_file() for path in candidates), "all are built before the first is timed"
        self.batches.append(names)
        self.seconds.add(timing.seconds)
        if self.crash in names:
            raise RuntimeCrashError(f"target x: the runtime's process ended (signal 11) with {names}")
        found = [self.ratios.get(name, 0.5) for name in names]
        return [Latency(ratio, ratio, 1.0, ratio, ratio, ratio, 11, "made up") for ratio in found]


class Idle(Recovery):
    """Changes nothing, for finalists."""

    name = "idle"

    def recover(self, candidate: Any) -> Any:
        return candidate.compressed


@pytest.fixture
def policies(bench: Bench) -> list[Policy]:
    """One layer each, in the order of the network."""
    return [Policy({name: INT8}) for name in bench.graph.layers]


@pytest.fixture
def find(
    quick_bench: Bench, baseline: Measurement, tmp_path: Path
) -> Iterator[Callable[..., tuple[list[Finalist], list[str]]]]:
    def found(
        recorder: Recorder, records: list[TrialRecord], budget: Budget, wanted: int = 2, *recoveries: Recovery
    ) -> tuple[list[Finalist], list[str]]:
        components = replace(quick_bench.components, recoveries=recoveries)
        bench = replace(quick_bench, device=recorder, components=components)
        scored = [replace(record, violations=budget.violations(record.measurement)) for record in records]
        settings = SearchSettings(finalists=wanted)
        run = SearchRun(bench, Goal("latency", budget), SyntheticProblem({}), settings, tmp_path, Progress(io.StringIO()))
        return find_finalists(run, scored)

    yield found


def records(policies: Sequence[Policy], ratio: float = 0.5) -> list[TrialRecord]:
    """Trials that claim these latency ratios, each a little more than the one before."""
    return [
        TrialRecord(n, "trial", "complete", "done", "", policy, _claim(ratio + 0.02 * n), {}, sha256="claimed")
        for n, policy in enumerate(policies)
    ]


def _claim(ratio: float) -> Measurement:
    return Measurement(1000, 0.3, ratio, ratio, 0.9, 0.01, 400)


def test_finalists_are_timed_in_one_run_for_longer(find: Any, quick_bench: Bench, policies: list[Policy]) -> None:
    recorder = Recorder(quick_bench, {"t0001": 0.4})
    finalists, reasons = find(recorder, records(policies[:4]), Budget(latency_ratio=0.9))
    assert recorder.batches == [["t0000", "t0001"]]
    assert recorder.seconds == {3 * quick_bench.timing.seconds}
    assert reasons == []
    assert [finalist.measurement.latency_ratio for finalist in finalists] == [0.5, 0.4]
    assert [finalist.measurement.latency_ms for finalist in finalists] == [0.5, 0.4]


def test_the_next_are_timed_only_when_none_holds(find: Any, quick_bench: Bench, policies: list[Policy]) -> None:
    recorder = Recorder(quick_bench, {"t0000": 0.95, "t0001": 0.95})
    find(recorder, records(policies), Budget(latency_ratio=0.9))
    assert recorder.batches == [["t0000", "t0001"], ["t0002", "t0003"]]


def test_those_that_missed_the_budget_are_timed_only_when_none_holds(
    find: Any, quick_bench: Bench, policies: list[Policy]
) -> None:
    claims = [*records(policies[:1]), *records(policies, ratio=0.9)[1:]]
    holds, misses = Recorder(quick_bench, {}), Recorder(quick_bench, {"t0000": 0.95, "t0001": 0.95})
    find(holds, claims, Budget(latency_ratio=0.9))
    assert holds.batches == [["t0000"]]
    find(misses, claims, Budget(latency_ratio=0.9))
    assert misses.batches == [["t0000"], ["t0001", "t0002"]]


def test_one_that_cannot_be_built_leaves_its_place_to_the_next(find: Any, quick_bench: Bench, policies: list[Policy]) -> None:
    recorder = Recorder(quick_bench, {})
    claims = records([Policy({"elsewhere": INT8}), *policies[:3]])
    _, reasons = find(recorder, claims, Budget(latency_ratio=0.9))
    assert recorder.batches == [["t0001", "t0002"]]
    assert len(reasons) == 1 and reasons[0].startswith("trial 0 was dropped as finalist: PolicyError")


def test_recovered_ones_are_timed_together_with_the_others(find: Any, quick_bench: Bench, policies: list[Policy]) -> None:
    recorder = Recorder(quick_bench, {})
    finalists, _ = find(recorder, records(policies[:2]), Budget(latency_ratio=0.9, accuracy_drop=0.5), 2, Idle())
    everyone = ["t0000", "t0000-recovered", "t0001", "t0001-recovered"]
    assert [sorted(batch) for batch in recorder.batches] == [["t0000", "t0001"], everyone]
    assert sorted(finalist.artifact.path.stem for finalist in finalists) == everyone


def test_one_whose_timing_crashes_does_not_take_the_others_along(find: Any, quick_bench: Bench, policies: list[Policy]) -> None:
    recorder = Recorder(quick_bench, {}, crash="t0001")
    finalists, reasons = find(recorder, records(policies[:2]), Budget(latency_ratio=0.9))
    assert recorder.batches == [["t0000", "t0001"], ["t0000"], ["t0001"]]
    assert [finalist.artifact.path.stem for finalist in finalists] == ["t0000"]
    assert reasons == ["t0001 was dropped as finalist: target x: the runtime's process ended (signal 11) with ['t0001']"]
