"""The study's storage: every record exactly once, whenever the process is killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.trial import TrialState

from autocompress import Budget, Latency, LayerPolicy, Measurement, Policy, TrialRecord
from autocompress.choices.space import SearchSpace
from autocompress.record import LayerRow, Objective, State
from autocompress.studies.opening import open_study, searched_spaces
from autocompress.studies.storage import sqlite_storage
from autocompress.studies.study import SearchStudy

OPTIONS = (LayerPolicy(), LayerPolicy("int8", 8), LayerPolicy("int4", 4))
SPACE = SearchSpace({"stem": OPTIONS, "head": OPTIONS}, {})
BUDGET = Budget(size_ratio=0.4, accuracy_drop=0.01)
LATENCY = Latency(0.5, 0.6, 1.0, 0.5, 0.49, 0.51, 20, "cpu")


def opened(
    folder: Path,
    identity: tuple[str, ...] = ("tiny", "model", "data"),
    space: SearchSpace = SPACE,
    objective: Objective = "accuracy",
    budget: Budget = BUDGET,
) -> SearchStudy:
    return open_study(sqlite_storage(folder / "study.db"), identity, space, objective, budget, optuna.samplers.RandomSampler)


def stored(folder: Path, study: SearchStudy) -> list[optuna.trial.FrozenTrial]:
    """What Optuna alone finds in the file."""
    return optuna.load_study(study_name=study.name, storage=f"sqlite:///{folder / 'study.db'}").get_trials()


def waiting(folder: Path, study: SearchStudy) -> list[dict[str, int]]:
    """Parameters that are queued."""
    return [trial.system_attrs["fixed_params"] for trial in stored(folder, study) if trial.state == TrialState.WAITING]


def record(number: int, indices: Mapping[str, int], state: State = "complete", kind: Any = "trial") -> TrialRecord:
    size, drop = 0.2 + 0.05 * number, 0.004 * number
    measurement = Measurement(int(1000 * size), size, 0.5, 0.5, 0.9 - drop, drop, 100, LATENCY)
    return TrialRecord(
        number=number,
        kind=kind,
        state=state,
        gate="done" if state == "complete" else "size",
        reason="" if state == "complete" else "a reason",
        policy=SPACE.policy(indices),
        measurement=measurement if state == "complete" else Measurement(size_bytes=900, size_ratio=0.9),
        violations=BUDGET.violations(measurement),
        sha256="ab" * 32,
        layers=(LayerRow("stem", "conv2d", 10, 100, "int8", 8, "", 0.0, "int8", 10, -0.1, 0.1, 1e-09),),
        warnings=("odd",),
        seconds={"build": 0.1},
    )


def run_one(study: SearchStudy, state: State = "complete") -> TrialRecord:
    trial = study.ask()
    made = record(trial.number, trial.params, state, trial.user_attrs.get("kind", "trial"))
    study.tell(trial, made)
    return made


def tell(study: SearchStudy, number: int, stem: int, head: int, state: State = "complete") -> TrialRecord:
    """Store a trial with these parameters."""
    study._study.enqueue_trial({"stem": stem, "head": head}, user_attrs={"kind": "trial"})
    trial = study.ask()
    assert trial.number == number
    made = record(number, trial.params, state)
    study.tell(trial, made)
    return made


def test_records_survive_reopening(tmp_path: Path) -> None:
    states: tuple[State, ...] = ("complete", "pruned", "failed", "complete")
    study = opened(tmp_path)
    made = [run_one(study, state) for state in states]
    again = opened(tmp_path)
    assert again.name == study.name
    assert again.id == study.id
    assert again.records() == made


def test_optuna_knows_state_parameters_and_constraints(tmp_path: Path) -> None:
    study = opened(tmp_path)
    made = [run_one(study, state) for state in ("complete", "pruned", "failed")]
    trials = stored(tmp_path, study)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL]
    assert [trial.constraints for trial in trials] == [each.violations for each in made]
    assert set(made[0].violations) == {"size_ratio", "accuracy_drop"}
    assert [SPACE.policy(trial.params) for trial in trials] == [each.policy for each in made]
    assert trials[0].distributions == SPACE.distributions


@pytest.mark.parametrize(
    ("objective", "values", "directions"),
    [
        ("accuracy", [0.9], ["MAXIMIZE"]),
        ("latency", [0.5], ["MINIMIZE"]),
        ("size", [200.0], ["MINIMIZE"]),
        ("pareto", [0.9, 0.5, 200.0], ["MAXIMIZE", "MINIMIZE", "MINIMIZE"]),
    ],
)
def test_optuna_is_told_the_objective(tmp_path: Path, objective: Objective, values: list[float], directions: list[str]) -> None:
    study = opened(tmp_path, objective=objective)
    run_one(study)
    run_one(study, "pruned")
    found = optuna.load_study(study_name=study.name, storage=f"sqlite:///{tmp_path / 'study.db'}")
    assert [direction.name for direction in found.directions] == directions
    assert found.trials[0].values == values
    assert found.trials[1].values is None


def test_what_was_not_measured_violates_nothing_in_optuna(tmp_path: Path) -> None:
    study = opened(tmp_path)
    trial = study.ask()
    study.tell(
        trial, TrialRecord(0, "trial", "failed", "build", "bang", Policy(), Measurement(), BUDGET.violations(Measurement()))
    )
    assert stored(tmp_path, study)[0].constraints == {"size_ratio": 0.0, "accuracy_drop": 0.0}


SISTERS: dict[str, dict[str, Any]] = {
    "budget": {"budget": Budget(size_ratio=0.41, accuracy_drop=0.01)},
    "objective": {"objective": "latency"},
    "front": {"objective": "pareto", "budget": Budget()},
}
STRANGERS: dict[str, dict[str, Any]] = {
    "model": {"identity": ("tiny", "model 2", "data")},
    "name": {"identity": ("small", "model", "data")},
    "space": {"space": SearchSpace({"stem": OPTIONS, "head": OPTIONS[:2]}, {})},
}


@pytest.mark.parametrize("change", [*SISTERS.values(), *STRANGERS.values()], ids=[*SISTERS, *STRANGERS])
def test_anything_else_is_another_study_in_the_same_file(tmp_path: Path, change: dict[str, Any]) -> None:
    study = opened(tmp_path)
    made = run_one(study)
    other = opened(tmp_path, **change)
    assert other.name != study.name
    assert other.id != study.id
    assert len(other.records()) == (change in SISTERS.values())
    assert set(optuna.get_all_study_names(f"sqlite:///{tmp_path / 'study.db'}")) == {study.name, other.name}
    assert opened(tmp_path).records() == [made]


@pytest.mark.parametrize("change", SISTERS.values(), ids=SISTERS)
def test_a_sister_holds_what_was_measured_judged_by_its_own_budget(tmp_path: Path, change: dict[str, Any]) -> None:
    study = opened(tmp_path)
    made = [tell(study, number, stem, head) for number, (stem, head) in enumerate([(0, 1), (1, 1), (2, 2)])]
    found = opened(tmp_path, **change).records()
    assert [each.number for each in found] == [0, 1, 2]
    assert [each.reason for each in found] == [f"measured as trial {number} of {study.name}" for number in range(3)]
    for old, new in zip(made, found, strict=True):
        assert (new.policy, new.measurement, new.sha256, new.layers) == (old.policy, old.measurement, old.sha256, old.layers)
        assert (new.kind, new.state, new.seconds) == ("imported", "complete", {})
        assert new.violations == change.get("budget", BUDGET).violations(old.measurement)


def test_optuna_holds_an_imported_trial_as_one_that_was_told(tmp_path: Path) -> None:
    """The same columns and attributes, so that samplers and the dashboard see no difference."""
    study = opened(tmp_path)
    tell(study, 0, 1, 1), tell(study, 1, 2, 1, "pruned")
    other = opened(tmp_path, objective="size", budget=Budget(size_ratio=0.3, accuracy_drop=0.5))
    told, imported = stored(tmp_path, study), stored(tmp_path, other)
    assert [trial.state for trial in imported] == [trial.state for trial in told] == [TrialState.COMPLETE, TrialState.PRUNED]
    assert [trial.params for trial in imported] == [trial.params for trial in told]
    assert [trial.distributions for trial in imported] == [trial.distributions for trial in told]
    assert [trial.values for trial in imported] == [[200.0], None]
    assert [trial.constraints for trial in imported] == [each.violations for each in other.records()]
    assert all(trial.constraints for trial in imported)
    fixed = {"fixed_params"}  # only queued trials have it
    assert [set(trial.system_attrs) for trial in imported] == [set(trial.system_attrs) - fixed for trial in told]
    assert [trial.user_attrs["kind"] for trial in imported] == ["imported"] * 2


def test_importing_a_trial_takes_one_statement_whatever_its_parameters(tmp_path: Path) -> None:
    """What it holds is written with that of the others; Optuna's `add_trial` takes three for each parameter."""

    def writes(trials: int) -> int:
        folder = tmp_path / str(trials)
        study = opened(folder)
        for number in range(trials):
            tell(study, number, number // 3, number % 3)
        statements: list[str] = []

        def listen(_: Any, __: Any, statement: str, *___: Any) -> None:
            statements.append(statement)

        sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", listen)
        try:
            assert len(opened(folder, objective="size").records()) == trials
        finally:
            sqlalchemy.event.remove(sqlalchemy.Engine, "before_cursor_execute", listen)
        return sum(statement.startswith(("INSERT", "UPDATE")) for statement in statements)

    assert writes(8) - writes(2) <= 6


def test_a_sister_that_is_imported_is_not_tried_again(tmp_path: Path) -> None:
    tell(opened(tmp_path), 0, 1, 1)
    other = opened(tmp_path, objective="size")
    other.enqueue_seed({"stem": 1, "head": 1})
    assert waiting(tmp_path, other) == []


def test_sisters_learn_from_each_other_once(tmp_path: Path) -> None:
    """Each opening brings what is new, from wherever it was measured, and nothing comes back to where it is from."""
    first = opened(tmp_path)
    tell(first, 0, 1, 1)
    second = opened(tmp_path, objective="size")
    tell(second, 1, 2, 2)
    third = opened(tmp_path, objective="latency")
    sources = [each.reason.rpartition(" ")[2] for each in third.records()]
    assert sources == [first.name, second.name]
    for _ in range(2):
        assert [each.kind for each in opened(tmp_path).records()] == ["trial", "imported"]
        assert [each.kind for each in opened(tmp_path, objective="size").records()] == ["imported", "trial"]
        assert opened(tmp_path, objective="latency").records() == third.records()


def test_the_name_of_a_study_tells_people_what_it_is(tmp_path: Path) -> None:
    assert opened(tmp_path).name.startswith("tiny-accuracy-")


def test_trial_left_running_is_closed_not_counted_and_tried_again(tmp_path: Path) -> None:
    study = opened(tmp_path)
    made = [run_one(study)]
    left = study.ask().params  # and the process ends
    again = opened(tmp_path)
    assert again.close_interrupted() == 1
    assert again.records() == made
    trials = stored(tmp_path, again)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE, TrialState.FAIL, TrialState.WAITING]
    assert trials[1].user_attrs["interrupted"] is True
    assert again.ask().params == left
    assert again.close_interrupted() == 1, "also this one was left running"


