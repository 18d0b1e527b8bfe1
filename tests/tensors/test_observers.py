"""Which observer gives which range: in the space, in the tables, in the file; on a net that saw one broken image."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import pytest
from autocompress_plugins.percentile import Percentile
from numpy.typing import NDArray

import autocompress.tensors.activations
from autocompress import Budget, LayerPolicy, Policy, Task, search
from autocompress.accuracy.evaluation import Evaluator
from autocompress.building.candidate import layer_rows
from autocompress.choices.observer_columns import ObserverColumns
from autocompress.choices.options import build_space
from autocompress.choices.seeds import seed_policies
from autocompress.choices.space import SearchSpace
from autocompress.choices.space_settings import SpaceSettings
from autocompress.config import compose_settings
from autocompress.display.progress import Progress
from autocompress.errors import PolicyError, UnknownComponentError
from autocompress.network.graph import Op
from autocompress.policy import load_saved_policy
from autocompress.prediction.effects import Journal, SensitivitySettings, measure_effects
from autocompress.problem import Effect
from autocompress.reporting.sensitivity import measure_sensitivity
from autocompress.reporting.sensitivity_table import sensitivity_table
from autocompress.tensors.calibration import Calibration
from autocompress.tensors.compress import LayerDatabase
from autocompress.tensors.observers import ObserverPolicy, in_effect, observer_options
from autocompress.tensors.ranges import Range
from autocompress.trials.trial import Bench
from autocompress.verbs import apply_policy
from autocompress.workspace import Workspace, open_workspace
from tests.conftest import digits
from tests.network.test_regions import CAPABILITIES, graph, layer

if TYPE_CHECKING:
    from tests.conftest import Tiny

INT8 = LayerPolicy("int8", 8)
SETTINGS = SensitivitySettings(images=48, seconds=0.05)
BROKEN, PIXEL = 300, 600.0
"""One pixel of one calibration image: with it among the steps, a grid of 255 has nothing for the other images."""


@pytest.fixture(scope="module")
def spoilt_task(tiny: Tiny) -> Task:
    images, labels = digits()
    calibration = images[:400].clone()
    calibration[BROKEN, 0, 0, 0] = PIXEL
    parts = [[(calibration, labels[:400])], *([(images[a:b], labels[a:b])] for a, b in ((897, 1297), (1297, 1797)))]
    return Task(copy.deepcopy(tiny.task.model), images[:1], *parts, name="spoilt")


@pytest.fixture(scope="module")
def spoilt(spoilt_task: Task, tiny: Tiny, quick_bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Ranges by `minmax`, or by `percentile` where a policy says so."""
    folder = tmp_path_factory.mktemp("spoilt")
    components = compose_settings(["search.observers=[percentile]", "tracking=[]"], tiny.registry).components
    calibration = Calibration(spoilt_task, tiny.graph, components, folder)
    return replace(
        quick_bench,
        task=spoilt_task,
        groups={},
        components=components,
        calibration=calibration,
        database=LayerDatabase(tiny.graph, calibration, components, {}),
        evaluator=Evaluator.prepare(spoilt_task, components.metric, tiny.graph, quick_bench.device, folder),
    )


@pytest.fixture(scope="module")
def space(spoilt: Bench) -> SearchSpace:
    ranges = {name: spoilt.calibration.grids(8, name) for name in spoilt.components.observers}
    return build_space(spoilt.graph, spoilt.components, {}, SpaceSettings(sparsities=[]), spoilt.database, ranges)


@pytest.fixture(scope="module")
def effects(spoilt: Bench, space: SearchSpace, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Effect]]:
    journal = Journal(tmp_path_factory.mktemp("effects") / "sensitivity.jsonl", ["spoilt"])
    return measure_effects(spoilt, space, SETTINGS, journal, Progress(quiet=True))


def integer(bench: Bench, **observers: str) -> Policy:
    return Policy(dict.fromkeys(bench.graph.layers, INT8), observers=observers)


