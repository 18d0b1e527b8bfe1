"""The loop: as many trials as asked for, each once, whatever happens in one; and it goes on where it stopped."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from autocompress_plugins.affine import Affine, Int4, Int8
from optuna.samplers import RandomSampler

from autocompress import Budget, LayerPolicy, Measurement, Policy, QuantizedTensor, TrialRecord
from autocompress.artifact import sha256_of
from autocompress.choices.options import build_space
from autocompress.choices.space import SearchSpace
from autocompress.choices.space_settings import SpaceSettings
from autocompress.components import Recovery
from autocompress.display.progress import Progress
from autocompress.errors import ConfigError, PolicyError, UnreachableError
from autocompress.policy import SavedPolicy
from autocompress.prediction.effects import Journal, SensitivitySettings
from autocompress.prediction.measured_problem import MeasuredProblem
from autocompress.record import Objective
from autocompress.searching.loop import Goal, Outcome, SearchRun, SearchSettings, run_trials
from autocompress.searching.selection import pareto_front
from autocompress.studies.opening import open_study
from autocompress.studies.storage import sqlite_storage
from autocompress.studies.study import SearchStudy
from autocompress.tensors.compress import LayerDatabase
from autocompress.trials.trial import Bench

INT8, INT4 = LayerPolicy("int8", 8), LayerPolicy("int4", 4)


@pytest.fixture(autouse=True)
def ready(baseline: Measurement) -> None:
    """The FP32 file's outputs are known before the first trial."""


@dataclass
class Moody(Affine):
    """Raises at its `when`-th tensor, and only then."""

    name = "int4"
    bits: int = 4
    when: int = 1
    error: type[BaseException] = ValueError
    calls: list[int] = field(default_factory=list)

    def quantize(self, *arguments: Any, **more: Any) -> QuantizedTensor:
        self.calls.append(1)
        if len(self.calls) == self.when:
            raise self.error("not today")
        return super().quantize(*arguments, **more)


@dataclass
class Search:
    """One study of the tiny network, over two of its layers."""

    bench: Bench
    folder: Path
    goal: Goal = field(default_factory=lambda: Goal("size", Budget()))
    include: list[str] = field(default_factory=lambda: ["head", "outer.0"])
    heard: list[TrialRecord] = field(default_factory=list)
    stream: io.StringIO = field(default_factory=io.StringIO)

    def space(self) -> SearchSpace:
        return build_space(
            self.bench.graph,
            self.bench.components,
            {},
            SpaceSettings(self.include, sparsities=[], ops=False),
            self.bench.database,
        )

    def study(self) -> SearchStudy:
        goal, storage = self.goal, sqlite_storage(self.folder / "study.db")
        return open_study(
            storage, ["tiny"], self.space(), goal.objective, goal.budget, lambda trials: RandomSampler(3 + trials)
        )

    def run(self, trials: int, listener: Callable[[TrialRecord], object] | None = None, **settings: Any) -> Outcome:
        effort = SearchSettings(trials=trials, **settings)
        search_run = SearchRun(self.bench, self.goal, self.problem(), effort, self.folder, Progress(self.stream))
        return run_trials(search_run, self.study(), self.space(), listener or self.heard.append)

    def problem(self) -> MeasuredProblem:
        journal = Journal(self.folder / "sensitivity.jsonl", ["tiny"])
        few = SensitivitySettings(images=16)
        goal, progress = self.goal, Progress(self.stream)
        baseline = Measurement(size_bytes=len(self.bench.graph.data), latency_ms=1.0, accuracy=1.0)
        return MeasuredProblem(goal.objective, goal.budget, baseline, self.bench, self.space(), few, journal, progress)

    def seeds(self, *policies: Policy) -> list[str]:
        """Paths of policies to try first."""
        paths = [self.folder / f"seed{index}.yaml" for index in range(len(policies))]
        for policy, path in zip(policies, paths, strict=True):
            SavedPolicy(policy, "", "", "").save(path)
        return [str(path) for path in paths]

    def stored(self) -> list[optuna.trial.FrozenTrial]:
        study = optuna.load_study(study_name=None, storage=f"sqlite:///{self.folder / 'study.db'}")
        return study.get_trials()

    def files(self) -> list[int]:
        return sorted(int(path.stem[1:]) for path in (self.folder / "candidates").glob("*/t*.onnx"))


