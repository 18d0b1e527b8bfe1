"""One trial: each figure of a record is computed again by other means, and each gate stops what cannot be the answer."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from autocompress_plugins.affine import Affine
from autocompress_plugins.sparse import Sparse
from numpy.typing import NDArray

from autocompress import Budget, LayerPolicy, LayerStats, Measurement, Policy, Pruner, QuantizedTensor, Quantizer, TrialRecord
from autocompress.accuracy.evaluation import Evaluator
from autocompress.accuracy.racing import Rival
from autocompress.components import Components
from autocompress.errors import DisturbedError
from autocompress.record import Gate
from autocompress.tensors.compress import LayerDatabase
from autocompress.tensors.guarded_weights import guarded
from autocompress.trials.trial import Bench, TrialSettings, run_trial

INT8, INT4 = LayerPolicy("int8", 8), LayerPolicy("int4", 4)
HOPELESS = LayerPolicy("int4", 4, "sparse", 0.98)
GATES: list[Gate] = ["build", "size", "check", "latency", "accuracy"]


@pytest.fixture(autouse=True)
def ready(baseline: Measurement) -> None:
    """The FP32 file's outputs are known before the first trial."""


@pytest.fixture
def attempt(quick_bench: Bench, tmp_path: Path) -> Callable[..., TrialRecord]:
    """Runs a trial, by default with latencies that take no time."""

    def attempted(
        layers: Mapping[str, LayerPolicy], budget: Budget | None = None, floor: float | None = None, bench: Bench = quick_bench
    ) -> TrialRecord:
        path = tmp_path / "t0003.onnx"
        record, statistics = run_trial(bench, Policy(layers), budget or Budget(), lambda: rivals(bench, floor), 3, "seed", path)
        assert (statistics is not None) == (record.measurement.images == len(bench.evaluator.targets["search"]))
        if statistics is not None:
            np.testing.assert_array_equal(statistics, right(path, bench))
        return record

    return attempted


def rivals(bench: Bench, floor: float | None) -> list[Rival]:
    """FP32, when only so large a drop from it is of any use."""
    return [] if floor is None else [Rival("FP32", bench.evaluator.reference_statistics("search"), floor)]


def every(bench: Bench, option: LayerPolicy) -> dict[str, LayerPolicy]:
    return dict.fromkeys(bench.graph.layers, option)


