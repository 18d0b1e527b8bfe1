"""The main job from Python, end to end: every figure that is reported is computed again by other means."""

from __future__ import annotations

import copy
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import optuna
import pytest
import torch
from mlflow import MlflowClient
from numpy.typing import NDArray

from autocompress import Budget, LayerPolicy, Measurement, Policy, SearchResult, Task, search
from autocompress.commands.sync import main as sync
from autocompress.config import compose_settings
from autocompress.errors import AutocompressError, BudgetError, ConfigError, DataError, PolicyError
from autocompress.network.exporting import export
from autocompress.plain import from_plain, to_plain
from autocompress.policy import SavedPolicy, load_saved_policy
from autocompress.record import Final
from autocompress.run import check_measured
from autocompress.settings import Settings
from autocompress.studies.study_file import load_study, saved_studies
from autocompress.verbs import apply_policy

QUICK = [
    "tracking=[]",
    "timing.seconds=0.05",
    "timing.precision=1",
    "sensitivity.seconds=0.05",
    "search.finalists=1",
    "trial.load_processes=1",
    "probe.enabled=false",
]
BUDGET = Budget(size_ratio=0.9, accuracy_drop=0.2)
TRIALS = 3
END = "the search ended with {} trials, as many as it was asked for"


def run(
    task: Task, folder: Path, budget: Budget | None = BUDGET, trials: int = TRIALS, *more: str, **options: Any
) -> SearchResult:
    return search(task, budget, trials=trials, output_dir=folder, overrides=[*QUICK, *more], **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("answer")


@pytest.fixture(scope="module")
def answer(tiny: Any, folder: Path) -> SearchResult:
    """A search with an answer; the tests below only look at it."""
    return run(tiny.task, folder, BUDGET, TRIALS, "search.keep=all")


@pytest.fixture(scope="module")
def written(answer: SearchResult, folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result


def stored(folder: Path) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name=None, storage=f"sqlite:///{folder / 'study.db'}").get_trials()


def right(path: Path, task: Task, name: str) -> NDArray[np.bool_]:
    """Which images of a set a file gets right, by plain onnxruntime with its default options."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (outputs,) = session.run(None, {session.get_inputs()[0].name: task.sets[name].inputs})
    found: NDArray[np.bool_] = np.asarray(outputs).argmax(1) == task.sets[name].targets
    return found


def test_feasible_answer(answer: SearchResult, tiny: Any, folder: Path) -> None:
    assert (answer.status, answer.reasons) == ("feasible", [END.format(TRIALS)])
    assert answer.policy.layers
    assert len(answer.records) == TRIALS
    best, fp32 = folder / "best/model.onnx", folder / "fp32.onnx"
    assert answer.best.artifact.path == best
    assert best.stat().st_size <= 0.9 * fp32.stat().st_size
    assert answer.drop_upper <= 0.2


@pytest.mark.parametrize("name", ["best", "baseline"])
def test_figures_in_the_file_can_be_computed_again(written: dict[str, Any], tiny: Any, folder: Path, name: str) -> None:
    path, fp32 = folder / {"best": "best/model.onnx", "baseline": "fp32.onnx"}[name], folder / "fp32.onnx"
    figures = written[name]
    assert figures["size_bytes"] == path.stat().st_size
    assert figures["size_ratio"] == path.stat().st_size / fp32.stat().st_size
    assert figures["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert figures["accuracy"] == pytest.approx(right(path, tiny.task, "report").mean())
    assert figures["accuracy_ci"][0] < figures["accuracy"] < figures["accuracy_ci"][1]
    assert figures["images"] == 500


def test_drop_in_the_file_can_be_computed_again(written: dict[str, Any], tiny: Any, folder: Path) -> None:
    best, fp32 = folder / "best/model.onnx", folder / "fp32.onnx"
    lost = right(fp32, tiny.task, "report").astype(float) - right(best, tiny.task, "report")
    assert written["drop"] == pytest.approx(lost.mean())
    error = lost.std() / 500**0.5
    assert written["drop_ci"] == pytest.approx([lost.mean() - 1.96 * error, lost.mean() + 1.96 * error], abs=0.4 * error + 1e-9)
    gap = right(best, tiny.task, "search").mean() - right(best, tiny.task, "report").mean()
    assert written["selection_gap"] == pytest.approx(gap)


def test_path_in_the_file_leads_to_the_model(written: dict[str, Any], folder: Path) -> None:
    assert (folder / written["best"]["path"]).read_bytes() == (folder / "best/model.onnx").read_bytes()
    assert stored(folder)[written["best"]["trial"]].user_attrs["record"]["sha256"] == written["best"]["sha256"]


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_interval(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(is_number, value)) and value[0] <= value[1]


def is_final(value: Any) -> bool:
    numbers = (
        *("accuracy", "size_bytes", "latency_ms_median", "latency_ms_p95", "latency_ratio"),
        *("memory_bytes", "process_bytes", "load_ms", "reload_ms", "first_inference_ms"),
    )
    if (value["energy_joules"] is None) != bool(value["energy_reason"]):
        return False
    return all(is_number(value[name]) for name in numbers) and is_interval(value["accuracy_ci"]) and len(value["sha256"]) == 64


TYPES: dict[str, Callable[[Any], bool]] = {
    "status": lambda value: value == "feasible",
    "objective": lambda value: value == "accuracy",
    "metric": lambda value: value == "accuracy",
    "budget": lambda value: value == {"size_ratio": 0.9, "accuracy_drop": 0.2},
    "baseline": is_final,
    "best": is_final,
    "drop": is_number,
    "drop_ci": is_interval,
    "drop_p": lambda value: is_number(value) and 0 < value <= 1,
    "worst_classes": lambda value: isinstance(value, list) and len(value) <= 3,
    "predicted": lambda value: value.keys() <= {"divergence", "size_ratio", "latency_ratio"},
    "trials": lambda value: list(value) == ["complete", "pruned", "failed"] and sum(value.values()) == TRIALS,
    "binding_constraint": lambda value: value is None,
    "seconds": lambda value: is_number(value) and value > 0,
    "seconds_per_trial_median": lambda value: is_number(value) and value > 0,
    "versions": lambda value: {"runtime", "torch", "optuna", "numpy", "autocompress"} <= set(value),
    "device": lambda value: isinstance(value, str) and value != "",
    "environment": lambda value: value["threads"] == 1 and len(value["id"]) == 8,
    "self_check": lambda value: is_interval(value["ratio_ci"]) and value["resolution"] > 0,
    "minimum_runtime": lambda value: value["opset"] == 21 and "onnxruntime" in value,
    "mask_overlap": lambda value: value == {},
}
"""The keys that the command promises to programs."""


@pytest.mark.parametrize("key", TYPES)
def test_promised_key_is_there(written: dict[str, Any], key: str) -> None:
    assert TYPES[key](written[key]), written[key]


def test_every_key_is_documented_and_every_documented_key_is_there(written: dict[str, Any]) -> None:
    text = (Path(__file__).parents[1] / "docs/result.md").read_text(encoding="utf-8")
    section = text.partition("\n`result.json`:\n")[2]
    top, _, final = section.partition("| key of `baseline` and `best` |")

    def documented(table: str) -> set[str]:
        cells = re.findall(r"^\| (`[^|]*) \|", table, re.MULTILINE)
        return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}

    assert set(written) == documented(top)
    assert set(written["best"]) == documented(final)
    assert set(written["baseline"]) == documented(final) - {"trial", "path"}


def test_a_limit_on_a_figure_that_the_device_does_not_tell_is_refused() -> None:
    known = Measurement(load_ms=20.0)
    check_measured(Budget(load_ms=10.0), known)
    with pytest.raises(BudgetError, match=r"^budget\.memory_bytes: the device does not tell this figure"):
        check_measured(Budget(load_ms=10.0, memory_bytes=1e6), known)


def test_versions_are_those_that_ran(written: dict[str, Any]) -> None:
    assert written["versions"]["runtime"] == f"onnxruntime {onnxruntime.__version__}"
    assert written["versions"]["torch"] == torch.__version__.split("+")[0] or torch.__version__


def test_result_holds_what_the_file_says(answer: SearchResult, written: dict[str, Any]) -> None:
    def same(final: Final, figures: dict[str, Any]) -> bool:
        return (final.measurement.accuracy, final.artifact.sha256) == (figures["accuracy"], figures["sha256"])

    assert same(answer.best, written["best"])
    assert same(answer.baseline, written["baseline"])
    assert (answer.drop, list(answer.drop_ci), answer.seconds) == (written["drop"], written["drop_ci"], written["seconds"])


def test_fp32_file_computes_what_the_module_computes(answer: SearchResult, tiny: Any, folder: Path) -> None:
    inputs = tiny.task.sets["report"].inputs
    session = onnxruntime.InferenceSession(folder / "fp32.onnx", providers=["CPUExecutionProvider"])
    with torch.no_grad():
        np.testing.assert_allclose(
            session.run(None, {"input": inputs})[0], tiny.task.model(torch.from_numpy(inputs)), atol=1e-4
        )


def test_files_of_all_trials_are_kept(answer: SearchResult, folder: Path) -> None:
    kept = {f"t{record.number:04d}.onnx": record.sha256 for record in answer.records if record.seconds}
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (folder / "candidates").glob("*/*")}
    assert found == kept


def settings(tiny: Any, folder: Path) -> Settings:
    return replace(compose_settings(QUICK, tiny.registry), folder=folder)


def test_apply_builds_the_same_bytes(
    answer: SearchResult, written: dict[str, Any], tiny: Any, folder: Path, tmp_path: Path
) -> None:
    """From the saved policy and state alone, on a graph exported anew."""
    graph = export(copy.deepcopy(tiny.task.model), tiny.task.example_input, tmp_path / "fp32.onnx")
    saved = load_saved_policy(folder / "best/policy.yaml")
    state = folder / "best/state.safetensors"
    artifact = apply_policy(graph, saved, state, settings(tiny, tmp_path), folder / "best/policy.yaml")
    assert artifact.sha256 == written["best"]["sha256"] == saved.artifact_sha256
    assert saved.state_sha256 == hashlib.sha256(state.read_bytes()).hexdigest()


def test_policy_for_another_model_is_refused(answer: SearchResult, tiny: Any, folder: Path, tmp_path: Path) -> None:
    saved = replace(load_saved_policy(folder / "best/policy.yaml"), model="0" * 64)
    with pytest.raises(PolicyError, match=r"found for the model 000000000000, this model is"):
        apply_policy(tiny.graph, saved, folder / "best/state.safetensors", settings(tiny, tmp_path), Path("policy.yaml"))


def test_the_same_call_resumes(answer: SearchResult, tiny: Any, folder: Path) -> None:
    before = stored(folder)
    again = run(tiny.task, folder)
    assert again.records == answer.records
    assert [trial.datetime_complete for trial in stored(folder) if trial.state.is_finished()] == [
        trial.datetime_complete for trial in before if trial.state.is_finished()
    ]
    assert (again.status, again.best_trial, again.policy) == (answer.status, answer.best_trial, answer.policy)
    assert again.best.artifact.sha256 == answer.best.artifact.sha256


def test_a_saved_study_is_what_trackers_were_told(answer: SearchResult, tiny: Any, folder: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(folder, tmp_path / "moved")
    (path,) = saved_studies(tmp_path)
    saved = load_study(path)
    assert saved.result is not None
    assert saved.records == saved.result.records == answer.records
    assert (saved.context.folder, saved.result.best.artifact.path) == (moved, moved / "best/model.onnx")
    assert saved.result.policy == answer.policy
    again = from_plain(SearchResult, to_plain(answer, folder), folder)
    assert to_plain(again, folder) == to_plain(answer, folder)
    assert again.best.measurement == answer.best.measurement
    assert np.load(moved / "example.npy").shape == (1, 1, 8, 8)
    told = {name: (facts.digest, facts.examples) for name, facts in saved.context.data_sets.items()}
    assert told == {name: (examples.digest, len(examples)) for name, examples in tiny.task.sets.items()}


def test_sync_gives_a_tracker_everything_once(
    answer: SearchResult, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        assert sync([str(folder), f"tracking.mlflow.root={tmp_path}"]) == 0
    assert capsys.readouterr().out.count("mlflow ui --host 127.0.0.1 --backend-store-uri") == 2
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name != 'Default'")
    found = client.search_runs([experiment.experiment_id])
    keys = sorted(run.data.tags.get("autocompress.trial", "study") for run in found)
    assert keys == ["0", "1", "2", "baseline", "final", "study"]
    assert {run.info.status for run in found} == {"FINISHED"}
    (version,) = client.search_model_versions()
    assert version.tags["autocompress.sha256"] == answer.best.artifact.sha256


def test_sync_says_what_it_could_not_tell(answer: SearchResult, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sync([str(folder), "tracking.mlflow.uri=http://127.0.0.1:9"]) == 1
    assert "StorageError: tracking.mlflow.uri=http://127.0.0.1:9 does not answer" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="best: no study there or below; expected the output folder of a search"):
        sync([str(folder / "best")])


def test_another_budget_is_answered_from_the_trials_that_are_there(tiny_task: Task, tmp_path: Path) -> None:
    front = run(tiny_task, tmp_path / "tiny", Budget(), 4, objective="pareto")
    quick = [*QUICK[1:], "tracking=[mlflow]"]
    for _ in range(2):
        result = search(
            tiny_task, Budget(size_ratio=0.9), objective="latency", trials=4, output_dir=tmp_path / "tiny", overrides=quick
        )
    assert [(record.kind, record.state) for record in result.records] == [("imported", "complete")] * 4
    assert [record.measurement for record in result.records] == [record.measurement for record in front.records]
    assert "4 of them were measured for another budget or objective" in result.reasons[-1]
    fp32 = hashlib.sha256((tmp_path / "tiny/fp32.onnx").read_bytes()).hexdigest()
    assert result.best.artifact.sha256 in {fp32, *(record.sha256 for record in result.records if record.feasible)}
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name != 'Default'")
    children = client.search_runs([experiment.experiment_id], "tags.`autocompress.kind` = 'imported'")
    assert sorted(child.data.tags["autocompress.trial"] for child in children) == ["0", "1", "2", "3"]


def test_infeasible_names_the_limit_that_binds(tiny_task: Task, tmp_path: Path) -> None:
    result = run(tiny_task, tmp_path, Budget(size_ratio=0.01, latency_ratio=100), 2)
    written = json.loads((tmp_path / "result.json").read_text())
    sizes = [record.measurement.size_ratio for record in result.records]
    assert written["status"] == result.status == "infeasible"
    assert written["trials"] == {"complete": 0, "pruned": 2, "failed": 0}
    assert written["binding_constraint"] == {"name": "size_ratio", "limit": 0.01, "smallest_met": min(sizes)}  # type: ignore[type-var]
    assert written["best"]["size_ratio"] == min(sizes)  # type: ignore[type-var]
    assert written["best"]["accuracy"] == pytest.approx(right(tmp_path / "best/model.onnx", tiny_task, "report").mean())
    assert not list((tmp_path / "candidates").glob("*/*"))


def test_not_worth_it_ships_fp32(tiny_task: Task, tmp_path: Path) -> None:
    """By divergence from FP32's own outputs nothing beats FP32."""
    tiny_task.metric = "kl"
    result = run(tiny_task, tmp_path, Budget(), 2)
    written = json.loads((tmp_path / "result.json").read_text())
    assert written["status"] == result.status == "not_worth_it"
    assert written["reasons"] == ["nothing beats FP32 on the objective 'accuracy'; FP32 ships", END.format(2)]
    assert (tmp_path / "best/model.onnx").read_bytes() == (tmp_path / "fp32.onnx").read_bytes()
    assert (written["best"]["trial"], written["drop"], written["best"]["size_ratio"]) == (None, 0, 1)
    assert written["baseline"]["accuracy"] == 0, "of the divergence, zero is the best there is"
    assert all(record.measurement.accuracy < 0 for record in result.records if record.measurement.accuracy is not None)


def test_drop_that_cannot_be_shown_is_unproven(tiny_task: Task, tmp_path: Path) -> None:
    """A report set so small that one image is ten points."""
    report = tiny_task.sets["report"]
    tiny_task.sets["report"] = type(report)(report.inputs[:10], report.targets[:10])
    coarse = Policy(dict.fromkeys(tiny_layers(tiny_task), LayerPolicy("int4", 2)))
    SavedPolicy(coarse, "", "", "").save(tmp_path / "seed.yaml")
    options = ["quantizer=[int4]", "quantizer.int4.bits=2", f"search.seeds=[{tmp_path / 'seed.yaml'}]"]
    result = run(tiny_task, tmp_path, Budget(accuracy_drop=0.19), 1, *options, objective="size")
    assert result.records[0].feasible, "else it is infeasible"
    assert result.drop_upper > 0.19, "else it is proven"
    assert result.status == json.loads((tmp_path / "result.json").read_text())["status"] == "unproven"
    assert result.reasons[0].startswith("the drop may be up to ")


def tiny_layers(task: Task) -> list[str]:
    return [name for name, module in task.model.named_modules() if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear))]


