"""The search loop: ask, measure, tell; once for each trial, whatever happens."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from autocompress.accuracy.intervals import Statistics
from autocompress.accuracy.racing import Rival
from autocompress.bounds import check_positive, check_seed
from autocompress.budget import Budget
from autocompress.choices.space import SearchSpace
from autocompress.display.progress import Progress
from autocompress.errors import ConfigError, PluginError, UnreachableError
from autocompress.guarding import interruption
from autocompress.guarding.plugin_call import described
from autocompress.guarding.time_limit import LONGEST_SECONDS, TimeUpError, too_long, within
from autocompress.policy import Policy, load_policy
from autocompress.problem import Problem
from autocompress.quality import Quality
from autocompress.record import Kind, Objective, TrialRecord
from autocompress.searching.ending import Ending
from autocompress.searching.history import History
from autocompress.searching.recovery_time import recovery_seconds
from autocompress.searching.start import STARTS, start_batches
from autocompress.studies.opening import POLL_SECONDS
from autocompress.studies.study import KIND, SearchStudy
from autocompress.tensors.observers import in_effect
from autocompress.trials.incumbent import Incumbent
from autocompress.trials.trial import Bench, run_trial

if TYPE_CHECKING:
    from optuna.trial import Trial

KEEP = ("none", "pareto", "all")


@dataclass
class SearchSettings:
    """How long and how the search looks.

    Attributes:
        trials: finished trials of the study, earlier runs and those of other budgets included; interrupted and repeated ones do
            not count. A search ends earlier when every policy of its space was tried.
        timeout: seconds of this run, from its first trial, for trials and for recoveries of finalists; None: no limit. Trials
            leave the recoveries' time limits (`recover.finetune.seconds`) for each finalist, but at most half of it.
        trial_timeout: seconds after which a trial failed, waiting for the device included, and is not tried again; None: never.
            What hangs in Python or in the runtime is ended; what hangs in C code of a plugin ends the search 30 seconds later,
            and the same command resumes. Proposing a policy, an option of the tables, rebuilding a finalist and a tracker's
            work on one trial have the same limit.
        patience: trials in a row that brought nothing better (for `pareto`: no gain of the front) after which no further one is
            started; counted once something fits the budget. None: no limit.
        seed: seed of everything random.
        seeds: paths of policies to try first, besides the built-in ones.
        start: built-in policies to try first, for at most half of the trials: `none`; `uniform`: one for each bit-width and
            mode; `rules`: those, mixes of them, and each way of pruning; `tables`: the uniform ones, then the best by the
            measured effects of single options.
        observers: names of observers; for each activation tensor the search may take the range of one of them instead of the
            configured one's. Empty: the configured observer gives every range.
        keep: candidates' files that stay, in `candidates/<study>`: none, pareto (the front of accuracy, latency and size), all.
        finalists: best trials whose files are measured again, longer, before one is chosen.
        recoverable_drop: loss of accuracy beyond the budget that recoveries for finalists (fine-tuning) may win back; longer
            training wins back more.
    """

    trials: int = 40
    timeout: float | None = None
    trial_timeout: float | None = None
    patience: int | None = None
    seed: int = 0
    seeds: list[str] = field(default_factory=list)
    start: str = "rules"
    observers: list[str] = field(default_factory=list)
    keep: str = "none"
    finalists: int = 3
    recoverable_drop: float = 0.03

    def __post_init__(self) -> None:
        for name in ("trials", "finalists", "patience"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ConfigError(f"search.{name}={getattr(self, name)}: expected at least 1")
        if self.trial_timeout is not None and not 0 < self.trial_timeout <= LONGEST_SECONDS:
            given = f"search.trial_timeout={self.trial_timeout:g}"
            raise ConfigError(f"{given}: expected more than 0 and at most {LONGEST_SECONDS:g} seconds, or null for no limit")
        check_positive("search", self, "timeout", "recoverable_drop", zero=True)
        check_seed("search", self.seed)
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
    """Every finished trial, whether the user stopped the run, and one sentence on why it ended.

    Attributes:
        deadline: `time.monotonic()` at which `search.timeout` is over.
    """

    records: list[TrialRecord]
    interrupted: bool
    ended: str
    deadline: float = math.inf


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
    """Run trials until the study has enough of them, the time is over, nothing is gained, or the user interrupts.

    Workers that join meanwhile run trials too: their records count and are listened to here, and the last are waited for.
    """
    turns, batches = _Turns(run, study, space, listener), _batches(run, space)
    study.close_interrupted()
    turns.catch_up()  # with those that were given up
    try:
        if turns.reason is None:
            _enqueue(study, space, batches)
            study.open()
        while (reason := turns.reason) is None:
            _enqueue(study, space, batches)
            turns.take()
        study.end(reason)
        turns.wait_for_others()
    except UnreachableError:
        study.end("the search could not reach its device any more")
        turns.stopped()
        raise
    except PluginError as error:
        study.end(f"the search ended: {error}")
        turns.stopped()
        raise
    except KeyboardInterrupt:
        study.end("the search was interrupted")
        return turns.interrupted()
    turns.clean(whole=True)
    return turns.outcome(turns.reason or reason)


def help_trials(run: SearchRun, study: SearchStudy, space: SearchSpace) -> Outcome:
    """Run trials of a study that a search has opened, until that search or one of the own reasons ends it."""
    turns = _Turns(run, study, space, lambda _: None)
    try:
        while (reason := turns.reason or study.ended) is None:
            turns.take()
    except (UnreachableError, PluginError):
        turns.stopped()
        raise
    except KeyboardInterrupt:
        return turns.interrupted()
    return turns.outcome(reason)


class _Turns:
    """What happens between two looks at whether to go on."""

    def __init__(self, run: SearchRun, study: SearchStudy, space: SearchSpace, listener: Listener) -> None:
        settings, policies = run.settings, math.prod(space.sizes.values())
        kept = recovery_seconds(run.bench.components.slow_recoveries, settings.finalists, settings.timeout)
        self._run, self._study, self._space, self._listener = run, study, space, listener
        self._candidates = candidates_folder(run.folder, study)
        self._incumbent = Incumbent(run.bench, run.bench.evaluator.folder / "incumbent.onnx")
        self._history = History(run.goal.objective, study.news())
        self._ending = Ending(settings.trials, settings.timeout, settings.patience, policies, kept)
        run.progress.begin_trials(Quality.of(run.bench.components.metric), settings.timeout, kept)

    @property
    def reason(self) -> str | None:
        """Why no further trial is started."""
        return self._ending.reason(self._history)

    def take(self) -> None:
        """One trial; or some waiting, when those that other processes are at may be enough."""
        interruption.check()
        if self._history.count + self._study.running >= self._run.settings.trials:
            self._wait()
        else:
            self._study.retry_silent()
            self._trial()

    def _trial(self) -> None:
        bench, trial = self._run.bench, self._ask()
        kind, policy = trial.user_attrs.get(KIND, "trial"), self._space.policy(trial.params)
        policy = in_effect(bench.graph, policy, bench.components.target.capabilities())
        path = candidate_path(self._candidates, trial.number)
        self.catch_up()
        record, statistics = _measure(self._run, path, trial.number, kind, policy, self._history, self._incumbent)
        self._study.tell(trial, record)
        gain = self._run.problem.expected_gain if record.kind == "trial" else math.inf
        self._ending.proposed(known=record.kind == "repeated", expected_gain=gain)
        self.catch_up()
        leader = self._history.leader
        if statistics is not None and leader is not None and leader.number == record.number:
            self._incumbent.learn(policy, statistics)

    def _ask(self) -> Trial:
        """The next policy; without a sampler there is none, so one that hangs ends the search."""
        bench = self._run.bench
        try:
            return within(bench.trial_timeout, self._study.ask)
        except TimeUpError as over:
            late = too_long(bench.trial_timeout, over)
            raise PluginError(f"{described(bench.components.sampler)}: to propose a policy it {late}") from None

    def catch_up(self) -> None:
        """Learn of all trials that have finished, one's own and those of other processes."""
        for record in self._study.news():
            self._history.add(record)
            self._listener(record)
            self._run.progress.trial(record, self._history.count, self._run.settings.trials, self._history.leader)
        self.clean()

    def _wait(self) -> None:
        time.sleep(POLL_SECONDS)
        self._study.retry_silent()
        self.catch_up()

    def wait_for_others(self) -> None:
        """Until no other process is at a trial."""
        if self._study.running:
            self._run.progress.note(f"waiting for {self._study.running} trials of other processes")
        while self._study.running:
            self._wait()
        self.catch_up()

    def clean(self, whole: bool = False) -> None:
        """Remove files of trials that are not to be kept."""
        _clean(self._candidates, self._run.settings.keep, self._history, whole)

    def stopped(self) -> None:
        """Leave what is unfinished to the next run."""
        self._study.give_back()
        self.catch_up()

    def interrupted(self) -> Outcome:
        """The user ended it."""
        interruption.answered()
        self.stopped()
        self._history = History(self._run.goal.objective, self._study.records())  # whatever was being told just then
        return self.outcome(self._ending.stopped(self._history), interrupted=True)

    def outcome(self, ended: str, interrupted: bool = False) -> Outcome:
        """What there is in the end."""
        return Outcome(self._history.records, interrupted, ended, self._ending.deadline)


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


