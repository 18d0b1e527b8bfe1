"""The search loop: ask, measure, tell; once for each trial, whatever happens."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from autocompress.budget import Budget
from autocompress.errors import ConfigError
from autocompress.policy import Policy, load_policy
from autocompress.progress import Progress
from autocompress.quality import Quality
from autocompress.record import Kind, Objective, TrialRecord
from autocompress.seeds import seed_policies
from autocompress.selection import pareto_front, ranked
from autocompress.space import SearchSpace
from autocompress.study import KIND, SearchStudy
from autocompress.trial import Bench, run_trial

KEEP = ("none", "pareto", "all")


@dataclass
class SearchSettings:
    """How long and how the search looks.

    Attributes:
        trials: finished trials of the study, earlier runs included; interrupted ones do not count.
        timeout: seconds of this run after which no trial is started; None: no limit.
        seed: seed of everything random.
        seeds: paths of policies to try first, besides the built-in ones.
        keep: candidates' files that stay: none, pareto (the front of accuracy, latency and size), all.
        finalists: best trials whose files are measured again, longer, before one is chosen.
        recoverable_drop: loss of accuracy beyond the budget that recoveries for finalists (fine-tuning) may win back.
    """

    trials: int = 40
    timeout: float | None = None
    seed: int = 0
    seeds: list[str] = field(default_factory=list)
    keep: str = "none"
    finalists: int = 3
    recoverable_drop: float = 0.1

    def __post_init__(self) -> None:
        for name in ("trials", "finalists"):
            if getattr(self, name) < 1:
                raise ConfigError(f"search.{name}={getattr(self, name)}: expected at least 1")
        if self.keep not in KEEP:
            raise ConfigError(f"search.keep='{self.keep}': expected one of {', '.join(KEEP)}")


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


def run_trials(
    study: SearchStudy,
    space: SearchSpace,
    bench: Bench,
    goal: Goal,
    settings: SearchSettings,
    folder: Path,
    progress: Progress,
    listener: Listener,
) -> Outcome:
    """Run trials until the study has enough of them, the time is over, or the user interrupts."""
    study.close_interrupted()
    for policy in _seeds(space, bench, settings):
        study.enqueue_seed(space.indices(policy))
    records = study.records()
    started_at, start = len(records), time.monotonic()
    progress.begin_trials(Quality.of(bench.components.metric))
    try:
        while len(records) < settings.trials and not _is_over(start, settings.timeout):
            trial = study.ask()
            kind = trial.user_attrs.get(KIND, "trial")
            record = _measure(trial.number, kind, space.policy(trial.params), bench, goal, records, folder)
            study.tell(trial, record)
            records.append(record)
            listener(record)
            progress.trial(record, len(records), started_at, settings.trials, _leader(records, goal))
            _clean(folder, records, settings.keep)
    except KeyboardInterrupt:
        study.close_interrupted()
        records = study.records()
        _clean(folder, records, settings.keep)
        return Outcome(records, interrupted=True)
    return Outcome(records, interrupted=False)


def _seeds(space: SearchSpace, bench: Bench, settings: SearchSettings) -> list[Policy]:
    """The user's policies, then the built-in ones for at most half of the trials."""
    own = [load_policy(Path(path)) for path in settings.seeds]
    return [*own, *seed_policies(space, bench.graph.layers)[: max(1, settings.trials // 2)]]


def _is_over(start: float, timeout: float | None) -> bool:
    return timeout is not None and time.monotonic() - start > timeout


def candidate_path(folder: Path, number: int) -> Path:
    """Where the file of a trial lies while it is needed."""
    return folder / "candidates" / f"t{number:04d}.onnx"


def _measure(
    number: int, kind: Kind, policy: Policy, bench: Bench, goal: Goal, records: Sequence[TrialRecord], folder: Path
) -> TrialRecord:
    """Measure the policy, or copy the figures when the very same policy was measured before."""
    known = next((r for r in records if r.policy.digest == policy.digest and r.state != "failed"), None)
    if known is not None:
        return replace(known, number=number, kind=kind, reason=f"same policy as trial {known.number}", seconds={})
    path = candidate_path(folder, number)
    return run_trial(bench, policy, goal.budget, lambda: _floor(goal, records), number, kind, path)


def _floor(goal: Goal, records: Sequence[TrialRecord]) -> float | None:
    """The largest drop that could still win: the budget's, or that of the most accurate candidate so far."""
    if goal.budget.accuracy_drop is not None:
        return goal.budget.accuracy_drop
    best = _leader(records, goal)
    return best.measurement.accuracy_drop if best is not None and goal.objective == "accuracy" else None


def _leader(records: Sequence[TrialRecord], goal: Goal) -> TrialRecord | None:
    return next(iter(ranked(records, goal.objective)), None)


def _clean(folder: Path, records: Sequence[TrialRecord], keep: str) -> None:
    """Remove candidates' files that are not to be kept."""
    kept = {"none": set[int](), "pareto": {r.number for r in pareto_front(records)}, "all": {r.number for r in records}}[keep]
    for path in (folder / "candidates").glob("t*.onnx"):
        if int(path.stem[1:]) not in kept:
            path.unlink(missing_ok=True)
