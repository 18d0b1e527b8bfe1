"""A trial that takes its process along is tried once more and then given up; what hears no signal ends the process."""

from __future__ import annotations

import io
import os
import resource
import signal
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from autocompress_plugins.affine import Int4, Int8
from optuna.samplers import RandomSampler
from optuna.trial import TrialState

from autocompress import Budget, Measurement, Policy, QuantizedTensor, Sampler, TrialRecord
from autocompress.choices.options import build_space
from autocompress.choices.space_settings import SpaceSettings
from autocompress.components import Quantizer
from autocompress.display.progress import Progress
from autocompress.errors import ConfigError, PluginError
from autocompress.guarding import time_limit
from autocompress.guarding.time_limit import TimeUpError, check_limit, within
from autocompress.prediction.attempts import ATTEMPT, attempt
from autocompress.prediction.effects import Journal, SensitivitySettings, measure_effects
from autocompress.problem import Effect
from autocompress.searching.loop import Goal, Outcome, SearchRun, SearchSettings, run_trials
from autocompress.studies.guarded_sampler import guarded_sampler
from autocompress.studies.opening import open_study
from autocompress.studies.storage import sqlite_storage
from autocompress.studies.study import INTERRUPTED, SearchStudy
from autocompress.synthetic import SyntheticProblem
from autocompress.tensors.compress import LayerDatabase
from autocompress.tensors.guarded_weights import guarded
from autocompress.trials.trial import Bench

RETURNED = 77


@dataclass
class Strange(Int4):
    """INT4, after something strange."""

    before: Any = None

    def quantize(self, *arguments: Any, **more: Any) -> QuantizedTensor:
        self.before()
        return super().quantize(*arguments, **more)


@dataclass
class RandomDraws(Sampler):
    name = "draws"
    before: Any = None

    def create(self, problem: Any, seed: int) -> RandomSampler:
        sampler, before = RandomSampler(seed), self.before
        if before is not None:
            sampler.before_trial = lambda *_: before()  # type: ignore[method-assign]
        return sampler


@dataclass
class Search:
    """A search over two layers, in this process or in one of its own."""

    bench: Bench
    folder: Path
    sampler: Sampler

    def run(self, trials: int, heard: list[TrialRecord]) -> Outcome:
        space, goal = self.space(), Goal("size", Budget())
        study, problem = self.study(), SyntheticProblem(sizes=space.sizes, objective="size")
        run = SearchRun(self.bench, goal, problem, SearchSettings(trials=trials), self.folder, Progress(io.StringIO()))
        return run_trials(run, study, space, heard.append)

    def space(self) -> Any:
        settings = SpaceSettings(["head", "outer.0"], sparsities=[], ops=False)
        return build_space(self.bench.graph, self.bench.components, {}, settings, self.bench.database)

    def study(self) -> SearchStudy:
        space = self.space()
        problem = SyntheticProblem(sizes=space.sizes, objective="size")
        storage = sqlite_storage(self.folder / "study.db")
        return open_study(storage, ["tiny"], space, "size", Budget(), lambda n: guarded_sampler(self.sampler, problem, 3 + n))

    def in_child(self, trials: int) -> int:
        """Exit status of a process that runs it."""
        return in_child(lambda: self.run(trials, []))


def in_child(work: Callable[[], object]) -> int:
    """Exit status of a process that does the work."""
    child = os.fork()
    if not child:
        try:
            work()
            os._exit(RETURNED)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture
def search(quick_bench: Bench, baseline: Measurement, tmp_path: Path) -> Callable[..., Search]:
    def made(before: Callable[[], object], sampler: Any = None, trial_timeout: float | None = None) -> Search:
        quantizers: dict[str, Quantizer] = {"int8": Int8(), "int4": Strange(before=before)}
        draws = RandomDraws(sampler)
        components = guarded(replace(quick_bench.components, quantizers=quantizers, pruners={}, sampler=draws))
        database = LayerDatabase(quick_bench.graph, quick_bench.calibration, components, {})
        bench = replace(quick_bench, components=components, database=database, trial_timeout=trial_timeout)
        return Search(bench, tmp_path, draws)

    return made


