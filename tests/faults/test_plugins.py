"""What goes wrong inside of a plugin costs one trial, or ends the search with a line that names the plugin."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from autocompress_plugins.accuracy import Accuracy
from autocompress_plugins.affine import Int8
from autocompress_plugins.minmax import MinMax
from autocompress_plugins.sparse import Sparse
from conftest import Tiny
from optuna.samplers import BaseSampler, RandomSampler
from torch import Tensor, nn

from autocompress import Budget, CompressedLayer, Measurement, Policy, QuantizedTensor, Sampler, SyntheticProblem
from autocompress.accuracy.evaluation import Evaluator
from autocompress.accuracy.guarded_metric import GuardedMetric
from autocompress.building.preparation import _prepared
from autocompress.components import Recovery
from autocompress.errors import CheckError, PluginError
from autocompress.policy import LayerPolicy
from autocompress.studies.guarded_sampler import guarded_sampler
from autocompress.tensors.calibration import Calibration
from autocompress.tensors.compress import LayerDatabase
from autocompress.tensors.guarded_weights import guarded
from autocompress.trials.trial import Bench, run_trial

POLICY = Policy({"head": LayerPolicy("strange", 8)})
Change = Callable[[QuantizedTensor], object]


class Stop(BaseException):
    """What no `except Exception` sees."""


def raised(error: BaseException) -> Callable[..., Any]:
    def fault(*_: Any) -> Any:
        raise error

    return fault


def forked(*_: Any) -> None:
    """The child comes back as the parent does."""
    if os.fork():
        os.wait()
        raise ValueError("the parent goes on")


@dataclass
class Strange(Int8):
    """INT8, but for what happens before and what becomes of the codes."""

    name = "strange"
    before: Any = None
    change: Any = None

    def quantize(self, weight: Tensor, bits: int, stats: Any, mask: Tensor | None = None) -> QuantizedTensor:
        if self.before is not None:
            self.before(weight, stats, mask)
        found = super().quantize(weight, bits, stats, mask)
        return found if self.change is None else self.change(found)


def with_components(bench: Bench, **parts: Any) -> Bench:
    """The bench with other components, guarded as in every search."""
    components = guarded(replace(bench.components, **parts))
    database = LayerDatabase(bench.graph, bench.calibration, components, bench.groups)
    return replace(bench, components=components, database=database)


def trial(bench: Bench, folder: Path, policy: Policy = POLICY) -> tuple[str, str]:
    """State and reason of one trial."""
    record, _ = run_trial(bench, policy, Budget(), lambda: [], 0, "trial", folder / "t0000.onnx")
    return record.state, record.reason


@pytest.fixture(autouse=True)
def ready(baseline: Measurement) -> None:
    """The FP32 file's outputs are known."""


CODES: dict[str, tuple[Change, str]] = {
    "not codes": (lambda found: found.dequantize(), "returned Tensor; expected a QuantizedTensor"),
    "nothing": (lambda _: None, "returned NoneType; expected a QuantizedTensor"),
    "wrong shape": (lambda found: replace(found, codes=found.codes.T), "codes is int8 (32, 10); expected int8 (10, 32)"),
    "wrong dtype": (lambda found: replace(found, codes=found.codes.float()), "codes is float32 (10, 32); expected int8"),
    "NaN": (lambda found: replace(found, scale=found.scale * torch.nan), "scale is not positive and finite everywhere"),
    "infinity": (lambda found: replace(found, scale=found.scale / 0), "scale is not positive and finite everywhere"),
    "negative": (lambda found: replace(found, scale=-found.scale), "scale is not positive and finite everywhere"),
    "too many scales": (
        lambda found: replace(found, scale=torch.ones(7)),
        "scale is float32 (7,); expected float32 () or",
    ),
    "wide codes": (lambda found: replace(found, bits=4), "codes are outside of -8 .. 7"),
    "other bits": (lambda found: replace(found, codes=found.codes // 32, bits=4), "4 bits; expected 8"),
    "wrong axis": (lambda found: replace(found, axis=1), "the scale is along axis 1; expected 0"),
    "codes without levels": (
        lambda found: replace(found, codebook=torch.tensor([0, 1], dtype=torch.int8)),
        "codes name no entry of the codebook",
    ),
}


@pytest.mark.parametrize("fault", CODES)
def test_wrong_codes_cost_one_trial(quick_bench: Bench, tmp_path: Path, fault: str) -> None:
    change, reason = CODES[fault]
    state, why = trial(with_components(quick_bench, quantizers={"strange": Strange(change=change)}), tmp_path)
    assert state == "failed"
    assert why.startswith("PluginError: quantizer 'strange': layer head: ")
    assert reason in why


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), Stop("no"), MemoryError("no"), GeneratorExit("no")])
def test_whatever_is_raised_costs_one_trial(quick_bench: Bench, tmp_path: Path, error: BaseException) -> None:
    state, why = trial(with_components(quick_bench, quantizers={"strange": Strange(before=raised(error))}), tmp_path)
    assert state == "failed"
    said = f"{type(error).__name__}: {error} (test_plugins.py"
    assert why.startswith(f"PluginError: quantizer 'strange': quantize layer head: {said}")