def candidates_folder(folder: Path, study: SearchStudy) -> Path:
    """Where the files of a study's trials lie while they are needed; studies that share a folder number theirs alike."""
    return folder / "candidates" / study.name


def candidate_path(candidates: Path, number: int) -> Path:
    """The file of a trial."""
    return candidates / f"t{number:04d}.onnx"


def _measure(
    run: SearchRun, path: Path, number: int, kind: Kind, policy: Policy, history: History, incumbent: Incumbent
) -> tuple[TrialRecord, Statistics | None]:
    """Measure the policy, or copy the figures when the very same policy was measured before."""
    known = history.known(policy)
    if known is not None:
        return replace(known, number=number, kind="repeated", reason=f"same policy as trial {known.number}", seconds={}), None
    try:
        return run_trial(run.bench, policy, run.goal.budget, lambda: _rivals(run, history, incumbent), number, kind, path)
    except BaseException:  # the user or a lost connection ended it
        path.unlink(missing_ok=True)
        raise


def _rivals(run: SearchRun, history: History, incumbent: Incumbent) -> list[Rival]:
    """What a candidate must not lose to: FP32 by more than the budget, and the leader where accuracy is looked for."""
    recoverable = run.settings.recoverable_drop if run.bench.components.slow_recoveries else 0.0
    limit, leader, rivals = run.goal.budget.accuracy_drop, history.leader, list[Rival]()
    if limit is not None:
        rivals.append(Rival("FP32", run.bench.evaluator.reference_statistics("search"), limit + recoverable))
    if leader is not None and run.goal.objective == "accuracy":
        statistics = incumbent.statistics(leader.policy)
        rivals += [Rival(f"trial {leader.number}", statistics, recoverable)] if statistics is not None else []
    return rivals


def _clean(candidates: Path, keep: str, history: History, whole: bool = False) -> None:
    """Remove candidates' files that are not to be kept; unless `whole`, only of finished trials: others may be running."""
    kept = {"none": [], "pareto": history.front, "all": history.records}[keep]
    numbers, finished = {record.number for record in kept}, {record.number for record in history.records}
    for path in candidates.glob("t*.onnx"):
        number = int(path.stem[1:])
        if number not in numbers and (whole or number in finished):
            path.unlink(missing_ok=True)