def check_given_up(search: Search) -> None:
    """Two processes died on the second trial: it is closed, tried again as another one, and given up."""
    heard: list[TrialRecord] = []
    outcome = search.run(2, heard)
    assert [(record.number, record.state) for record in outcome.records] == [(0, "complete"), (2, "failed")]
    assert heard == outcome.records[1:], "trackers hear of it, once"
    assert heard[0].given_up
    assert heard[0].reason == "the process that ran it died, as that of trial 1 had: it is not tried again"
    trials = search.study()._study.get_trials()
    assert [trial.state for trial in trials] == [TrialState.COMPLETE, TrialState.FAIL, TrialState.FAIL]
    assert [INTERRUPTED in trial.user_attrs for trial in trials] == [False, True, False]
    assert search.run(2, heard).records == outcome.records
    assert len(heard) == 1


def test_a_trial_whose_process_ends_twice_is_given_up(search: Callable[..., Search]) -> None:
    dying = search(lambda: os._exit(7))
    assert [dying.in_child(2), dying.in_child(2)] == [7, 7]
    check_given_up(dying)


def test_a_policy_that_was_given_up_is_not_run_again(search: Callable[..., Search]) -> None:
    """Also when the sampler proposes it: what kills a process would kill the next one."""
    dying = search(lambda: os._exit(7))
    assert [dying.in_child(2), dying.in_child(2)] == [7, 7]
    (_, given_up) = dying.run(2, []).records
    harmless = search(lambda: None)
    records = harmless.run(9, []).records
    again = [record for record in records[2:] if record.policy == given_up.policy]
    assert all((record.kind, record.state) == ("repeated", "failed") for record in again)
    assert len({record.policy.digest for record in records}) == 9