def test_a_forked_child_never_comes_back(quick_bench: Bench, tmp_path: Path) -> None:
    parent = os.getpid()
    _, why = trial(with_components(quick_bench, quantizers={"strange": Strange(before=forked)}), tmp_path)
    assert os.getpid() == parent
    assert "ValueError: the parent goes on" in why


def test_nobody_sees_what_a_plugin_writes_to(quick_bench: Bench, tmp_path: Path) -> None:
    """Weights, statistics, gradients and mask are its own: with or without the writing, the file has the same bytes."""

    def scribble(weight: Tensor, stats: Any, mask: Tensor | None) -> None:
        for tensor in (stats.weight, stats.gradient_samples, stats.input_second_moment, stats.input_mean):
            tensor.zero_()
        if mask is not None:
            mask.fill_(True)

    policy = Policy({"head": LayerPolicy("strange", 8, "sparse", 0.5)})
    digests = []
    for before in (None, scribble, None):
        bench = with_components(quick_bench, quantizers={"strange": Strange(before=before)}, pruners={"sparse": Sparse()})
        record, _ = run_trial(bench, policy, Budget(), lambda: [], 0, "trial", tmp_path / "t0000.onnx")
        assert record.state == "complete", record.reason
        digests.append(record.sha256)
    assert digests[0] == digests[1] == digests[2]


@dataclass
class StrangePruner(Sparse):
    name = "strange"
    scores: Any = None
    updated: Any = None

    def score(self, weight: Tensor, stats: Any) -> Tensor:
        found = super().score(weight, stats)
        return found if self.scores is None else self.scores(found)  # type: ignore[no-any-return]

    def update(self, weight: Tensor, mask: Tensor, stats: Any) -> Tensor:
        return super().update(weight, mask, stats) if self.updated is None else self.updated(weight)  # type: ignore[no-any-return]


PRUNERS: dict[str, tuple[StrangePruner, str]] = {
    "NaN": (StrangePruner(scores=lambda found: found * torch.nan), "scores hold NaN or infinity"),
    "shape": (StrangePruner(scores=lambda found: found[0]), "scores are float32 (32,); expected float32 (10, 32)"),
    "dtype": (StrangePruner(scores=lambda found: found.double()), "scores are float64 (10, 32); expected float32 (10, 32)"),
    "mask": (StrangePruner(updated=lambda weight: weight + 1), "updated weights are not 0 where the mask removes them"),
    "weights": (StrangePruner(updated=lambda weight: weight / 0), "updated weights hold NaN or infinity"),
    "raises": (StrangePruner(updated=raised(SystemExit(0))), "update of layer head: SystemExit: 0"),
}


@pytest.mark.parametrize("fault", PRUNERS)
def test_a_strange_pruner_costs_one_trial(quick_bench: Bench, tmp_path: Path, fault: str) -> None:
    pruner, reason = PRUNERS[fault]
    policy = Policy({"head": LayerPolicy(pruner="strange", sparsity=0.5)})
    state, why = trial(with_components(quick_bench, quantizers={}, pruners={"strange": pruner}), tmp_path, policy)
    assert (state, why.split(" (test")[0]) == (
        "failed",
        f"PluginError: pruner 'strange': {'' if fault == 'raises' else 'layer head: '}{reason}",
    )