def measured(records: list[TrialRecord]) -> list[TrialRecord]:
    return [record for record in records if record.is_measured]


@pytest.fixture
def search(quick_bench: Bench, tmp_path: Path) -> Search:
    return Search(with_quantizers(quick_bench, Int8(), Int4()), tmp_path)


def with_quantizers(bench: Bench, *quantizers: Any) -> Bench:
    components = replace(bench.components, quantizers={quantizer.name: quantizer for quantizer in quantizers}, pruners={})
    calibration = bench.database._calibration
    return replace(bench, components=components, database=LayerDatabase(bench.graph, calibration, components, {}))


def test_runs_the_trials_that_were_asked_for(search: Search) -> None:
    outcome = search.run(4)
    assert not outcome.interrupted
    assert [record.number for record in outcome.records] == [0, 1, 2, 3]
    assert search.heard == outcome.records
    assert [record.state for record in outcome.records] == ["complete"] * 4


def test_seeds_come_first_for_half_of_the_trials(search: Search) -> None:
    outcome = search.run(4)
    assert [record.kind for record in outcome.records] == ["seed", "seed", "trial", "trial"]
    assert outcome.records[0].policy == Policy({"head": INT8, "outer.0": INT8})
    assert outcome.records[1].policy == Policy({"head": INT4, "outer.0": INT4})


@pytest.mark.parametrize(("start", "seeds"), [("none", 0), ("uniform", 2), ("rules", 5), ("tables", 3)])
def test_what_a_search_starts_with(search: Search, start: str, seeds: int) -> None:
    """Both layers in one width; by rules also one of them in float, and a mix; by the tables one that is not uniform."""
    records = search.run(10, start=start).records
    assert [record.kind for record in records].count("seed") == seeds
    assert [record.kind for record in records[:seeds]] == ["seed"] * seeds
    uniform = [Policy({"head": INT8, "outer.0": INT8}), Policy({"head": INT4, "outer.0": INT4})]
    assert [record.policy for record in records[: min(seeds, 2)]] == uniform[: min(seeds, 2)]


def test_tables_are_measured_after_the_uniform_policies(search: Search) -> None:
    """The first answers come at once, and what the tables propose is best by their own figures."""
    table = search.folder / "sensitivity.jsonl"
    existed = []
    records = search.run(10, listener=lambda _: existed.append(table.exists()), start="tables").records
    assert existed[:3] == [False, False, True]
    effects = search.problem().effects()
    cheapest = min(effects, key=lambda name: effects[name][1].divergence)
    assert Policy({cheapest: INT8}) in [record.policy for record in records[:5]]


def test_policies_of_the_user_come_before_all(search: Search) -> None:
    mine = Policy({"head": INT4})
    outcome = search.run(2, seeds=search.seeds(mine))
    assert outcome.records[0].policy == mine
    assert outcome.records[0].kind == "seed"


def test_policy_of_the_user_that_does_not_fit_stops_before_any_trial(search: Search) -> None:
    with pytest.raises(PolicyError, match=r"decides 'stem\.0', which is not searched"):
        search.run(2, seeds=search.seeds(Policy({"stem.0": INT8})))
    assert search.heard == []


def test_same_policy_is_measured_once(search: Search) -> None:
    """Nine policies, so eight random ones repeat some; these do not count."""
    outcome = search.run(8)
    first: dict[str, TrialRecord] = {}
    repeated = 0
    for record in outcome.records:
        known = first.setdefault(record.policy.digest, record)
        assert (record.kind == "repeated") == (known is not record)
        if known is not record:
            repeated += 1
            assert record.reason == f"same policy as trial {known.number}"
            assert (record.measurement, record.sha256, record.seconds) == (known.measurement, known.sha256, {})
    assert len(first) == 8
    assert repeated >= 1
    assert [trial.number for trial in search.stored()] == list(range(8 + repeated))
    assert search.run(8).records == outcome.records, "they do not count later either"
    assert search.stream.getvalue().count("[8/8]") == 1