def deaf() -> None:
    """As code in C that does not return: no signal is heard."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
    time.sleep(60)


def test_what_hears_no_signal_ends_the_process(
    search: Callable[..., Search], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(time_limit, "GRACE_SECONDS", 0.2)
    hanging = search(deaf, trial_timeout=3.0)
    assert [hanging.in_child(2), hanging.in_child(2)] == [1, 1]
    said = capfd.readouterr().err
    assert said.count("Timeout") == 2
    assert 'test_dying.py", line' in said
    check_given_up(hanging)


def test_a_trial_that_hung_is_stored_once_and_not_run_again(search: Callable[..., Search]) -> None:
    heard: list[TrialRecord] = []
    hanging = search(lambda: time.sleep(60), trial_timeout=3.0)
    outcome = hanging.run(3, heard)
    assert [(record.state, record.given_up) for record in outcome.records[:2]] == [("complete", False), ("failed", True)]
    assert heard == outcome.records
    assert hanging.run(3, heard).records == outcome.records == heard
    assert [trial.number for trial in hanging.study()._study.get_trials()] == [record.number for record in heard]


def test_too_little_memory_costs_one_trial(search: Callable[..., Search]) -> None:
    def hungry() -> None:
        limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + (256 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        torch.ones(1 << 30)

    hungry_search = search(hungry)
    assert hungry_search.in_child(2) == RETURNED
    complete, failed = hungry_search.study().records()
    assert (complete.state, failed.state) == ("complete", "failed")
    assert "quantizer 'int4': quantize layer" in failed.reason
    assert "memory" in failed.reason


@pytest.mark.parametrize("limit", [None, 0.5])
def test_a_sampler_that_cannot_propose_ends_the_search(search: Callable[..., Search], limit: float | None) -> None:
    """And its trial is left to the next start, which has a better one."""

    def fault() -> None:
        if limit is None:
            raise SystemExit(3)
        time.sleep(60)

    reason = (
        "to propose a policy it took longer than search.trial_timeout=0.5 seconds" if limit else "before_trial: SystemExit: 3"
    )
    with pytest.raises(PluginError, match=f"sampler 'draws': {reason}"):
        search(lambda: None, sampler=fault, trial_timeout=limit).run(2, [])
    records = search(lambda: None).run(2, []).records
    assert [record.state for record in records] == ["complete", "complete"]


def test_an_option_that_hangs_is_infinitely_bad(search: Callable[..., Search], tmp_path: Path) -> None:
    hanging = search(lambda: time.sleep(60), trial_timeout=3.0)
    journal, few = Journal(tmp_path / "sensitivity.jsonl", ["tiny"]), SensitivitySettings(images=8)
    effects = measure_effects(hanging.bench, hanging.space(), few, journal, Progress(io.StringIO()))
    assert [effect.divergence < 1 for effect in effects["head"]] == [True, True, False]


def test_an_option_that_takes_two_processes_along_is_infinitely_bad(search: Callable[..., Search], tmp_path: Path) -> None:
    """Before any trial can have it; the tables are measured where a sampler asks for them."""
    dying = search(lambda: os._exit(7))

    def tables() -> dict[str, list[Effect]]:
        journal, few = Journal(tmp_path / "sensitivity.jsonl", ["tiny"]), SensitivitySettings(images=8)
        return measure_effects(dying.bench, dying.space(), few, journal, Progress(io.StringIO()))

    assert [in_child(tables) for _ in range(4)] == [7] * 4, "two options, two processes each"
    effects = tables()
    assert [[effect.divergence < 1 for effect in effects[name]] for name in ("head", "outer.0")] == [[True, True, False]] * 2


def test_an_option_that_another_process_is_at_is_tried_as_well(tmp_path: Path) -> None:
    """Processes that share the journal may meet at the last option."""
    policy, path = Policy(), tmp_path / "sensitivity.jsonl"
    Journal(path, []).put(ATTEMPT, policy, {"host": uuid.getnode(), "pid": os.getppid(), "died": 1})
    with attempt(Journal(path, []), policy) as is_worth_it:
        assert is_worth_it
    Journal(path, []).put(ATTEMPT, policy, {"host": uuid.getnode(), "pid": 2**22 + 1, "died": 1})
    with attempt(Journal(path, []), policy) as is_worth_it:
        assert not is_worth_it


def test_a_limit_outside_of_another_one_waits() -> None:
    """Work with a limit of its own does not count; what came before and after does."""
    start = time.monotonic()
    within(0.5, lambda: [within(5.0, lambda: time.sleep(0.4)) for _ in range(3)])
    assert time.monotonic() - start > 1.1
    with pytest.raises(TimeUpError):
        within(0.5, lambda: [within(5.0, lambda: time.sleep(0.1)), time.sleep(5)])
    with pytest.raises(TimeUpError):
        within(5.0, lambda: within(0.1, lambda: time.sleep(5)))


def test_a_limit_is_kept_where_the_signal_was_blocked() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
    try:
        with pytest.raises(TimeUpError):
            within(0.1, lambda: time.sleep(5))
        assert signal.SIGALRM in signal.pthread_sigmask(signal.SIG_BLOCK, set())
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_a_timer_of_others_goes_on() -> None:
    fired: list[int] = []
    handler = signal.signal(signal.SIGALRM, lambda *_: fired.append(1))
    before = signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        within(5.0, lambda: None)
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 0.3
        time.sleep(0.4)
        assert fired == [1]
    finally:
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, *before)


def test_a_limit_needs_the_main_thread() -> None:
    said: list[str] = []

    def check() -> None:
        try:
            check_limit("search.trial_timeout", 3.0)
        except ConfigError as error:
            said.append(str(error))

    thread = threading.Thread(target=check)
    thread.start()
    thread.join()
    assert said == ["search.trial_timeout=3: a time limit is kept in the main thread only; search there, or without a limit"]
    check_limit("search.trial_timeout", 3.0)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf"), 1e12])
def test_a_limit_is_a_time(seconds: float) -> None:
    with pytest.raises(ConfigError, match=r"search\.trial_timeout=.*: expected more than 0"):
        SearchSettings(trial_timeout=seconds)