@dataclass
class StrangeRecovery(Recovery):
    name = "strange"
    change: Any = None
    model: Any = None

    def repair(self, compressed: CompressedLayer, stats: Any, cuts: Any) -> CompressedLayer:
        return compressed if self.change is None else self.change(compressed)  # type: ignore[no-any-return]

    def prepare(self, model: nn.Module, example: Tensor, pairs: Any) -> nn.Module:
        return model if self.model is None else self.model(model)  # type: ignore[no-any-return]


REPAIRS: dict[str, tuple[Callable[[CompressedLayer], object], str]] = {
    "raises": (raised(SystemExit(1)), "repair layer head: SystemExit: 1"),
    "nothing": (lambda _: None, "returned NoneType; expected a CompressedLayer"),
    "bias": (lambda given: replace(given, bias=torch.ones(3)), "layer head: biases are float32 (3,); expected float32 (10,)"),
    "NaN": (lambda given: replace(given, bias=torch.full((10,), torch.nan)), "layer head: biases hold NaN or infinity"),
}


@pytest.mark.parametrize("fault", REPAIRS)
def test_a_strange_repair_costs_one_trial(quick_bench: Bench, tmp_path: Path, fault: str) -> None:
    change, reason = REPAIRS[fault]
    parts: dict[str, Any] = {"quantizers": {"strange": Strange()}, "recoveries": (StrangeRecovery(change),)}
    state, why = trial(with_components(quick_bench, **parts), tmp_path)
    assert (state, why.split(" (test")[0]) == ("failed", f"PluginError: recovery 'strange': {reason}")


def changed(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    return model


def test_a_model_that_a_recovery_changed_is_refused(tiny: Tiny) -> None:
    """It would be the reference of every figure."""
    before = {name: tensor.clone() for name, tensor in tiny.task.model.state_dict().items()}
    with pytest.raises(CheckError, match="the model before and after recovery 'strange' agree to"):
        _prepared(StrangeRecovery(model=changed), tiny.task, tiny.graph)
    with pytest.raises(PluginError, match="recovery 'strange': prepare: SystemExit: 2"):
        _prepared(StrangeRecovery(model=raised(SystemExit(2))), tiny.task, tiny.graph)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny.task.model.state_dict().items())


@dataclass
class StrangeObserver(MinMax):
    name = "strange"
    ends: Any = None
    before: Any = None

    def update(self, batch: Any) -> None:
        if self.before is not None:
            self.before(batch)
        super().update(batch)

    def range(self, bits: int) -> tuple[float, float]:
        return super().range(bits) if self.ends is None else self.ends  # type: ignore[no-any-return]


OBSERVERS = {
    "NaN": (StrangeObserver(ends=(np.nan, 1.0)), r"tensor input: range \(nan, 1.0\); expected finite low <= high"),
    "infinity": (StrangeObserver(ends=(0.0, np.inf)), r"range \(0.0, inf\); expected finite low <= high"),
    "order": (StrangeObserver(ends=(1.0, 0.0)), r"range \(1.0, 0.0\); expected finite low <= high"),
    "type": (StrangeObserver(ends=3), "range: TypeError|cannot unpack"),
    "raises": (StrangeObserver(before=raised(SystemExit(1))), "update: SystemExit: 1"),
    "writes": (StrangeObserver(before=lambda batch: batch.fill(0)), "update: ValueError: assignment destination is read-only"),
}


@pytest.mark.parametrize("fault", OBSERVERS)
def test_a_strange_observer_ends_the_search_before_any_trial(tiny: Tiny, tmp_path: Path, fault: str) -> None:
    observer, reason = OBSERVERS[fault]
    calibration = Calibration(tiny.task, tiny.graph, replace(tiny.components, observer=observer), tmp_path)
    with pytest.raises(PluginError, match=f"observer 'strange': .*({reason})"):
        calibration.observe()


@dataclass
class StrangeMetric(Accuracy):
    name = "strange"
    rows: Any = None
    figure: Any = None

    def statistics(self, outputs: Any, expected: Any) -> Any:
        return super().statistics(outputs, expected) if self.rows is None else self.rows(outputs, expected)

    def value(self, statistics: Any) -> float:
        return super().value(statistics) if self.figure is None else self.figure(statistics)  # type: ignore[no-any-return]