def right(path: Path, task: Task) -> NDArray[np.bool_]:
    """Which report images a file gets right, by plain onnxruntime."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (outputs,) = session.run(None, {session.get_inputs()[0].name: task.sets["report"].inputs})
    found: NDArray[np.bool_] = np.asarray(outputs).argmax(1) == task.sets["report"].targets
    return found


def input_scale(path: Path) -> float:
    """The step of the grid that the file rounds its input to."""
    model = onnx.load(path)
    (node,) = [node for node in model.graph.node if node.op_type == "QuantizeLinear" and node.input[0] == "input"]
    return next(float(onnx.numpy_helper.to_array(t)) for t in model.graph.initializer if t.name == node.input[1])


# --- ranges ---


def test_one_pass_gives_the_ranges_of_each_observer(
    spoilt: Bench, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same that each finds as the configured one, those that look at all tensors together included."""
    names = ["percentile", "global", "minmax"]
    components = compose_settings([f"search.observers=[{','.join(names)}]", "tracking=[]"], tiny.registry).components
    opened: list[Path] = []
    load = autocompress.tensors.activations.load_session
    monkeypatch.setattr(
        autocompress.tensors.activations, "load_session", lambda t, path, threads: opened.append(path) or load(t, path, threads)
    )
    together = Calibration(spoilt.task, spoilt.graph, components, tmp_path)
    found = {name: together.grids(8, name) for name in names} | {"wide": together.grids(16, "percentile")}
    assert len(opened) == 1
    for name in names:
        alone = replace(components, observer=components.observers[name], searched_observers={})
        assert found[name] == Calibration(spoilt.task, spoilt.graph, alone, tmp_path).ranges, name
    assert together.ranges == found["minmax"] != found["percentile"]
    assert {grid.bits for grid in found["wide"].values()} == {16}


def test_the_file_has_the_range_of_the_named_observer(spoilt: Bench, tmp_path: Path) -> None:
    images = spoilt.task.sets["calibration"].inputs
    plain = spoilt.build(integer(spoilt), tmp_path / "plain.onnx")
    chosen = spoilt.build(integer(spoilt, input="percentile"), tmp_path / "chosen.onnx")
    watching = Percentile()
    watching.update(images)
    assert input_scale(chosen.artifact.path) == np.float32(Range.of(*watching.range(8)).scale)
    low, high = np.percentile(images, [0.01, 99.99])
    assert input_scale(chosen.artifact.path) == pytest.approx((high - low) / 255, rel=0.01)
    assert input_scale(plain.artifact.path) == pytest.approx((PIXEL - images.min()) / 255, rel=1e-6)
    others = {name: grid for name, grid in chosen.compressed.ranges.items() if name != "input"}
    assert others == {name: grid for name, grid in plain.compressed.ranges.items() if name != "input"}
    assert {row.layer: row.observer for row in layer_rows(spoilt.graph, chosen) if row.observer} == {"stem.0": "percentile"}


@pytest.mark.parametrize(
    ("observers", "problem"),
    [
        ({"input": "percentil"}, "policy names the observer 'percentil'; expected one of: minmax, percentile"),
        ({"inptu": "percentile"}, "tensor inptu: this target offers input, "),
    ],
)
def test_unknown_names_in_a_policy_are_refused(spoilt: Bench, observers: dict[str, str], problem: str) -> None:
    with pytest.raises(PolicyError, match=problem):
        spoilt.database.compress(integer(spoilt, **observers))


def test_unknown_names_in_the_setting_are_refused(tiny: Tiny) -> None:
    with pytest.raises(UnknownComponentError, match=r"observer 'percentil' is not registered.*Did you mean 'percentile'\?"):
        compose_settings(["search.observers=[minmax,percentil]"], tiny.registry)


def test_the_configured_one_keeps_its_settings_when_it_is_named_again(tiny: Tiny) -> None:
    settings = ["observer=percentile", "observer.percentile.percentile=99", "search.observers=[percentile,minmax]"]
    components = compose_settings(settings, tiny.registry).components
    assert list(components.observers) == ["percentile", "minmax"]
    assert components.observers["percentile"] == Percentile(99)


# --- options ---


def test_only_tensors_where_ranges_differ_are_searched() -> None:
    net = graph([layer("a", "input", "t0"), layer("b", "t0", "output")], [])
    tensors = ("input", "t0", "output")
    near, far = ({**dict.fromkeys(tensors, Range(1.0, 0)), "t0": Range(scale, 0)} for scale in (0.96, 0.94))
    whole = Policy({"a": INT8, "b": INT8})
    ranges = {"configured": dict.fromkeys(tensors, Range(1.0, 0)), "near": near}
    assert observer_options(net, CAPABILITIES, whole, ranges) == {}
    found = observer_options(net, CAPABILITIES, whole, {**ranges, "far": far, "as far": far})
    assert found == {"t0": tuple(ObserverPolicy(name, ("t0",), ("a", "b")) for name in (None, "far"))}