def test_record_without_its_state_does_not_count(tmp_path: Path) -> None:
    """Killed between the record and the state."""
    study = opened(tmp_path)
    trial = study.ask()
    trial.set_user_attr("record", record(0, trial.params).to_dict())
    again = opened(tmp_path)
    again.close_interrupted()
    assert again.records() == []
    assert again.ask().params == trial.params


def test_nothing_is_closed_where_nothing_runs(tmp_path: Path) -> None:
    study = opened(tmp_path)
    run_one(study)
    study.enqueue_seed({"stem": 1, "head": 1})
    assert study.close_interrupted() == 0
    assert [trial.state for trial in stored(tmp_path, study)] == [TrialState.COMPLETE, TrialState.WAITING]


def test_seeds_come_first_each_once(tmp_path: Path) -> None:
    seeds = [{"stem": 1, "head": 1}, {"stem": 2, "head": 2}, {"stem": 1, "head": 2}]
    study = opened(tmp_path)
    for indices in [*seeds, *seeds]:
        study.enqueue_seed(indices)
    made = [run_one(study) for _ in range(4)]
    assert [SPACE.indices(each.policy) for each in made[:3]] == seeds
    assert [each.kind for each in made] == ["seed", "seed", "seed", "trial"]


@pytest.mark.parametrize("tried", [0, 1, 2])
def test_seeds_are_not_queued_again_when_a_search_resumes(tmp_path: Path, tried: int) -> None:
    seeds = [{"stem": 1, "head": 1}, {"stem": 2, "head": 2}]
    study = opened(tmp_path)
    for indices in seeds:
        study.enqueue_seed(indices)
    for _ in range(tried):
        run_one(study)
    again = opened(tmp_path)
    for indices in seeds:
        again.enqueue_seed(indices)
    assert waiting(tmp_path, again) == seeds[tried:]