MOODY = """
from autocompress_plugins.affine import Affine

CALLS = []

@dataclass
class Moody(Affine):
    name = "moody"
    bits: int = 8

    def quantize(self, weight, bits, stats, mask=None):
        CALLS.append(stats.layer.name)
        if len(CALLS) == 1:
            raise ValueError("not today")
        if len(CALLS) == 2:
            raise KeyboardInterrupt
        return super().quantize(weight, bits, stats, mask)

@hookimpl
def autocompress_quantizers():
    return [Moody]
"""
MOODY_8 = LayerPolicy("moody", 8)


def test_a_trial_that_raises_and_one_that_is_stopped(tiny_task: Task, tmp_path: Path, install: Any) -> None:
    """The first policy is fine, the second raises, in the third the user presses Ctrl-C; then the search goes on."""
    install("stranger", mine=MOODY)
    layers = tiny_layers(tiny_task)
    fine, raises, stopped = (
        Policy(dict.fromkeys(names, option))
        for names, option in [(layers, LayerPolicy("int4", 4)), (layers[:1], MOODY_8), (layers[1:], MOODY_8)]
    )
    paths = [tmp_path / f"seed{index}.yaml" for index in range(3)]
    for policy, path in zip((fine, raises, stopped), paths, strict=True):
        SavedPolicy(policy, "", "", "").save(path)
    options = ["quantizer=[int4,moody]", f"search.seeds=[{','.join(map(str, paths))}]"]

    result = run(tiny_task, tmp_path, BUDGET, 4, *options)
    written = json.loads((tmp_path / "result.json").read_text())
    assert [(record.state, record.reason) for record in result.records] == [
        ("complete", ""),
        (
            "failed",
            "PluginError: quantizer 'moody': quantize layer stem.0: ValueError: not today (stranger_mine_module.py, line 17)",
        ),
    ]
    assert written["trials"] == {"complete": 1, "pruned": 0, "failed": 1}
    assert written["status"] == result.status == "interrupted"
    assert (result.best_trial, result.policy) == (0, fine)
    assert written["best"]["sha256"] == hashlib.sha256((tmp_path / "best/model.onnx").read_bytes()).hexdigest()
    assert written["versions"]["stranger"] == "1.2"
    assert [trial.state.name for trial in stored(tmp_path)[:3]] == ["COMPLETE", "FAIL", "FAIL"]

    again = run(tiny_task, tmp_path, BUDGET, 4, *options)
    assert again.status == "feasible"
    assert again.records[:2] == result.records
    assert len(again.records) == 4
    assert stopped in [record.policy for record in again.records[2:]], "it was queued again"