def logits(path: Path, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Outputs of a file by plain onnxruntime with its default options."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (outputs,) = session.run(None, {session.get_inputs()[0].name: inputs})
    return np.asarray(outputs)


def right(path: Path, bench: Bench, images: slice = slice(None)) -> NDArray[np.bool_]:
    """Which images of the search set a file gets right."""
    inputs = np.load(bench.evaluator.inputs("search"))[images]
    found: NDArray[np.bool_] = logits(path, inputs).argmax(1) == bench.evaluator.targets["search"][images]
    return found


def test_baseline_is_the_fp32_file(bench: Bench, baseline: Measurement) -> None:
    assert baseline.size_bytes == bench.graph.path.stat().st_size
    assert (baseline.size_ratio, baseline.latency_ratio, baseline.accuracy_drop) == (1, 1, 0)
    assert baseline.accuracy == right(bench.graph.path, bench).mean()
    assert baseline.accuracy is not None and baseline.accuracy > 0.8, "else nothing below could be lost"
    assert baseline.images == 400
    assert baseline.latency is not None
    assert baseline.latency_ms == baseline.latency.median_ms > 0
    assert (baseline.at_most.latency_ratio, baseline.at_most.latency_ms) == (1, baseline.latency_ms)
    assert baseline.footprint is not None and baseline.energy is not None
    assert (baseline.memory_bytes, baseline.load_ms) == (baseline.footprint.memory_bytes, baseline.footprint.load_ms)
    assert baseline.energy.joules or baseline.energy.reason


def test_figures_of_a_record_can_be_computed_again(bench: Bench, attempt: Callable[..., TrialRecord], tmp_path: Path) -> None:
    layers = {**every(bench, INT8), "outer.0": INT4, "inner.0": LayerPolicy("int8", 8, "sparse", 0.7), "stem.0": LayerPolicy()}
    budget = Budget(size_ratio=0.9, latency_ratio=100, accuracy_drop=0.5)
    record = attempt(layers, budget, bench=bench)
    assert (record.state, record.gate, record.reason, record.kind, record.number) == ("complete", "done", "", "seed", 3)
    assert record.policy == Policy(layers)

    path, fp32 = tmp_path / "t0003.onnx", bench.graph.path
    figures = record.measurement
    assert record.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert figures.size_bytes == path.stat().st_size
    assert figures.size_ratio == path.stat().st_size / fp32.stat().st_size
    assert figures.images == 400
    assert figures.accuracy == pytest.approx(right(path, bench).mean())
    assert figures.accuracy_drop == pytest.approx(right(fp32, bench).mean() - right(path, bench).mean())
    assert figures.latency is not None
    assert (figures.latency_ms, figures.latency_ratio) == (figures.latency.median_ms, figures.latency.ratio)
    assert figures.latency.ratio_low <= figures.latency.ratio <= figures.latency.ratio_high
    assert record.violations == pytest.approx(
        {
            "size_ratio": path.stat().st_size / fp32.stat().st_size / 0.9 - 1,
            "latency_ratio": figures.latency.ratio / 100 - 1,
            "accuracy_drop": (right(fp32, bench).mean() - right(path, bench).mean()) / 0.5 - 1,
        }
    )
    assert record.feasible
    assert list(record.seconds) == GATES
    assert all(seconds > 0 for seconds in record.seconds.values())


def test_memory_and_load_time_are_measured_where_they_are_limited(
    bench: Bench, attempt: Callable[..., TrialRecord], tmp_path: Path
) -> None:
    free, fits, large = (
        attempt(every(bench, INT8), budget, bench=bench)
        for budget in (Budget(), Budget(memory_bytes=1e9, load_ms=1e5), Budget(memory_bytes=1000, load_ms=1e5))
    )
    assert (free.measurement.memory_bytes, free.measurement.load_ms, "footprint" in free.seconds) == (None, None, False)
    assert (fits.state, list(fits.seconds)) == ("complete", [*GATES[:3], "footprint", *GATES[3:]])
    known = bench.device.footprint(tmp_path / "t0003.onnx", bench.evaluator.inputs("example"), 1)
    assert fits.measurement.memory_bytes == pytest.approx(known.memory_bytes, rel=0.2)
    assert fits.measurement.footprint is not None
    assert fits.measurement.load_ms == fits.measurement.footprint.load_ms > 0
    assert (large.state, large.gate) == ("pruned", "footprint")
    assert large.reason == f"memory_bytes {large.measurement.memory_bytes:.4g} exceeds the budget 1000"
    assert attempt(every(bench, INT8), Budget(load_ms=1e-3)).reason == "load_ms 1 exceeds the budget 0.001"


@pytest.mark.timing
def test_load_time_is_that_of_the_file(bench: Bench, attempt: Callable[..., TrialRecord], tmp_path: Path) -> None:
    measured = attempt(every(bench, INT8), Budget(load_ms=1e5), bench=bench).measurement
    known = bench.device.footprint(tmp_path / "t0003.onnx", bench.evaluator.inputs("example"), 1)
    assert measured.load_ms == pytest.approx(known.load_ms, rel=2)


def test_table_of_layers_describes_the_file(bench: Bench, attempt: Callable[..., TrialRecord], tmp_path: Path) -> None:
    record = attempt({"outer.0": INT4, "inner.0": INT8, "head": replace(INT8, pruner="sparse", sparsity=0.5)})
    rows = {row.layer: row for row in record.layers}
    assert list(rows) == list(bench.graph.layers)
    assert (rows["outer.0"].quantizer, rows["outer.0"].bits, rows["outer.0"].encoding) == ("int4", 4, "int4")
    assert (rows["head"].pruner, rows["head"].sparsity) == ("sparse", 0.5)
    assert (rows["stem.0"].quantizer, rows["stem.0"].bits, rows["stem.0"].encoding) == ("float", 32, "float32")
    fp32 = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(bench.graph.path).graph.initializer}
    for name, row in rows.items():
        weight = fp32[f"{name}.weight"]
        assert row.parameters == weight.size
        assert (row.weight_minimum, row.weight_maximum) == (float(weight.min()), float(weight.max()))
        assert row.weight_mean == pytest.approx(float(weight.mean()), abs=1e-6)
    stored = onnx.load(tmp_path / "t0003.onnx").graph.initializer
    assert [tensor.dims for tensor in stored if tensor.data_type == onnx.TensorProto.INT4] == [
        list(fp32["outer.0.weight"].shape)
    ]
    assert rows["outer.0"].stored_bytes == fp32["outer.0.weight"].size // 2
    assert rows["inner.0"].stored_bytes == fp32["inner.0.weight"].size
    assert rows["stem.0"].stored_bytes == 4 * fp32["stem.0.weight"].size


