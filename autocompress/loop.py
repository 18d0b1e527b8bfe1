"""The search loop: ask, measure, tell; once for each trial, whatever happens."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from autocompress.budget import Budget
from autocompress.errors import ConfigError
from autocompress.policy import Policy, load_policy
from autocompress.problem import Problem
from autocompress.progress import Progress
from autocompress.quality import Quality
from autocompress.record import Kind, Objective, TrialRecord
from autocompress.selection import pareto_front, ranked
from autocompress.space import SearchSpace
from autocompress.start import STARTS, start_batches
from autocompress.study import KIND, SearchStudy
from autocompress.trial import Bench, run_trial

KEEP = ("none", "pareto", "all")


@dataclass
class SearchSettings:
    """How long and how the search looks.

    Attributes:
        trials: finished trials of the study, earlier runs included; interrupted ones do not count. A search ends earlier when
            every policy of its space was tried.
        timeout: seconds of this run after which no trial is started; None: no limit.
        seed: seed of everything random.
        seeds: paths of policies to try first, besides the built-in ones.
        start: built-in policies to try first, for at most half of the trials: `none`; `uniform`: one for each bit-width and
            mode; `rules`: those, mixes of them, and each way of pruning; `tables`: the uniform ones, then the best by the
            measured effects of single options.
        keep: candidates' files that stay: none, pareto (the front of accuracy, latency and size), all.
        finalists: best trials whose files are measured again, longer, before one is chosen.
        recoverable_drop: loss of accuracy beyond the budget that recoveries for finalists (fine-tuning) may win back.
    """

    trials: int = 40
    timeout: float | None = None
    seed: int = 0
    seeds: list[str] = field(default_factory=list)
    start: str = "rules"
    keep: str = "none"
    finalists: int = 3
    recoverable_drop: float = 0.1

    def __post_init__(self) -> None:
        for name in ("trials", "finalists"):
            if getattr(self, name) < 1:
                raise ConfigError(f"search.{name}={getattr(self, name)}: expected at least 1")
        if self.keep not in KEEP:
            raise ConfigError(f"search.keep='{self.keep}': expected one of {', '.join(KEEP)}")
        if self.start not in STARTS:
            raise ConfigError(f"search.start='{self.start}': expected one of {', '.join(STARTS)}")


@dataclass(frozen=True)
class Goal:
    """What is looked for."""

    objective: Objective
    budget: Budget


@dataclass(frozen=True)
class Outcome:
    """Every finished trial, and whether the user stopped the run."""

    records: list[TrialRecord]
    interrupted: bool


Listener = Callable[[TrialRecord], object]


@dataclass(frozen=True)
class SearchRun:
    """One run of a search: what measures, what is looked for, what is known of it, how long, and where files go."""

    bench: Bench
    goal: Goal
    problem: Problem
    settings: SearchSettings
    folder: Path
    progress: Progress


def run_trials(run: SearchRun, study: SearchStudy, space: SearchSpace, listener: Listener) -> Outcome:
    """Run trials until the study has enough of them, the time is over, or the user interrupts."""
    study.close_interrupted()
    batches = _batches(run, space)
    records = study.records()
    started_at, start = len(records), time.monotonic()
    run.progress.begin_trials(Quality.of(run.bench.components.metric))
    try:
        while len(records) < run.settings.trials and not _is_over(start, run.settings.timeout):
            if _is_exhausted(records, space):
                break
            _enqueue(study, space, batches)
            trial = study.ask()
            record = _measure(run, trial.number, trial.user_attrs.get(KIND, "trial"), space.policy(trial.params), records)
            study.tell(trial, record)
            records.append(record)
            listener(record)
            run.progress.trial(record, len(records), started_at, run.settings.trials, _leader(records, run.goal))
            _clean(run, records)
    except KeyboardInterrupt:
        study.close_interrupted()
        records = study.records()
        _clean(run, records)
        return Outcome(records, interrupted=True)
    return Outcome(records, interrupted=False)


def _batches(run: SearchRun, space: SearchSpace) -> Iterator[Sequence[Policy]]:
    """The user's policies, then the built-in ones for at most half of the trials."""
    yield [load_policy(Path(path)) for path in run.settings.seeds]
    yield from start_batches(run.settings.start, run.bench, space, run.problem, max(1, run.settings.trials // 2))


def _enqueue(study: SearchStudy, space: SearchSpace, batches: Iterator[Sequence[Policy]]) -> None:
    """Queue the next policies when none is waiting; there may be none left, or all of them known."""
    while not study.has_waiting:
        batch = next(batches, None)
        if batch is None:
            return
        for policy in batch:
            study.enqueue_seed(space.indices(policy))


def _is_over(start: float, timeout: float | None) -> bool:
    return timeout is not None and time.monotonic() - start > timeout


def _is_exhausted(records: Sequence[TrialRecord], space: SearchSpace) -> bool:
    """Whether every policy of the space was tried."""
    policies = math.prod(space.sizes.values())
    return len(records) >= policies and len({record.policy.digest for record in records}) >= policies


def candidate_path(folder: Path, number: int) -> Path:
    """Where the file of a trial lies while it is needed."""
    return folder / "candidates" / f"t{number:04d}.onnx"


def _measure(run: SearchRun, number: int, kind: Kind, policy: Policy, records: Sequence[TrialRecord]) -> TrialRecord:
    """Measure the policy, or copy the figures when the very same policy was measured before."""
    known = next((r for r in records if r.policy.digest == policy.digest and r.state != "failed"), None)
    if known is not None:
        return replace(known, number=number, kind=kind, reason=f"same policy as trial {known.number}", seconds={})
    path = candidate_path(run.folder, number)
    return run_trial(run.bench, policy, run.goal.budget, lambda: _floor(run, records), number, kind, path)


def _floor(run: SearchRun, records: Sequence[TrialRecord]) -> float | None:
    """The largest drop that could still win: the budget's, or the best candidate's; more where finalists are recovered."""
    recoverable = run.settings.recoverable_drop if run.bench.components.slow_recoveries else 0.0
    if run.goal.budget.accuracy_drop is not None:
        return run.goal.budget.accuracy_drop + recoverable
    best = _leader(records, run.goal)
    if best is None or best.measurement.accuracy_drop is None or run.goal.objective != "accuracy":
        return None
    return best.measurement.accuracy_drop + recoverable


def _leader(records: Sequence[TrialRecord], goal: Goal) -> TrialRecord | None:
    return next(iter(ranked(records, goal.objective)), None)


def _clean(run: SearchRun, records: Sequence[TrialRecord]) -> None:
    """Remove candidates' files that are not to be kept."""
    choices = {"none": set[int](), "pareto": {r.number for r in pareto_front(records)}, "all": {r.number for r in records}}
    for path in (run.folder / "candidates").glob("t*.onnx"):
        if int(path.stem[1:]) not in choices[run.settings.keep]:
            path.unlink(missing_ok=True)