def test_tensors_that_share_a_grid_share_a_decision_and_sums_have_one_of_their_own() -> None:
    pool, add, head = (
        Op("p", "MaxPool", ("t0",), "t1"),
        Op("s", "Add", ("t2", "t1"), "t3"),
        Op("g", "GlobalAveragePool", ("t3",), "t4"),
    )
    net = graph([layer("a", "input", "t0"), layer("b", "t1", "t2"), layer("c", "t4", "output", "linear")], [pool, add, head])
    tensors = ("input", "t0", "t1", "t2", "t3", "t4")
    ranges = {name: dict.fromkeys(tensors, Range(scale, 0)) for name, scale in (("minmax", 1.0), ("mse", 0.5))}
    found = observer_options(net, CAPABILITIES, Policy(dict.fromkeys("abc", INT8)), ranges)
    assert {name: options[1].tensors for name, options in found.items()} == {
        **{name: (name,) for name in ("input", "t2", "t3", "t4")},
        "t0": ("t0", "t1"),
    }
    assert found["t3"][1].alone == Policy(ops={"g": "float"}, tensors={"t3": 8}, observers={"t3": "mse"})
    assert {name: options[1].layers for name, options in found.items()} == {
        "input": ("a",),
        "t0": ("a", "b"),  # gives t0, reads t1
        "t2": ("b",),
        "t3": ("a", "b", "c"),  # only operators touch it
        "t4": ("c",),
    }


def test_policies_carry_observers_of_quantized_tensors_only(spoilt: Bench, space: SearchSpace) -> None:
    capabilities = spoilt.components.target.capabilities()
    everywhere = {name: 1 for name in space.sizes if name.startswith("observers/")}
    assert in_effect(spoilt.graph, space.policy(everywhere), capabilities) == Policy()
    policy = in_effect(spoilt.graph, space.policy({**everywhere, "stem.0": 1}), capabilities)
    stem = spoilt.graph.layers["stem.0"]
    assert set(policy.observers) == {stem.input, stem.output} and policy.layers == {"stem.0": space.layers["stem.0"][1]}
    found = space.indices(policy)
    assert {name for name, index in found.items() if index} == {"stem.0", f"observers/{stem.input}", f"observers/{stem.output}"}
    assert space.policy(found) == policy


def test_a_seed_outside_the_space_is_refused(space: SearchSpace) -> None:
    with pytest.raises(
        PolicyError, match=r"seed policy asks mse for the range of 'input'; this space offers the configured one, per"
    ):
        space.indices(Policy(observers={"input": "mse"}))
    with pytest.raises(PolicyError, match=r"decides the observer of 'elsewhere'; it is not searched \(search\.observers\)"):
        space.indices(Policy(observers={"elsewhere": "percentile"}))


def test_each_observer_is_a_seed(spoilt: Bench, space: SearchSpace) -> None:
    (seed,) = [policy for policy in seed_policies(space, spoilt.graph.layers) if policy.observers]
    assert set(seed.layers) == set(spoilt.graph.layers)
    assert seed.observers == {t: "percentile" for options in space.observers.values() for t in options[0].tensors}


# --- tables ---


def divergence(bench: Bench, policy: Policy, path: Path) -> float:
    outputs = bench.evaluator.outputs(bench.build(policy, path).artifact.path, "calibration", 0, SETTINGS.images)
    return float(bench.evaluator.divergence(outputs, "calibration", 0, SETTINGS.images).mean())


