"""Search efficiency: `python -m benchmarks.search_efficiency resnet20 --trials 200 --seeds 8`.

Each arm searches the front of accuracy, latency and size on real files: bytes of the built file, accuracy and divergence by
the runtime on the search set, kept by the file's hash and shared between arms and seeds, latency by a model. Hypervolume as in
`autocompress.reporting.hypervolume`; seconds are those of the sampler and of building and evaluating when each file was first
measured, and of the tables from the moment an arm asks for them, all as processor time of one thread, which other work on the
machine does not change.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch

from autocompress.budget import Budget, Measurement
from autocompress.choices.options import build_space
from autocompress.choices.space import SearchSpace
from autocompress.choices.space_settings import SpaceSettings
from autocompress.components import Sampler
from autocompress.display.progress import Progress
from autocompress.policy import Policy
from autocompress.prediction.effects import Journal, SensitivitySettings
from autocompress.prediction.measured_problem import MeasuredProblem
from autocompress.prediction.timed_options import LATENCY, TimedOptions
from autocompress.problem import Effect
from autocompress.record import TrialRecord
from autocompress.registry import Registry, load_registry
from autocompress.reporting.hypervolume import hypervolume
from autocompress.searching.start import start_batches
from autocompress.studies.opening import open_study
from autocompress.studies.storage import sqlite_storage
from autocompress.studies.study import SearchStudy
from autocompress.trials.trial import Bench, TrialSettings
from autocompress.verbs import cache_folder
from benchmarks.busy_clock import busy_seconds
from benchmarks.efficiency_figure import draw, summary
from benchmarks.evaluation_cache import Evaluated, EvaluationCache
from benchmarks.fitted_latency import FittedLatency, fit
from benchmarks.integer_program import integer_program
from benchmarks.workbench import RESULTS, TIMING, Workbench, publish, workbench

MODELS = {
    "resnet20": ("+experiment=cifar10_resnet20", "data.search_size=1000", "data.report_size=100"),
    "efficientnet_lite0": ("+experiment=imagenet_efficientnet_lite0", "data.search_size=300", "data.report_size=100"),
}


@dataclass(frozen=True)
class Arm:
    """A sampler and what it starts with; `one_shot`: the integer program's policies and nothing else."""

    sampler: str
    start: str = "none"
    one_shot: bool = False


ARMS = {
    "knapsack": Arm("knapsack", "rules"),
    "tpe": Arm("tpe"),
    "tpe+seeds": Arm("tpe", "rules"),
    "nsgaii+seeds": Arm("nsgaii", "rules"),
    "random": Arm("random"),
    "integer program": Arm("random", one_shot=True),
}


LOSSES = "losses"
"""What the seconds of that table are called, beside `LATENCY`."""


class TimedJournal(Journal):
    """Tables that also keep how long each of their lines took."""

    def __init__(self, path: Path, identity: Sequence[str]) -> None:
        super().__init__(path, identity)
        self._last = busy_seconds()

    def put(self, what: str, policy: Policy, values: Mapping[str, float]) -> None:
        """Keep figures of a policy, and the seconds since the last ones."""
        now = busy_seconds()
        super().put(what, policy, {**values, "seconds": now - self._last})
        self._last = busy_seconds()


@dataclass
class ArmProblem(MeasuredProblem):
    """Hands out what was measured before, and knows what it was asked for."""

    known: MeasuredProblem | None = None
    asked: set[str] = field(default_factory=set)

    def effects(self) -> Mapping[str, Sequence[Effect]]:
        """The tables."""
        assert self.known is not None
        self.asked.add(LOSSES)
        return self.known.effects()

    @cached_property
    def timed_options(self) -> TimedOptions:
        """The times of single options."""
        assert self.known is not None
        self.asked.add(LATENCY)
        return self.known.timed_options


