"""Finalists are built first, then timed together; more are looked at only while none holds."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autocompress import Budget, Latency, LayerPolicy, Measurement, Policy, SyntheticProblem, TrialRecord
from autocompress.budget import Energy, Footprint
from autocompress.components import Recovery
from autocompress.display.progress import Progress
from autocompress.errors import RuntimeCrashError
from autocompress.measuring.device import Device, TimingSettings
from autocompress.searching.finalists import Finalist, find_finalists
from autocompress.searching.loop import Goal, SearchRun, SearchSettings
from autocompress.trials.trial import Bench

INT8 = LayerPolicy("int8", 8)
WIDE = Budget(latency_ratio=0.9, accuracy_drop=0.5)


class Recorder(Device):
    """Gives made-up ratios by file name, and keeps what was timed together."""

    def __init__(self, bench: Bench, ratios: dict[str, float], crash: str = "") -> None:
        super().__init__(bench.components.target, threads=1)
        self.ratios, self.crash = ratios, crash
        self.batches: list[list[str]] = []
        self.seconds: set[float] = set()

    def latencies(
        self, reference: Path, candidates: Sequence[Path], inputs: Path, timing: TimingSettings, budget: Budget | None = None
    ) -> list[Latency]:
        names = [path.stem for path in candidates]
        assert all(path.is_file() for path in candidates), "all are built before the first is timed"
        self.batches.append(names)
        self.seconds.add(timing.seconds)
        if self.crash in names:
            raise RuntimeCrashError(f"target x: the runtime's process ended (signal 11) with {names}")
        found = [self.ratios.get(name, 0.5) for name in names]
        return [Latency(ratio, ratio, 1.0, ratio, ratio, ratio, 11, "made up") for ratio in found]

    def footprint(self, path: Path, inputs: Path, processes: int) -> Footprint:
        return Footprint(1000, 2000, 3.0, 2.0, 1.0)

    def energy(self, path: Path, inputs: Path) -> Energy:
        return Energy(0.5)


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
        recorder: Recorder,
        records: list[TrialRecord],
        budget: Budget,
        wanted: int = 2,
        *recoveries: Recovery,
        deadline: float = math.inf,
        trial_timeout: float | None = None,
    ) -> tuple[list[Finalist], list[str]]:
        components = replace(quick_bench.components, recoveries=recoveries)
        bench = replace(quick_bench, device=recorder, components=components, trial_timeout=trial_timeout)
        scored = [replace(record, violations=budget.violations(record.measurement)) for record in records]
        settings = SearchSettings(finalists=wanted, timeout=None if math.isinf(deadline) else deadline)
        run = SearchRun(bench, Goal("latency", budget), SyntheticProblem({}), settings, tmp_path, Progress(io.StringIO()))
        return find_finalists(run, scored, deadline)

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
    assert {(finalist.measurement.memory_bytes, finalist.measurement.load_ms) for finalist in finalists} == {(1000, 3.0)}
    assert {finalist.measurement.energy for finalist in finalists} == {Energy(0.5)}


def test_one_that_takes_more_memory_than_its_trial_promised_does_not_hold(
    find: Any, quick_bench: Bench, policies: list[Policy]
) -> None:
    recorder = Recorder(quick_bench, {})
    find(recorder, records(policies[:4]), Budget(memory_bytes=999))
    assert recorder.batches == [["t0000", "t0001"], ["t0002", "t0003"]]


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


class Strange(Recovery):
    """Does something else than it should."""

    name = "strange"
    seconds = 0.1

    def __init__(self, fault: Callable[[Any], Any]) -> None:
        self.fault = fault

    def recover(self, candidate: Any) -> Any:
        return self.fault(candidate)


def ended(candidate: Any) -> None:
    raise SystemExit(4)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (ended, "PluginError: recovery 'strange': recover: SystemExit: 4 (test_finalists.py"),
        (lambda _: None, "PluginError: recovery 'strange': recover gives NoneType; expected a CompressedModel"),
        (lambda _: time.sleep(60), "took longer than search.trial_timeout=2 seconds: it was in <lambda> (test_finalists.py"),
    ],
)
def test_a_strange_recovery_costs_what_it_would_have_gained(
    find: Any, quick_bench: Bench, policies: list[Policy], fault: Callable[[Any], Any], reason: str
) -> None:
    known = records(policies[:1])
    found, reasons = find(Recorder(quick_bench, {}), known, WIDE, 1, Strange(fault), trial_timeout=2.0)
    assert [finalist.artifact.path.stem for finalist in found] == ["t0000"]
    assert len(reasons) == 1
    assert reasons[0].startswith(f"trial 0 was not recovered: {reason}")


def test_what_a_recovery_writes_to_is_its_own(find: Any, quick_bench: Bench, policies: list[Policy]) -> None:
    """The model and the tensors of the trial, which the next finalist is built from."""

    def scribble(candidate: Any) -> None:
        for parameter in candidate.task.model.parameters():
            parameter.data.zero_()
        for layer in candidate.compressed.layers.values():
            layer.weight.codes.zero_()
        raise ValueError("that was it")

    digests = [
        find(Recorder(quick_bench, {}), records(policies[:1]), WIDE, 1, *recoveries)[0][0].artifact.sha256
        for recoveries in ([Strange(scribble)], [])
    ]
    assert digests[0] == digests[1]
    assert any(parameter.any() for parameter in quick_bench.task.model.parameters())


class Limited(Recovery):
    """Takes all the time that it is given, and `more`; keeps what it was told."""

    name = "limited"

    def __init__(self, clock: list[float], seconds: float | None, more: float = 0.0) -> None:
        self.clock, self.seconds, self.more, self.told = clock, seconds, more, list[float]()

    def recover(self, candidate: Any) -> Any:
        self.told.append(candidate.seconds)
        self.clock[0] += (candidate.seconds if self.seconds else 0.0) + self.more
        return candidate.compressed


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What `time.monotonic` says: 0, and what tests add."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_finalists_share_the_time_that_is_left(
    find: Any, quick_bench: Bench, policies: list[Policy], clock: list[float]
) -> None:
    training = Limited(clock, seconds=600.0, more=20.0)
    finalists, reasons = find(Recorder(quick_bench, {}), records(policies[:3]), WIDE, 3, training, deadline=300.0)
    assert training.told == [100.0, 90.0, 70.0]  # of 300, half of 180, all of 70
    assert reasons == [] and len(finalists) == 6
    unlimited = Limited(clock, seconds=600.0)
    find(Recorder(quick_bench, {}), records(policies[:2]), WIDE, 2, unlimited)
    assert unlimited.told == [600.0, 600.0]


def test_recoveries_share_the_time_of_a_finalist_by_their_limits(
    find: Any, quick_bench: Bench, policies: list[Policy], clock: list[float]
) -> None:
    correction, rounding, training = Limited(clock, None, 10.0), Limited(clock, 100.0), Limited(clock, 300.0)
    find(Recorder(quick_bench, {}), records(policies[:1]), WIDE, 1, correction, rounding, training, deadline=90.0)
    assert (correction.told, rounding.told, training.told) == ([90.0], [20.0], [60.0])


def test_what_no_time_is_left_for_is_not_begun_and_said(
    find: Any, quick_bench: Bench, policies: list[Policy], clock: list[float]
) -> None:
    slow, training = Limited(clock, None, 200.0), Limited(clock, 600.0)
    training.name = "training"  # type: ignore[misc]
    finalists, reasons = find(Recorder(quick_bench, {}), records(policies[:3]), WIDE, 3, slow, training, deadline=300.0)
    assert (len(slow.told), training.told) == (2, [])  # the first takes 200 of its 100, the second 200 of the last 100
    first, second, third = (reason.split()[1] for reason in reasons)
    assert {first, second, third} == {"0", "1", "2"}
    assert reasons == [
        f"trial {first} was recovered without training: no time was left",
        f"trial {second} was recovered without training: no time was left",
        f"trial {third} was not recovered: search.timeout=300.0 seconds are over",
    ]
    recovered = {f.record.number for f in finalists if f.record and f.artifact.path.stem.endswith("-recovered")}
    assert recovered == {int(first), int(second)}