def test_layers_that_are_integer_as_meant_give_no_warning(bench: Bench, attempt: Callable[..., TrialRecord]) -> None:
    for layers in (every(bench, INT8), every(bench, INT4), {"inner.0": INT8}, {}):
        record = attempt(layers)
        odd = [warning for warning in record.warnings if "speed wandered" not in warning]  # this machine may be busy
        assert (record.state, odd) == ("complete", [])


def test_too_large_a_file_is_not_timed(bench: Bench, attempt: Callable[..., TrialRecord], tmp_path: Path) -> None:
    record = attempt(every(bench, INT8), Budget(size_ratio=0.01, latency_ratio=0.5))
    assert (record.state, record.gate) == ("pruned", "size")
    assert list(record.seconds) == ["build", "size"]
    size = (tmp_path / "t0003.onnx").stat().st_size
    assert record.measurement == Measurement(size, size / bench.graph.path.stat().st_size)
    ratio = size / bench.graph.path.stat().st_size
    assert record.violations == {"size_ratio": pytest.approx(ratio / 0.01 - 1), "latency_ratio": 0.0}
    assert record.reason == f"size_ratio {ratio:.4g} exceeds the budget 0.01"
    assert not record.feasible


def test_budget_in_bytes_is_the_same_gate(bench: Bench, attempt: Callable[..., TrialRecord], tmp_path: Path) -> None:
    record = attempt(every(bench, INT8))
    assert record.state == "complete"
    exactly = (tmp_path / "t0003.onnx").stat().st_size
    assert attempt(every(bench, INT8), Budget(size_bytes=exactly)).state == "complete"
    assert attempt(every(bench, INT8), Budget(size_bytes=exactly - 1)).gate == "size"


@pytest.mark.parametrize("budget", [Budget(latency_ratio=1e-3), Budget(latency_ms=1e-6)])
def test_too_slow_a_file_is_not_evaluated(bench: Bench, attempt: Callable[..., TrialRecord], budget: Budget) -> None:
    record = attempt(every(bench, INT8), budget, bench=bench)
    assert (record.state, record.gate) == ("pruned", "latency")
    assert list(record.seconds) == ["build", "size", "check", "latency"]
    assert record.measurement.latency_ms is not None and record.measurement.latency_ratio is not None
    assert (record.measurement.accuracy, record.measurement.accuracy_drop, record.measurement.images) == (None, None, 0)
    assert "exceeds the budget" in record.reason
    assert record.violation > 0


def test_hopeless_file_is_dropped_on_the_first_subset(
    bench: Bench, attempt: Callable[..., TrialRecord], tmp_path: Path
) -> None:
    record = attempt(every(bench, HOPELESS), Budget(accuracy_drop=0.02), floor=0.02)
    assert (record.state, record.gate) == ("pruned", "accuracy")
    first = slice(0, 50)
    drop = right(bench.graph.path, bench, first).mean() - right(tmp_path / "t0003.onnx", bench, first).mean()
    assert drop > 0.3
    assert record.measurement.images == 50
    assert record.measurement.accuracy_drop == pytest.approx(drop)
    assert record.reason == f"{drop:.4f} behind FP32 on 50 examples, 0.0200 is allowed"