@pytest.mark.parametrize(
    ("options", "error", "problem"),
    [
        (
            {"overrides": ["metric=acuracy"]},
            AutocompressError,
            "metric 'acuracy' is not registered; available: accuracy, agreement",
        ),
        (
            {"overrides": ["quantizer=[int5]"]},
            AutocompressError,
            "quantizer 'int5' is not registered; available: estimated, gptq, int4, int8, mean_rounding",
        ),
        ({"objective": "speed"}, ConfigError, "objective='speed': expected one of accuracy, latency, size, pareto"),
        ({"trials": 0}, ConfigError, r"search\.trials=0: expected at least 1"),
        ({"overrides": ["space.exclude=['*']"]}, ConfigError, "space: nothing to decide for 6 layers"),
    ],
)
def test_mistakes_are_told_from_python_too(
    tiny_task: Task, tmp_path: Path, options: dict[str, Any], error: type[AutocompressError], problem: str
) -> None:
    with pytest.raises(error, match=problem) as caught:
        search(tiny_task, **{"output_dir": tmp_path, **options, "overrides": [*QUICK, *options.get("overrides", [])]})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "study.db").exists()


def test_labels_outside_the_classes_are_told_before_any_trial(tiny_task: Task, tmp_path: Path) -> None:
    tiny_task.sets["report"].targets[0] = 10
    with pytest.raises(DataError, match=r"task\.report: labels run from 0 to 10; the model has 10 classes"):
        run(tiny_task, tmp_path)
    assert not (tmp_path / "study.db").exists()