def test_a_space_with_fewer_policies_than_trials_ends(search: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    def in_order(_: Any, __: Any, trial: optuna.trial.FrozenTrial, name: str, ___: Any) -> int:
        return trial.number // (3 if name == "head" else 1) % 3

    monkeypatch.setattr(RandomSampler, "sample_independent", in_order)
    outcome = search.run(40)
    assert len({record.policy.digest for record in outcome.records}) == 9
    assert outcome.ended == "the search ended after 9 of 40 trials: every policy of the space is measured"


def test_a_sampler_without_ideas_ends_the_search(search: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RandomSampler, "sample_independent", lambda *_: 1)
    outcome = search.run(40)
    assert [record.kind for record in outcome.records] == ["seed"] * 5 + ["repeated"] * 20
    assert (
        outcome.ended == "the search ended after 5 of 40 trials: the sampler's last 20 proposals had all been measured before"
    )
    assert len(search.run(40).records) == 45, "another run may ask another sampler"


def test_the_end_is_told(search: Search) -> None:
    assert search.run(2).ended == "the search ended with 2 trials, as many as it was asked for"
    assert search.run(4, timeout=0.0).ended == "the search ended after 2 of 4 trials: search.timeout=0 seconds are over"


def test_patience_ends_a_search_that_gains_nothing(search: Search) -> None:
    """The second seed, all INT4, is the smallest that there is."""
    outcome = search.run(8, patience=3)
    assert len(measured(outcome.records)) == 5
    assert outcome.ended == "the search ended after 5 of 8 trials: search.patience=3 of them in a row brought nothing better"
    assert search.run(8, patience=3).records == outcome.records
    assert len(measured(search.run(8, patience=4).records)) == 6


def test_another_budget_measures_nothing_that_is_known(search: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    search.goal = Goal("pareto", Budget())
    front = search.run(5)
    other = replace(search, goal=Goal("size", Budget(latency_ratio=100.0, accuracy_drop=1.0)), heard=[])
    monkeypatch.setattr(LayerDatabase, "compress", None)
    outcome = other.run(5)
    assert other.heard == []
    assert outcome.ended.endswith("as many as it was asked for; 5 of them were measured for another budget or objective")
    assert [(each.kind, each.number, each.state) for each in outcome.records] == [("imported", n, "complete") for n in range(5)]
    figures = {each.policy.digest: each.measurement for each in front.records}
    assert {each.policy.digest: each.measurement for each in outcome.records} == figures


def test_what_another_budget_stopped_is_measured_when_it_may_fit(search: Search) -> None:
    search.goal = Goal("size", Budget(latency_ratio=1e-3))
    assert {record.state for record in search.run(3).records} == {"pruned"}
    other = replace(search, goal=Goal("size", Budget(latency_ratio=100.0)), heard=[])
    assert {(record.kind == "imported", record.state) for record in other.run(3).records} == {(False, "complete")}
    tighter = replace(search, goal=Goal("size", Budget(latency_ratio=2e-3)), heard=[])
    assert {(record.kind, record.state) for record in tighter.run(3).records} == {("imported", "complete")}


def test_ends_when_every_policy_was_tried(search: Search) -> None:
    """Three options of one layer."""
    search.include = ["head"]
    records = search.run(40).records
    assert {record.policy.layers.get("head") for record in records} == {None, INT8, INT4}
    assert records[-1].policy not in [record.policy for record in records[:-1]]


def test_resumes_where_it_stopped(search: Search) -> None:
    first = search.run(2).records
    search.heard.clear()
    assert search.run(2).records == first
    assert search.heard == []
    more = search.run(4).records
    assert more[:2] == first
    assert search.heard == more[2:]
    assert [record.number for record in more] == [0, 1, 2, 3]


def test_pruned_and_failed_trials_count(search: Search) -> None:
    search.bench = with_quantizers(search.bench, Int8(), Moody())
    search.goal = Goal("size", Budget(latency_ratio=1e-3))
    outcome = search.run(3)
    assert [record.state for record in outcome.records] == ["pruned", "failed", "pruned"]
    assert outcome.records[1].reason == "ValueError: not today"


def test_a_trial_that_raised_is_measured_when_it_comes_again(search: Search) -> None:
    search.bench = with_quantizers(search.bench, Int8(), Moody())
    records = search.run(10).records
    failed = [record for record in records if record.state == "failed"]
    assert [record.number for record in failed] == [1]
    again = next(record for record in records[2:] if record.policy == failed[0].policy)
    assert (again.state, again.reason) == ("complete", "")
    assert again.seconds


def test_time_that_is_over_starts_no_trial(search: Search) -> None:
    assert search.run(3, timeout=0.0).records == []
    assert not search.run(3, timeout=0.0).interrupted
    assert len(search.run(2, timeout=60.0).records) == 2


@pytest.mark.parametrize("keep", ["none", "pareto", "all"])
def test_files_that_are_kept(search: Search, keep: str) -> None:
    records = search.run(4, keep=keep).records
    built = {record.number for record in records if record.seconds}
    front = {record.number for record in pareto_front(records)}
    assert front & built
    assert set(search.files()) == {"none": set(), "pareto": front & built, "all": built}[keep]


@pytest.mark.parametrize(("keep", "kept"), [("pareto", []), ("all", [1, 2])])
def test_file_that_another_trial_beats_leaves_the_front(search: Search, keep: str, kept: list[int]) -> None:
    study = search.study()
    trial = study.ask()
    perfect = Measurement(1, 1e-9, 1e-9, 1e-9, 1.0, -0.1, 400)
    study.tell(trial, TrialRecord(0, "trial", "complete", "done", "", Policy({"stem.0": INT4}), perfect, {}, "ab"))
    search.run(3, keep=keep)
    assert search.files() == kept


def test_kept_file_is_the_one_that_was_measured(search: Search) -> None:
    records, folder = search.run(2, keep="all").records, search.folder / "candidates" / search.study().name
    assert [sha256_of(folder / f"t000{record.number}.onnx") for record in records] == [r.sha256 for r in records]


def test_studies_in_one_folder_keep_their_own_files(search: Search) -> None:
    first = search.run(2, keep="all").records
    folder = search.folder / "candidates" / search.study().name
    search.goal = Goal("accuracy", Budget(size_ratio=0.9))
    second = search.run(4, keep="all").records
    assert [record.kind for record in second[:2]] == ["imported"] * 2
    assert {path.stem: sha256_of(path) for path in folder.iterdir()} == {f"t000{r.number}": r.sha256 for r in first}
    other = search.folder / "candidates" / search.study().name
    measured_here = {f"t000{r.number}": r.sha256 for r in second if r.is_measured}
    assert {path.stem: sha256_of(path) for path in other.iterdir()} == measured_here
    assert len(measured_here) == 2


def test_ctrl_c_in_a_trial_ends_with_what_is_known(search: Search) -> None:
    search.bench = with_quantizers(search.bench, Int8(), Moody(error=KeyboardInterrupt))
    outcome = search.run(4)
    assert outcome.interrupted
    assert outcome.records == search.heard
    assert len(outcome.records) == 1
    stopped = search.stored()[1]
    assert (stopped.state.name, stopped.user_attrs["interrupted"]) == ("FAIL", True)
    assert search.files() == []

    again = search.run(4)
    assert not again.interrupted
    assert len(measured(again.records)) == 4
    assert again.records[0] == outcome.records[0]
    assert again.records[1].policy == Policy({"head": INT4, "outer.0": INT4})
    assert again.records[1].kind == stopped.user_attrs["kind"] == "seed"
    assert again.records[1].number > stopped.number


def test_a_machine_that_is_gone_ends_the_search_and_no_trial_is_lost(search: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    device = type(search.bench.device)
    integer_nodes = device.integer_nodes

    def gone(*arguments: Any) -> frozenset[str]:
        if len(search.heard) == 2:
            raise UnreachableError("board is away")
        return integer_nodes(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(device, "integer_nodes", gone)
        with pytest.raises(UnreachableError, match=r"^board is away$"):
            search.run(4)
    lost = search.stored()[2]
    assert (lost.state.name, lost.user_attrs["interrupted"]) == ("FAIL", True)
    assert len(search.run(4).records) == 4
    assert [record.state for record in search.heard] == ["complete"] * 4
    states = [trial.state.name for trial in search.stored() if trial.params == lost.params]
    assert sorted(states) == ["COMPLETE", "FAIL"], "the same policy, once more"


def test_ctrl_c_between_two_trials_loses_nothing(search: Search) -> None:
    def stop(record: TrialRecord) -> None:
        if record.number == 1:
            raise KeyboardInterrupt

    outcome = search.run(4, listener=stop)
    assert outcome.interrupted
    assert [record.number for record in outcome.records] == [0, 1]
    records = search.run(4).records
    assert records[:2] == outcome.records
    assert len(measured(records)) == 4
    assert [record.number for record in records] == list(range(len(records)))


@pytest.mark.parametrize(("objective", "images"), [("accuracy", 50), ("size", 400)])
def test_what_cannot_beat_the_best_in_accuracy_is_not_measured_in_full(
    search: Search, objective: Objective, images: int
) -> None:
    records = run_good_and_bad(search, Goal(objective, Budget()))
    good, bad = (record.measurement for record in records)
    assert good.accuracy is not None and bad.accuracy is not None
    assert bad.accuracy < good.accuracy - 0.3
    assert (good.images, bad.images) == (400, images)


@pytest.mark.parametrize(("limit", "images"), [(0.99, 400), (0.05, 50)])
def test_limit_of_the_drop_decides_what_is_hopeless(search: Search, limit: float, images: int) -> None:
    records = run_good_and_bad(search, Goal("size", Budget(accuracy_drop=limit)))
    assert [record.measurement.images for record in records] == [400, images]
    assert limit == 0.99 or "behind FP32 on 50 examples, 0.0500 is allowed" in records[1].reason


def test_leader_is_a_rival_whatever_the_budget_allows(search: Search) -> None:
    records = run_good_and_bad(search, Goal("accuracy", Budget(accuracy_drop=0.99)))
    assert records[1].state == "pruned"
    assert "behind trial 0 on 50 examples, 0.0000 is allowed" in records[1].reason


def test_leader_of_an_earlier_run_is_still_the_rival(search: Search) -> None:
    run_good_and_bad(search, Goal("accuracy", Budget()), trials=1)
    records = run_good_and_bad(search, Goal("accuracy", Budget()))
    assert "behind trial 0 on 50 examples" in records[1].reason
    assert search.files() == [], "the leader's file was only built to be run"


def run_good_and_bad(search: Search, goal: Goal, trials: int = 2) -> list[TrialRecord]:
    """All layers in eight bits, then in two."""
    search.bench = with_quantizers(search.bench, Int8(), Int4(bits=2, mse=False))
    search.include = ["*"]
    search.goal = goal
    layers = search.bench.graph.layers
    good, bad = Policy(dict.fromkeys(layers, INT8)), Policy(dict.fromkeys(layers, LayerPolicy("int4", 2)))
    return search.run(trials, seeds=search.seeds(good, bad)).records


def test_person_is_told_each_trial_and_the_best(search: Search) -> None:
    search.run(2)
    lines = search.stream.getvalue().splitlines()
    assert [line.split(" ", 2)[:2] for line in lines] == [["[1/2]", "t0000"], ["[2/2]", "t0001"]]
    assert "best t0000:" in lines[0]


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"trials": 0}, r"search\.trials=0: expected at least 1"),
        ({"patience": 0}, r"search\.patience=0: expected at least 1"),
        ({"finalists": -1}, r"search\.finalists=-1: expected at least 1"),
        ({"start": "tpe"}, r"search\.start='tpe': expected one of none, uniform, rules, tables"),
        ({"keep": "some"}, r"search\.keep='some': expected one of none, pareto, all"),
    ],
)
def test_settings_that_mean_nothing_are_refused(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        SearchSettings(**values)


class Training(Recovery):
    name = "training"
    seconds = 1000.0

    def recover(self, candidate: Any) -> Any:
        return candidate.compressed


def test_trials_leave_time_for_recoveries(search: Search) -> None:
    search.bench = replace(search.bench, components=replace(search.bench.components, recoveries=[Training()]))
    before = time.monotonic()
    outcome = search.run(100, timeout=0.02)
    assert outcome.ended.endswith("search.timeout=0.02 seconds are over but for 0.01 that are kept for recoveries")
    assert before + 0.02 < outcome.deadline < time.monotonic() + 0.02