def test_subsets_grow_until_it_is_certain(
    bench: Bench, quick_bench: Bench, attempt: Callable[..., TrialRecord], tmp_path: Path
) -> None:
    """At 200 images one standard error is less than four points, at ten it is more than ten."""
    small = replace(quick_bench, settings=TrialSettings(subsets=[0.5, 0.01], minimum_subset=10))
    certain = attempt(every(bench, HOPELESS), floor=0.0, bench=small)
    assert (certain.state, certain.measurement.images) == ("pruned", 10)
    ten, half = (
        float(right(bench.graph.path, bench, part).mean() - right(tmp_path / "t0003.onnx", bench, part).mean())
        for part in (slice(0, 10), slice(0, 200))
    )
    later = attempt(every(bench, HOPELESS), floor=min(ten, half - 0.13) - 0.01, bench=small)
    assert (later.state, later.measurement.images) == ("pruned", 200)


def test_hopeless_file_is_measured_in_full_when_no_drop_is_too_much(bench: Bench, attempt: Callable[..., TrialRecord]) -> None:
    record = attempt(every(bench, HOPELESS))
    assert (record.state, record.measurement.images) == ("complete", 400)


def test_good_file_passes_every_subset(bench: Bench, quick_bench: Bench, attempt: Callable[..., TrialRecord]) -> None:
    patient = replace(quick_bench, settings=TrialSettings(subsets=[0.3, 0.6, 0.9], minimum_subset=50))
    record = attempt(every(bench, INT8), Budget(accuracy_drop=0.05), floor=0.05, bench=patient)
    assert (record.state, record.measurement.images) == ("complete", 400)
    assert record.feasible


def test_file_that_misses_the_drop_is_complete_but_not_feasible(bench: Bench, attempt: Callable[..., TrialRecord]) -> None:
    record = attempt(every(bench, HOPELESS), Budget(accuracy_drop=0.02))
    assert record.state == "complete"
    assert not record.feasible
    assert record.violations["accuracy_drop"] > 1


@dataclass
class Raising(Affine):
    """Fails on convolutions with 32 output channels."""

    name = "raising"
    bits: int = 8

    def quantize(self, weight: torch.Tensor, bits: int, stats: LayerStats, mask: torch.Tensor | None = None) -> QuantizedTensor:
        if stats.layer.channels == 32:
            raise ValueError("no such card")
        return super().quantize(weight, bits, stats, mask)


@dataclass
class Blank(Sparse):
    """Leaves weights that are not numbers."""

    name = "blank"

    def update(self, weight: torch.Tensor, mask: torch.Tensor, stats: LayerStats) -> torch.Tensor:
        return super().update(weight, mask, stats) * float("nan")


@dataclass
class Foreign(Affine):
    """Does not give what it promised."""

    name = "foreign"
    bits: int = 8

    def quantize(self, *_: Any) -> QuantizedTensor:
        return None  # type: ignore[return-value]


def with_component(bench: Bench, tiny: Any, component: Quantizer | Pruner) -> Bench:
    kind = "quantizers" if isinstance(component, Quantizer) else "pruners"
    components: Components = replace(bench.components, **{kind: {component.name: component}})  # type: ignore[arg-type]
    components = guarded(components)
    return replace(bench, components=components, database=LayerDatabase(tiny.graph, tiny.calibration, components, {}))