METRICS: dict[str, tuple[StrangeMetric, str]] = {
    "NaN": (StrangeMetric(rows=lambda outputs, _: outputs[:, 0] * np.nan), "statistics hold NaN or infinity"),
    "rows": (StrangeMetric(rows=lambda *_: np.ones(3)), "statistics have shape (3,); expected (400,) or (400, k)"),
    "value": (StrangeMetric(figure=lambda _: float("nan")), "the value is nan; expected a finite number"),
    "raises": (StrangeMetric(figure=raised(Stop("no"))), "value: Stop: no"),
    "writes": (StrangeMetric(rows=lambda outputs, _: outputs.fill(0)), "statistics: ValueError: assignment destination"),
    "writes rows": (StrangeMetric(figure=lambda rows: rows.fill(0)), "value: ValueError: assignment destination"),
}


@pytest.mark.parametrize("fault", METRICS)
def test_a_strange_metric_costs_one_trial(quick_bench: Bench, tmp_path: Path, fault: str) -> None:
    metric, reason = METRICS[fault]
    evaluator = replace(quick_bench.evaluator, metric=GuardedMetric(metric))
    bench = with_components(replace(quick_bench, evaluator=evaluator), quantizers={"strange": Strange()})
    state, why = trial(bench, tmp_path)
    assert state == "failed"
    assert f"PluginError: metric 'strange': {reason}" in why


def test_every_search_guards_its_metric(quick_bench: Bench) -> None:
    assert isinstance(quick_bench.evaluator, Evaluator)
    assert isinstance(quick_bench.evaluator.metric, GuardedMetric)


@dataclass
class StrangeSampler(Sampler):
    name = "strange"
    made: Any = None

    def create(self, problem: Any, seed: int) -> BaseSampler:
        return self.made()  # type: ignore[no-any-return]


class Proposing(RandomSampler):
    def __init__(self, proposed: object) -> None:
        super().__init__(0)
        self._proposed = proposed

    def sample_independent(self, *_: Any) -> Any:
        if isinstance(self._proposed, BaseException):
            raise self._proposed
        return self._proposed


SAMPLERS: dict[str, tuple[Callable[[], object], str]] = {
    "create raises": (raised(SystemExit(1)), "create: SystemExit: 1"),
    "no sampler": (lambda: 7, "create gives int; expected an Optuna sampler"),
    "too large": (lambda: Proposing(9), "proposes a=9; expected one of IntDistribution"),
    "negative": (lambda: Proposing(-1), "proposes a=-1; expected one of"),
    "NaN": (lambda: Proposing(float("nan")), "proposes a=nan; expected one of"),
    "text": (lambda: Proposing("many"), "proposes a='many'; expected one of"),
    "raises": (lambda: Proposing(Stop("no")), "sample_independent: Stop: no"),
}


@pytest.mark.parametrize("fault", SAMPLERS)
def test_a_strange_sampler_is_named(fault: str) -> None:
    made, reason = SAMPLERS[fault]
    problem = SyntheticProblem(sizes={"a": 3})
    with pytest.raises(PluginError) as caught:
        problem.ask(problem.new_study(guarded_sampler(StrangeSampler(made), problem, 0)))
    assert str(caught.value).startswith(f"sampler 'strange': {reason}")


def hang(*_: Any) -> None:
    while True:
        time.sleep(0.01)


def hang_deaf(*_: Any) -> None:
    """What survives every `Exception`, and one long system call."""
    while True:
        try:
            time.sleep(60)
        except Exception:
            continue


@pytest.mark.parametrize("fault", [hang, hang_deaf])
def test_what_hangs_is_ended(quick_bench: Bench, tmp_path: Path, fault: Callable[..., None]) -> None:
    bench = replace(with_components(quick_bench, quantizers={"strange": Strange(before=fault)}), trial_timeout=0.2)
    start = time.monotonic()
    record, _ = run_trial(bench, POLICY, Budget(), lambda: [], 0, "trial", tmp_path / "t0000.onnx")
    assert 0.2 <= time.monotonic() - start < 5
    assert (record.state, record.gate, record.given_up) == ("failed", "build", True)
    where = f"it was in {fault.__name__} (test_plugins.py"
    assert record.reason.startswith(f"took longer than search.trial_timeout=0.2 seconds: {where}")
    again = replace(with_components(quick_bench, quantizers={"strange": Strange()}), trial_timeout=20.0)
    assert trial(again, tmp_path)[0] == "complete", "the next trial has all its time"