def test_interrupted_seed_stays_a_seed(tmp_path: Path) -> None:
    study = opened(tmp_path)
    study.enqueue_seed({"stem": 1, "head": 2})
    study.ask()
    study.close_interrupted()
    study.enqueue_seed({"stem": 1, "head": 2})
    made = run_one(study)
    assert (SPACE.indices(made.policy), made.kind) == ({"stem": 1, "head": 2}, "seed")
    assert waiting(tmp_path, study) == []


Snapshot = tuple[Path, list[TrialRecord], dict[str, int] | None]
"""Copy of the database's folder, records told by then, parameters of the trial in flight."""


@contextmanager
def before_each_commit(act: Callable[[], None]) -> Iterator[None]:
    """Calls a function before each commit to any database."""

    def listener(_: sqlalchemy.Connection) -> None:
        act()

    sqlalchemy.event.listen(sqlalchemy.Engine, "commit", listener)
    try:
        yield
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "commit", listener)


def test_killed_at_any_commit_nothing_is_lost_or_doubled(tmp_path: Path) -> None:
    live = tmp_path / "live"
    study = opened(live)
    seed = {"stem": 2, "head": 1}
    study.enqueue_seed(seed)
    told: list[TrialRecord] = []
    flying: list[dict[str, int] | None] = [seed]
    snapshots: list[Snapshot] = []

    def snapshot() -> None:
        copy = tmp_path / f"copy{len(snapshots)}"
        shutil.copytree(live, copy)
        snapshots.append((copy, list(told), flying[0]))

    with before_each_commit(snapshot):
        for _ in range(2):
            trial = study.ask()
            flying[0] = dict(trial.params)
            made = record(trial.number, trial.params)
            study.tell(trial, made)
            told.append(made)
            flying[0] = None
    assert len(snapshots) > 15
    for copy, records, in_flight in snapshots:
        check_snapshot(copy, records, in_flight)