@pytest.mark.parametrize(
    ("component", "option", "reason"),
    [
        (Raising(), LayerPolicy("raising", 8), "quantizer 'raising': quantize layer inner.0: ValueError: no such card"),
        (Foreign(), LayerPolicy("foreign", 8), "quantizer 'foreign': layer stem.0: returned NoneType"),
        (Blank(), LayerPolicy(None, 32, "blank", 0.5), "pruner 'blank': layer stem.0: updated weights hold NaN or infinity"),
    ],
)
def test_what_goes_wrong_is_recorded_and_not_raised(
    bench: Bench,
    quick_bench: Bench,
    tiny: Any,
    attempt: Callable[..., TrialRecord],
    component: Quantizer | Pruner,
    option: LayerPolicy,
    reason: str,
) -> None:
    record = attempt(every(bench, option), bench=with_component(quick_bench, tiny, component))
    assert (record.state, record.gate) == ("failed", "build")
    assert record.reason.startswith(f"PluginError: {reason}")
    assert record.measurement.accuracy is None
    assert not record.feasible
    assert not record.sha256


def test_a_failure_leaves_the_bench_usable(
    bench: Bench, quick_bench: Bench, tiny: Any, attempt: Callable[..., TrialRecord]
) -> None:
    broken = with_component(quick_bench, tiny, Raising())
    assert attempt(every(bench, LayerPolicy("raising", 8)), bench=broken).state == "failed"
    assert attempt({"stem.0": LayerPolicy("raising", 8)}, bench=broken).state == "complete"


def test_policy_for_another_model_is_a_failure(attempt: Callable[..., TrialRecord]) -> None:
    record = attempt({"elsewhere": INT8})
    assert (record.state, record.gate) == ("failed", "build")
    assert record.reason.startswith("PolicyError: policy names the layer 'elsewhere'; expected one of: stem.0, ")


def test_ctrl_c_is_not_a_failure_of_the_trial(
    bench: Bench, quick_bench: Bench, tiny: Any, attempt: Callable[..., TrialRecord]
) -> None:
    class Stopped(Affine):
        name = "stopped"

        def quantize(self, *_: Any) -> QuantizedTensor:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attempt({"head": LayerPolicy("stopped", 8)}, bench=with_component(quick_bench, tiny, Stopped(8)))


def test_the_same_policy_gives_the_same_file(
    bench: Bench, quick_bench: Bench, tiny: Any, attempt: Callable[..., TrialRecord]
) -> None:
    layers = {**every(bench, INT4), "inner.0": LayerPolicy("int8", 8, "sparse", 0.5)}
    fresh = replace(quick_bench, database=LayerDatabase(tiny.graph, tiny.calibration, bench.components, {}))
    assert attempt(layers).sha256 == attempt(layers).sha256 == attempt(layers, bench=fresh).sha256


@pytest.mark.parametrize("lost", ["t0003.onnx", "fp32.onnx", "search.npy"])
def test_files_that_something_else_removes_end_the_search_and_not_the_candidate(
    quick_bench: Bench, tmp_path: Path, lost: str
) -> None:
    """Neither figures nor failures of such a trial are believed."""
    folder = Path(shutil.copytree(quick_bench.evaluator.folder, tmp_path / "cache"))
    graph = replace(quick_bench.graph, path=Path(shutil.copy(quick_bench.graph.path, tmp_path / "fp32.onnx")))

    class Careless(Evaluator):
        def check(self, path: Path, images: int) -> None:
            super().check(path, images)
            (folder if lost.endswith("npy") else tmp_path).joinpath(lost).unlink()

    evaluator = Careless(**{field.name: getattr(quick_bench.evaluator, field.name) for field in fields(Evaluator)})
    bench = replace(quick_bench, graph=graph, evaluator=replace(evaluator, folder=folder))
    with pytest.raises(DisturbedError, match=f"{lost}: something else removed or changed this file while it was in use"):
        run_trial(bench, Policy(every(bench, INT8)), Budget(), list, 3, "seed", tmp_path / "t0003.onnx")


def test_a_full_disk_ends_the_search_and_not_the_candidate(quick_bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "t0003.onnx.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        run_trial(quick_bench, Policy(), Budget(), list, 3, "seed", tmp_path / "t0003.onnx")
