"""From trials to the answer: what a trial promised is measured again, and the file that ships is judged on unseen images."""

from __future__ import annotations

import copy
import hashlib
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import scipy.stats
import torch
from numpy.typing import NDArray

from autocompress import Budget, Latency, LayerPolicy, Measurement, Policy, SearchResult, SyntheticProblem, Task, TrialRecord
from autocompress.artifact import sha256_of
from autocompress.building.candidate import build, load_state
from autocompress.display.progress import Progress
from autocompress.guarding.whole_file import put_in_place
from autocompress.policy import load_saved_policy
from autocompress.record import Objective
from autocompress.searching.conclusion import conclude
from autocompress.searching.loop import Goal, Outcome, SearchRun, SearchSettings
from autocompress.trials.trial import Bench

INT8, INT4 = LayerPolicy("int8", 8), LayerPolicy("int4", 4)
HOPELESS = LayerPolicy("int4", 4, "sparse", 0.98)
SMALLER = Budget(size_ratio=0.9)
"""Keeps FP32 from being the answer."""

ENDED = "the search ended"

Conclude = Callable[..., SearchResult]


@pytest.fixture
def concluded(quick_bench: Bench, baseline: Measurement, tiny: Any, tmp_path: Path) -> Conclude:
    def concluded(
        records: list[TrialRecord],
        budget: Budget | None = None,
        objective: Objective = "accuracy",
        finalists: int = 2,
        interrupted: bool = False,
        task: Task = tiny.task,
    ) -> SearchResult:
        goal = Goal(objective, budget or Budget())
        scored = [replace(record, violations=goal.budget.violations(record.measurement)) for record in records]
        outcome = Outcome(scored, interrupted, ENDED)
        settings = SearchSettings(finalists=finalists)
        bench = replace(quick_bench, task=task)
        run = SearchRun(bench, goal, SyntheticProblem({}), settings, tmp_path, Progress(io.StringIO()))
        result = conclude(run, outcome, baseline)
        found = result.best.artifact
        artifact = replace(found, path=put_in_place(found.path.parent) / found.path.name)
        return replace(result, best=replace(result.best, artifact=artifact))

    return concluded


@pytest.fixture
def every(bench: Bench) -> Callable[[LayerPolicy], Policy]:
    """One option for all layers."""
    return lambda option: Policy(dict.fromkeys(bench.graph.layers, option))