@dataclass(frozen=True)
class Comparison:
    """What all arms share."""

    known: MeasuredProblem
    tables_seconds: Mapping[str, float]
    cache: EvaluationCache
    latency: FittedLatency
    registry: Registry
    trials: int

    def problem(self) -> ArmProblem:
        """A fresh one for each arm and seed."""
        known = self.known
        parts = (known.baseline, known.bench, known.space, known.settings, known.journal, known.progress)
        return ArmProblem("pareto", Budget(), *parts, known=known)

    @property
    def space(self) -> SearchSpace:
        """What is searched."""
        return self.known.space

    def batches(self, arm: Arm, problem: ArmProblem, seed: int) -> Iterator[Sequence[Policy]]:
        """What an arm starts with, computed when it is asked for."""
        if arm.one_shot:
            _ = problem.timed_options
            yield integer_program(problem, self.space, self.latency, self.trials, seed)
        yield from start_batches(arm.start, self.known.bench, self.space, problem, self.trials // 2)


class Clock:
    """Seconds of what runs inside of it, and of what is added."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> None:
        self._start = busy_seconds()

    def __exit__(self, *error: object) -> None:
        self.seconds += busy_seconds() - self._start


def search(comparison: Comparison, name: str, seed: int, folder: Path) -> list[dict[str, Any]]:
    """One search of one arm: a row for each trial."""
    arm, problem, clock = ARMS[name], comparison.problem(), Clock()
    sampler = cast(Sampler, comparison.registry.component("sampler", arm.sampler)())
    study = open_study(
        sqlite_storage(folder / f"{seed}.db"),
        [name],
        comparison.space,
        "pareto",
        Budget(),
        lambda _: sampler.create(problem, seed),
    )
    batches = comparison.batches(arm, problem, seed)
    rows: list[dict[str, Any]] = []
    known: dict[str, Evaluated] = {}
    while len(rows) < comparison.trials:
        with clock:
            _enqueue(study, comparison.space, batches)
            if arm.one_shot and not study.has_waiting:
                break
            trial = study.ask()
            policy = comparison.space.policy(trial.params)
        if policy.digest not in known:
            known[policy.digest] = comparison.cache.measure(policy)
            clock.seconds += known[policy.digest].seconds
        with clock:
            study.tell(trial, _record(trial.number, policy, known[policy.digest]))
        tables = sum(comparison.tables_seconds[what] for what in problem.asked)
        volume = hypervolume([evaluated.measurement for evaluated in known.values()])
        complete = problem.asked == set(comparison.tables_seconds)
        rows.append(_row(name, seed, len(rows), volume, clock.seconds + tables, complete))
    return [*rows, *({**rows[-1], "trial": number} for number in range(len(rows), comparison.trials))]


def _row(arm: str, seed: int, trial: int, volume: float, seconds: float, complete: bool) -> dict[str, Any]:
    """A row; `complete`: the arm's tables are."""
    when = {"arm": arm, "seed": seed, "trial": trial, "complete": complete}
    return {**when, "hypervolume": round(volume, 6), "seconds": round(seconds, 3)}


def _enqueue(study: SearchStudy, space: SearchSpace, batches: Iterator[Sequence[Policy]]) -> None:
    """As in `autocompress.searching.loop`."""
    while not study.has_waiting and (batch := next(batches, None)) is not None:
        for policy in batch:
            study.enqueue_seed(space.indices(policy))


def _record(number: int, policy: Policy, evaluated: Evaluated) -> TrialRecord:
    if evaluated.measurement.accuracy is None:
        return TrialRecord(number, "trial", "failed", "check", "the file does not run", policy, Measurement(), {})
    return TrialRecord(number, "trial", "complete", "done", "", policy, evaluated.measurement, {}, evaluated.sha256)


def compare(bench: Workbench, arms: Sequence[str], trials: int, seeds: int, cache: Path) -> Iterator[dict[str, Any]]:
    """Rows of all arms; the last one says what the tables took."""
    measured, registry = bench_of(bench), load_registry()
    space = build_space(bench.graph, bench.components, bench.groups, SpaceSettings(), bench.database)
    identity = [bench.graph.digest, bench.task.digest(), space.digest]
    journal = TimedJournal(cache / "tables.jsonl", identity)
    baseline = measured.baseline()
    known = MeasuredProblem("pareto", Budget(), baseline, measured, space, SensitivitySettings(), journal, Progress())
    seconds = _tables(known)
    latency = fit(measured, space, journal, known.timed_options.observed)
    sys.stdout.write(f"latency model: {latency.figures()}\n")
    data = hashlib.sha256("|".join(identity[:2]).encode()).hexdigest()[:12]
    evaluations = EvaluationCache(measured, cache / f"evaluations-{data}.jsonl", latency)
    comparison = Comparison(known, seconds, evaluations, latency, registry, trials)
    for name in arms:
        for seed in range(seeds):
            with TemporaryDirectory() as folder:
                rows = search(comparison, name, seed, Path(folder))
            sys.stdout.write(f"{name} seed {seed}: {rows[-1]['hypervolume']:.4f} in {rows[-1]['seconds']:.0f} s\n")
            yield from rows
            sys.stdout.flush()
    yield {"tables_seconds": seconds, "latency_model": latency.figures()}


def _tables(known: MeasuredProblem) -> dict[str, float]:
    """Measure losses and times of single options; the seconds that each took, whenever that was."""
    known.effects()
    _ = known.timed_options
    space, entries = known.space, {LOSSES: f"effect on {known.settings.images}", LATENCY: LATENCY}
    policies = [space.alone(name, index) for name, count in space.sizes.items() for index in range(count)]
    distinct = {policy.digest: policy for policy in policies}.values()
    return {
        what: sum((known.journal.get(entry, policy) or {}).get("seconds", 0.0) for policy in distinct)
        for what, entry in entries.items()
    }


def bench_of(bench: Workbench) -> Bench:
    """The bench of a search, from a workbench."""
    return Bench(
        task=bench.task,
        graph=bench.graph,
        groups=bench.groups,
        components=bench.components,
        calibration=bench.calibration,
        database=bench.database,
        device=bench.device,
        evaluator=bench.evaluator,
        timing=TIMING,
        settings=TrialSettings(),
    )


def main() -> None:
    """One model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--overrides", nargs="*", default=[], help="settings as on the command line: pruner=[sparse]")
    parser.add_argument("--cache", type=Path, default=cache_folder() / "search_efficiency", help="folder of measured files")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--name", default="", help="of the results; search_efficiency_MODEL by default")
    parser.add_argument(
        "--combine", nargs="+", default=[], help="names of published results of some arms each, made side by side"
    )
    arguments = parser.parse_args()
    name = arguments.name or f"search_efficiency_{arguments.model}"
    if arguments.combine:
        conclude(combined(arguments.combine), arguments.model, name)
        return
    torch.set_num_threads(arguments.threads)
    registered = load_registry().names("sampler")
    arms = [name for name in arguments.arms if ARMS[name].sampler in registered]
    for name in set(arguments.arms) - set(arms):
        sys.stdout.write(f"{name}: no such sampler is registered; left out\n")
    with workbench(*MODELS[arguments.model], *arguments.overrides) as bench:
        conclude(
            list(compare(bench, arms, arguments.trials, arguments.seeds, arguments.cache / arguments.model)),
            arguments.model,
            name,
        )


def combined(names: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of all these results; the last one, about the tables, from the first."""
    parts = [json.loads((RESULTS / f"{name}.json").read_text())["rows"] for name in names]
    rows = [row for part in parts for row in part if "arm" in row]
    return [*rows, next(row for row in parts[0] if "tables_seconds" in row)]


def conclude(found: Sequence[dict[str, Any]], model: str, name: str) -> None:
    """Publish rows, the sentences that they give, and the figure."""
    *rows, tables = found
    seconds = sum(tables["tables_seconds"].values())
    lines = summary(rows)
    publish(name, [*rows, tables, {"summary": lines}])
    draw(rows, model, RESULTS / "figures" / f"{name}.png")
    sys.stdout.write("\n".join([f"tables: {seconds:.1f} s", *lines, ""]))


if __name__ == "__main__":
    main()