def test_tables_say_what_an_observer_loses_and_layers_are_measured_with_the_best(
    spoilt: Bench, space: SearchSpace, effects: dict[str, list[Effect]], tmp_path: Path
) -> None:
    alone = [Policy(tensors={"input": 8}, observers=observers) for observers in ({}, {"input": "percentile"})]
    broken, fine = (divergence(spoilt, policy, tmp_path / "alone.onnx") for policy in alone)
    assert broken > 0.5
    assert fine < 0.05
    assert [effect.divergence for effect in effects["observers/input"]] == [pytest.approx(broken - fine), 0.0]
    assert min(effect.divergence for effect in effects["stem.0"][1:]) < 0.05
    largest = max(effect.size_bytes for options in effects.values() for effect in options)
    assert {effect.size_bytes for effect in effects["observers/input"]} == {largest}  # a range costs no bytes
    assert list(effects) == list(space.sizes)


def test_an_observer_of_a_float_tensor_is_no_decision(space: SearchSpace, effects: dict[str, list[Effect]]) -> None:
    columns, names = ObserverColumns.of(space, effects), list(space.sizes)
    rows = np.zeros((2, len(names)), dtype=np.int64)
    rows[1, names.index("stem.0")] = 1
    found = dict(zip(names, columns.canonical(rows).T.tolist(), strict=True))
    assert found["observers/input"] == [1, 0]  # nobody asks for it in FP32, the stem does
    assert all(found[name] == rows[:, names.index(name)].tolist() for name in space.layers)
    assert not rows[0].any()


def test_sensitivity_tells_the_best_observers(spoilt: Bench, space: SearchSpace, tmp_path: Path) -> None:
    workspace = Workspace(["spoilt"], None, spoilt, space, Journal(tmp_path / "s.jsonl", ["spoilt"]))  # type: ignore[arg-type]
    found = measure_sensitivity(workspace, SETTINGS, Progress(quiet=True))
    assert {name for name in found.order if not name.startswith("ops/")} == set(spoilt.graph.layers)
    assert found.observers["input"]["percentile"] == 0.0
    assert found.observers["input"]["minmax"] > 0.5
    assert "with the best observer of each tensor, where they differ: " in sensitivity_table(found)


# --- a search ---

QUICK = ["tracking=[]", "timing.seconds=0.05", "timing.precision=1", "sensitivity.seconds=0.05", "search.finalists=1"]


def test_a_search_takes_the_observer_that_helps(spoilt_task: Task, spoilt: Bench, tiny: Tiny, tmp_path: Path) -> None:
    overrides = [*QUICK, "space.sparsities=[]", "search.start=uniform", "search.observers=[minmax,percentile]"]
    result = search(spoilt_task, Budget(size_ratio=0.6), trials=6, output_dir=tmp_path / "out", overrides=overrides)
    assert result.policy.observers["input"] == "percentile"
    assert result.drop < 0.05
    without = spoilt.build(replace(result.policy, observers={}), tmp_path / "without.onnx").artifact.path
    ours, theirs = right(result.best.artifact.path, spoilt_task).mean(), right(without, spoilt_task).mean()
    assert ours > theirs + 0.3
    written = json.loads((tmp_path / "out/result.json").read_text())
    assert written["observers"] == dict(result.policy.observers)

    saved = load_saved_policy(tmp_path / "out/best/policy.yaml")
    assert saved.policy == result.policy
    plain = replace(compose_settings(QUICK, tiny.registry), folder=tmp_path)  # applying a policy searches nothing
    built = apply_policy(tiny.graph, saved, tmp_path / "out/best/state.safetensors", plain, tmp_path / "policy.yaml")
    assert built.sha256 == result.best.artifact.sha256


def test_a_search_without_observers_is_the_same_study_as_before(tiny: Tiny, tmp_path: Path) -> None:
    def opened(name: str, *more: str) -> tuple[list[str], str, int]:
        settings = replace(compose_settings([*QUICK, *more], tiny.registry), folder=tmp_path / name)
        with open_workspace(tiny.task, settings, Progress(quiet=True)) as workspace:
            return list(workspace.identity), workspace.space.digest, len(workspace.space.observers)

    settings = compose_settings([*QUICK, "search.observers=[minmax]"], tiny.registry)
    assert settings.components == compose_settings(QUICK, tiny.registry).components  # the configured one alone is no choice
    plain, other = opened("plain"), opened("other", "search.observers=[global]")
    assert plain[0][:-1] == other[0][:-1]
    assert [*json.loads(plain[0][-1]), {"global": {}}] == json.loads(other[0][-1])
    assert plain[1] != other[1]
    assert plain[2] == 0 < other[2]