@pytest.fixture(scope="session")
def sizes(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> dict[LayerPolicy, float]:
    """Real size ratio of a file with one option for all layers."""
    folder = tmp_path_factory.mktemp("sizes")
    files = {
        option: bench.build(Policy(dict.fromkeys(bench.graph.layers, option)), folder / f"{index}.onnx").artifact.size_bytes
        for index, option in enumerate((INT8, INT4))
    }
    return {option: size / bench.graph.path.stat().st_size for option, size in files.items()}


def record(
    number: int, policy: Policy, size: float = 0.3, accuracy: float = 0.9, latency: float = 0.5, images: int = 400
) -> TrialRecord:
    """What a trial claims."""
    figures = Measurement(int(1e5 * size), size, latency, latency, accuracy, 0.95 - accuracy, images)
    return TrialRecord(number, "trial", "complete", "done", "", policy, figures, {}, sha256="claimed")


def pruned(number: int, policy: Policy, size: float) -> TrialRecord:
    figures = Measurement(int(1e5 * size), size)
    return TrialRecord(number, "trial", "pruned", "size", "too large", policy, figures, {}, sha256="claimed")


def choices(path: Path, task: Task, name: str) -> NDArray[np.int64]:
    """The top choice of a file for each image of a set, by plain onnxruntime."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (outputs,) = session.run(None, {session.get_inputs()[0].name: task.sets[name].inputs})
    found: NDArray[np.int64] = np.asarray(outputs).argmax(1)
    return found


def right(path: Path, task: Task, name: str) -> NDArray[np.float64]:
    """1 for each image of a set that a file gets right."""
    return (choices(path, task, name) == task.sets[name].targets).astype(np.float64)


def test_answer_is_measured_on_the_report_set(
    concluded: Conclude, every: Callable[[LayerPolicy], Policy], bench: Bench, tiny: Any, tmp_path: Path
) -> None:
    budget = Budget(size_ratio=0.9, latency_ratio=50, accuracy_drop=0.5)
    result = concluded([record(4, every(INT8))], budget)
    assert (result.status, result.best_trial, result.policy) == ("feasible", 4, every(INT8))
    assert (result.objective, result.budget, result.front) == ("accuracy", budget, [4])
    assert result.binding_constraint is None

    best, fp32 = tmp_path / "best/model.onnx", bench.graph.path
    assert result.best.artifact.path == best
    assert result.best.artifact.sha256 == hashlib.sha256(best.read_bytes()).hexdigest()
    figures, base = result.best.measurement, result.baseline.measurement
    assert figures.size_bytes == best.stat().st_size
    assert figures.size_ratio == best.stat().st_size / fp32.stat().st_size
    assert base.size_bytes == fp32.stat().st_size
    assert (figures.images, base.images) == (500, 500)

    ours, theirs = right(best, tiny.task, "report"), right(fp32, tiny.task, "report")
    assert figures.accuracy == pytest.approx(ours.mean())
    assert base.accuracy == pytest.approx(theirs.mean())
    assert result.drop == pytest.approx(theirs.mean() - ours.mean())
    assert figures.accuracy_drop == result.drop
    assert result.selection_gap == pytest.approx(right(best, tiny.task, "search").mean() - ours.mean())


def test_intervals_are_those_of_paired_data(concluded: Conclude, every: Callable[[LayerPolicy], Policy], tiny: Any) -> None:
    result = concluded([record(4, every(HOPELESS))], SMALLER)
    ours, theirs = (right(path, tiny.task, "report") for path in (result.best.artifact.path, result.baseline.artifact.path))
    error = float((theirs - ours).std()) / 500**0.5
    assert result.drop > 10 * error
    assert result.drop_ci == pytest.approx((result.drop - 1.96 * error, result.drop + 1.96 * error), abs=0.35 * error)
    assert result.drop_upper == pytest.approx(result.drop + 1.28 * error, abs=0.3 * error)
    share = float(ours.mean())
    alone = (share * (1 - share) / 500) ** 0.5
    assert result.best.accuracy_ci == pytest.approx((share - 1.96 * alone, share + 1.96 * alone), abs=0.35 * alone)


def test_folder_holds_what_builds_the_same_bytes(
    concluded: Conclude, every: Callable[[LayerPolicy], Policy], bench: Bench, tmp_path: Path
) -> None:
    mixed = Policy({**every(INT8).layers, "outer.0": INT4, "inner.0": LayerPolicy("int8", 8, "sparse", 0.5)})
    result = concluded([record(0, mixed)], SMALLER)
    assert sorted(path.name for path in (tmp_path / "best").iterdir()) == ["model.onnx", "policy.yaml", "state.safetensors"]
    saved = load_saved_policy(tmp_path / "best/policy.yaml")
    assert saved.policy == mixed
    assert saved.model == bench.graph.digest
    assert saved.state_sha256 == sha256_of(tmp_path / "best/state.safetensors")
    assert saved.artifact_sha256 == result.best.artifact.sha256
    state = load_state(tmp_path / "best/state.safetensors")
    again = build(bench.graph, saved.policy, state, bench.components.target.capabilities(), tmp_path / "again.onnx")
    assert again.artifact.sha256 == result.best.artifact.sha256
    assert not (tmp_path / "finalists").exists()


def test_what_changed_on_the_report_set_is_written_out(
    concluded: Conclude, every: Callable[[LayerPolicy], Policy], bench: Bench, tiny: Any
) -> None:
    """Counted again with plain onnxruntime."""
    result = concluded([record(4, every(HOPELESS))], SMALLER)
    labels = tiny.task.sets["report"].targets
    before, after = (choices(path, tiny.task, "report") for path in (result.baseline.artifact.path, result.best.artifact.path))
    lost, won = ((one == labels) & (other != labels) for one, other in ((before, after), (after, before)))
    expected = scipy.stats.binomtest(int(lost.sum()), int((lost | won).sum())).pvalue
    assert 0 < result.drop_p < 1e-6
    assert result.drop_p == pytest.approx(expected, rel=1e-6, abs=0)
    assert [flip.index for flip in result.changes.flips] == np.flatnonzero(before != after).tolist()
    assert [flip.choice_file for flip in result.changes.flips] == after[before != after].tolist()
    assert sum(flip.right_fp32 and not flip.right_file for flip in result.changes.flips) == lost.sum()
    assert [found.label for found in result.changes.classes] == list(range(10))
    assert sum(found.examples * found.drop for found in result.changes.classes) == pytest.approx(500 * result.drop)
    assert result.changes.worst == ()
    assert result.best.measurement.divergence is not None and result.best.measurement.divergence > 0
    assert result.baseline.measurement.divergence == 0


def test_fp32_changes_nothing(concluded: Conclude, every: Callable[[LayerPolicy], Policy]) -> None:
    result = concluded([])
    assert (result.drop_p, result.changes.flips, result.predicted) == (1.0, [], {})
    assert {found.drop for found in result.changes.classes} == {0.0}


def test_best_is_chosen_by_what_is_measured_again(concluded: Conclude, every: Callable[[LayerPolicy], Policy]) -> None:
    """The hopeless file claims to be the most accurate one."""
    result = concluded([record(0, every(HOPELESS), accuracy=0.99), record(1, every(INT8), accuracy=0.9)], SMALLER)
    assert (result.status, result.best_trial) == ("feasible", 1)


def test_further_trials_are_tried_when_the_first_do_not_hold(
    concluded: Conclude, every: Callable[[LayerPolicy], Policy], sizes: dict[LayerPolicy, float]
) -> None:
    limit = (sizes[INT8] + sizes[INT4]) / 2
    claims = [record(0, every(INT8), size=0.01, accuracy=0.99), record(1, every(INT4), size=sizes[INT4])]
    result = concluded(claims, Budget(size_ratio=limit), finalists=1)
    assert (result.status, result.best_trial) == ("feasible", 1)


def test_when_no_promise_holds_it_is_infeasible_by_what_was_measured(
    concluded: Conclude, every: Callable[[LayerPolicy], Policy], sizes: dict[LayerPolicy, float]
) -> None:
    claims = [record(0, every(INT8), size=0.01), record(1, every(INT4), size=0.02)]
    result = concluded(claims, Budget(size_ratio=0.1))
    assert (result.status, result.best_trial) == ("infeasible", 1)
    assert result.binding_constraint is not None
    assert (result.binding_constraint.name, result.binding_constraint.limit) == ("size_ratio", 0.1)
    assert result.binding_constraint.smallest_met == pytest.approx(sizes[INT4])
    assert f"size_ratio=0.1 binds; the smallest that would have been met is {sizes[INT4]:.4g}" in result.reasons[0]


def test_nearest_is_delivered_when_nothing_fits(
    concluded: Conclude, every: Callable[[LayerPolicy], Policy], sizes: dict[LayerPolicy, float], tmp_path: Path
) -> None:
    claims = [pruned(0, every(INT8), sizes[INT8]), pruned(1, every(INT4), sizes[INT4])]
    result = concluded(claims, Budget(size_ratio=0.01, accuracy_drop=0.5), finalists=1)
    assert (result.status, result.best_trial, result.policy) == ("infeasible", 1, every(INT4))
    assert result.best.measurement.size_ratio == pytest.approx(sizes[INT4])
    assert result.best.measurement.accuracy is not None and result.best.measurement.latency is not None
    assert load_saved_policy(tmp_path / "best/policy.yaml").policy == every(INT4)


def test_nearest_counts_what_the_trials_did_not_get_to(
    concluded: Conclude, every: Callable[[LayerPolicy], Policy], sizes: dict[LayerPolicy, float]
) -> None:
    """The smaller file is nearer as far as its trial went, but it loses nearly everything."""
    claims = [pruned(0, every(HOPELESS), 0.15), pruned(1, every(INT4), sizes[INT4])]
    result = concluded(claims, Budget(size_ratio=0.1, accuracy_drop=0.01))
    assert (result.status, result.best_trial) == ("infeasible", 1)


def test_fp32_ships_when_it_alone_fits(
    concluded: Conclude, every: Callable[[LayerPolicy], Policy], bench: Bench, tmp_path: Path
) -> None:
    concluded([record(0, every(INT8))], SMALLER)
    assert (tmp_path / "best/policy.yaml").is_file()
    result = concluded([record(0, every(HOPELESS))], Budget(accuracy_drop=0.01), objective="latency")
    assert (result.status, result.best_trial, result.policy) == ("not_worth_it", None, Policy())
    assert "accuracy_drop=0.01 binds" in result.reasons[0] and "FP32" in result.reasons[0]
    assert result.binding_constraint is None
    assert result.best.artifact.sha256 == sha256_of(bench.graph.path)
    assert (result.drop, result.drop_ci, result.drop_upper) == (0, (0, 0), 0)
    assert result.best.measurement.size_ratio == result.best.measurement.latency_ratio == 1
    assert [path.name for path in (tmp_path / "best").iterdir()] == ["model.onnx"], "nothing of the earlier answer is left"


def test_fp32_ships_when_nothing_beats_it(concluded: Conclude, every: Callable[[LayerPolicy], Policy]) -> None:
    result = concluded([record(0, every(HOPELESS))])
    assert (result.status, result.best_trial) == ("not_worth_it", None)
    assert result.reasons == ["nothing beats FP32 on the objective 'accuracy'; FP32 ships", ENDED]


@pytest.mark.parametrize("objective", ["size", "pareto"])
def test_smaller_file_is_worth_it_when_size_is_looked_for(
    concluded: Conclude, every: Callable[[LayerPolicy], Policy], objective: Objective
) -> None:
    assert concluded([record(0, every(INT4))], objective=objective).status == "feasible"


def test_fp32_ships_when_there_is_no_candidate(concluded: Conclude) -> None:
    result = concluded([], Budget(size_ratio=0.5))
    assert (result.status, result.best_trial) == ("not_worth_it", None)
    assert result.reasons == ["no candidate could be built and measured; FP32 ships", ENDED]
    assert result.best.artifact.path.is_file()


def test_drop_that_the_report_set_cannot_show_is_unproven(
    concluded: Conclude, every: Callable[[LayerPolicy], Policy], bench: Bench, tmp_path: Path
) -> None:
    """The trial of this very file found no loss on the search set."""
    built = bench.build(every(HOPELESS), tmp_path / "hopeless.onnx").artifact
    lucky = replace(record(0, every(HOPELESS), accuracy=0.95), sha256=built.sha256)
    result = concluded([lucky], Budget(accuracy_drop=0.05), objective="size")
    assert (result.status, result.best_trial, result.policy) == ("unproven", 0, every(HOPELESS))
    assert result.drop_upper > 0.05
    assert result.reasons[0].startswith(f"the drop may be up to {100 * result.drop_upper:.2f} points (90 % bound)")
    for limit, status in [(result.drop_upper - 1e-9, "unproven"), (result.drop_upper + 1e-9, "feasible")]:
        assert concluded([lucky], Budget(accuracy_drop=limit), objective="size").status == status


@pytest.mark.parametrize(
    ("budget", "low", "high", "status", "why"),
    [
        (Budget(latency_ratio=0.52), 0.49, 0.51, "feasible", ""),
        (
            Budget(latency_ratio=0.52),
            0.46,
            0.54,
            "unproven",
            "latency_ratio may be up to 0.54 (95 % interval), the budget is 0.52",
        ),
        (Budget(latency_ratio=0.48), 0.46, 0.54, "infeasible", "no candidate fits the budget: latency_ratio=0.48 binds"),
        (Budget(latency_ms=1.04, size_ratio=0.9), 0.49, 0.51, "feasible", ""),
        (Budget(latency_ms=1.04, size_ratio=0.9), 0.46, 0.54, "unproven", "latency_ms may be up to 1.08 (95 % interval)"),
        (
            Budget(latency_ratio=1.0),
            0.46,
            1.1,
            "not_worth_it",
            "latency_ratio may be up to 1.1 (95 % interval), the budget is 1;",
        ),
    ],
)
def test_a_latency_budget_is_met_when_the_whole_interval_says_so(
    concluded: Conclude,
    every: Callable[[LayerPolicy], Policy],
    quick_bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
    budget: Budget,
    low: float,
    high: float,
    status: str,
    why: str,
) -> None:
    timed = Latency(1.0, 1.2, 2.0, 0.5, low, high, 40, "made up")
    monkeypatch.setattr(quick_bench.device, "latencies", lambda reference, paths, *rest: [timed for _ in paths])
    result = concluded([record(0, every(INT8))], budget)
    assert result.status == status
    assert result.reasons[0].startswith(why)


def test_finalist_that_cannot_be_built_is_dropped_with_the_reason(
    concluded: Conclude, every: Callable[[LayerPolicy], Policy]
) -> None:
    claims = [record(0, Policy({"elsewhere": INT8}), accuracy=0.99), record(1, every(INT8))]
    result = concluded(claims, objective="size", finalists=1)
    assert (result.status, result.best_trial) == ("feasible", 1)
    assert result.reasons[-1] == ENDED
    assert [reason for reason in result.reasons if "trial 0 was dropped as finalist: PolicyError" in reason] == result.reasons[
        :-1
    ]


def test_finalist_that_the_module_does_not_confirm_is_dropped(
    concluded: Conclude, every: Callable[[LayerPolicy], Policy], tiny: Any
) -> None:
    """The file and the module come from different trainings."""
    other = copy.copy(tiny.task)
    other.model = copy.deepcopy(tiny.task.model)
    with torch.no_grad():
        other.model.get_submodule("head").bias += torch.linspace(-50, 50, 10)
    result = concluded([record(0, every(INT8))], objective="size", task=other)
    assert result.status == "not_worth_it"
    assert any("trial 0 was dropped as finalist: CheckError: file and module twin agree" in reason for reason in result.reasons)


def test_each_policy_is_measured_again_once(concluded: Conclude, every: Callable[[LayerPolicy], Policy]) -> None:
    """Three times the same policy does not fill the places of the finalists."""
    claims = [*(record(n, every(HOPELESS), accuracy=0.99) for n in range(3)), record(3, every(INT8), accuracy=0.9)]
    assert concluded(claims, SMALLER, finalists=1).best_trial == 0
    result = concluded(claims, SMALLER, finalists=2)
    assert (result.status, result.best_trial) == ("feasible", 3)


def test_interrupted_search_delivers_the_best_so_far(concluded: Conclude, every: Callable[[LayerPolicy], Policy]) -> None:
    result = concluded([record(0, every(INT8))], objective="size", interrupted=True)
    assert (result.status, result.best_trial) == ("interrupted", 0)


def test_front_names_the_trials_on_it(concluded: Conclude, every: Callable[[LayerPolicy], Policy]) -> None:
    claims = [record(0, every(INT8), 0.3, 0.94), record(1, every(INT4), 0.2, 0.9), record(2, every(HOPELESS), 0.4, 0.2)]
    assert concluded(claims, objective="pareto").front == [0, 1]