def check_snapshot(folder: Path, told: list[TrialRecord], in_flight: dict[str, int] | None) -> None:
    """What a new process finds in a database that another one was killed over."""
    study = opened(folder)
    study.close_interrupted()
    found = study.records()
    assert found[: len(told)] == told
    assert len(found) <= len(told) + 1, "at most the trial in flight had been stored"
    assert study.close_interrupted() == 0, "nothing runs any more"
    if in_flight is not None and len(found) == len(told):
        assert waiting(folder, study) == [in_flight]


def test_killed_while_it_cleans_up_nothing_is_lost(tmp_path: Path) -> None:
    live = tmp_path / "live"
    study = opened(live)
    left = study.ask().params
    copies: list[Path] = []

    def snapshot() -> None:
        copies.append(tmp_path / f"copy{len(copies)}")
        shutil.copytree(live, copies[-1])

    with before_each_commit(snapshot):
        study.close_interrupted()
    assert len(copies) > 2
    for copy in copies:
        again = opened(copy)
        again.close_interrupted()
        assert left in waiting(copy, again)
        assert again.close_interrupted() == 0
        assert again.records() == []


def test_killed_while_it_imports_each_sister_comes_once(tmp_path: Path) -> None:
    live = tmp_path / "live"
    study = opened(live)
    for number, (stem, head) in enumerate([(0, 1), (1, 1), (2, 2)]):
        tell(study, number, stem, head)
    copies: list[Path] = []

    def snapshot() -> None:
        copies.append(tmp_path / f"copy{len(copies)}")
        shutil.copytree(live, copies[-1])

    with before_each_commit(snapshot):
        whole = opened(live, objective="size").records()
    assert len(whole) == 3
    halves = [len(opened_by_name(copy, opened(live, objective="size").name)) for copy in copies]
    assert 0 in halves and set(halves) <= {0, 3}, "all of them, or none"
    for copy in copies:
        assert opened(copy, objective="size").records() == whole


def opened_by_name(folder: Path, name: str) -> list[optuna.trial.FrozenTrial]:
    """Finished trials in a copy that nobody has opened again."""
    names = optuna.get_all_study_names(f"sqlite:///{folder / 'study.db'}")
    found = optuna.load_study(study_name=name, storage=f"sqlite:///{folder / 'study.db'}").trials if name in names else []
    assert all(trial.state.is_finished() and "record" in trial.user_attrs for trial in found)
    return found


CHILD = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tests.studies.test_study import opened, run_one
study = opened(Path(sys.argv[1]))
study.enqueue_seed({"stem": 1, "head": 1})
run_one(study), run_one(study, "pruned")
print(study.ask().params["stem"], flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_sigkill_between_two_trials(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CHILD, str(tmp_path), str(Path(__file__).parents[1])]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONWARNINGS": "error"})
    assert done.returncode == -signal.SIGKILL, done.stderr
    study = opened(tmp_path)
    assert [each.state for each in study.records()] == ["complete", "pruned"]
    assert study.close_interrupted() == 1
    assert study.ask().params["stem"] == int(done.stdout)


def test_a_part_of_a_space_takes_over_what_it_offers(tmp_path: Path) -> None:
    study = opened(tmp_path)
    made = [tell(study, number, stem, head) for number, (stem, head) in enumerate([(0, 1), (2, 2)])]
    part = SearchSpace({"stem": OPTIONS[:2], "head": OPTIONS[:2]}, {}, whole=SPACE.digest)
    assert [each.policy for each in opened(tmp_path, space=part).records()] == [made[0].policy]
    assert len(opened(tmp_path).records()) == 2


def test_the_spaces_that_were_searched(tmp_path: Path) -> None:
    identity = ["tiny", "model", "data"]
    storage = sqlite_storage(tmp_path / "study.db")
    assert searched_spaces(storage, identity, SPACE.digest) == set()
    part = SearchSpace({"stem": OPTIONS[:2], "head": OPTIONS}, {}, whole=SPACE.digest)
    for space in (SPACE, part):
        opened(tmp_path, space=space)
    opened(tmp_path, identity=("tiny", "other", "data"))
    assert searched_spaces(storage, identity, SPACE.digest) == {SPACE.digest, part.digest}
    assert searched_spaces(storage, identity, part.digest) == set()
