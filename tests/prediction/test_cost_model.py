from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import pytest
from autocompress_plugins.affine import Int4, Int8
from autocompress_plugins.sparse import Sparse
from optuna.trial import create_trial

from autocompress.budget import Budget, Latency
from autocompress.choices.options import build_space
from autocompress.choices.space import SearchSpace
from autocompress.choices.space_settings import SpaceSettings
from autocompress.display.progress import Progress
from autocompress.measuring.device import Device
from autocompress.network.channels import ChannelGroups
from autocompress.policy import Policy
from autocompress.prediction.effects import Journal, SensitivitySettings, measure_effects
from autocompress.prediction.latency_model import LatencyFeatures, LatencyModel, Observation
from autocompress.prediction.measured_problem import UNTIMED, MeasuredProblem
from autocompress.prediction.timed_options import LATENCY
from autocompress.problem import Choices, Effect
from autocompress.studies.study import KIND
from autocompress.tensors.compress import LayerDatabase
from autocompress.trials.trial import Bench

if TYPE_CHECKING:
    from tests.conftest import Tiny


@pytest.fixture
def cut_bench(quick_bench: Bench, groups: ChannelGroups, tiny: Tiny) -> Bench:
    components = replace(quick_bench.components, quantizers={"int8": Int8(), "int4": Int4()}, pruners={"sparse": Sparse()})
    database = LayerDatabase(tiny.graph, tiny.calibration, components, groups.groups)
    return replace(quick_bench, components=components, groups=groups.groups, database=database)


@pytest.fixture
def space(cut_bench: Bench) -> SearchSpace:
    settings = SpaceSettings(sparsities=[0.5], structures=["channel"], channel_multiple=4)
    return build_space(cut_bench.graph, cut_bench.components, cut_bench.groups, settings, cut_bench.database)


@pytest.fixture
def problem(cut_bench: Bench, space: SearchSpace, tmp_path: Path) -> MeasuredProblem:
    journal = Journal(tmp_path / "sensitivity.jsonl", ["tiny"])
    settings = SensitivitySettings(images=32, seconds=0.01)
    return MeasuredProblem("size", Budget(), cut_bench.baseline(), cut_bench, space, settings, journal, Progress(quiet=True))


def random_rows(space: SearchSpace, count: int) -> Choices:
    random = np.random.default_rng(0)
    return np.array([[random.integers(size) for size in space.sizes.values()] for _ in range(count)])


def test_predicted_sizes_are_those_of_the_files(problem: MeasuredProblem, space: SearchSpace, tmp_path: Path) -> None:
    """On policies that mix bits, float layers and removed channels; the tiny file is mostly graph, a real one is not."""
    rows = random_rows(space, 12)
    costs = problem.costs(rows, [])
    whole = len(problem.bench.graph.data)
    for row, ratio in zip(rows, costs.size_ratio, strict=True):
        policy = space.policy(problem.indices(row))
        size = problem.bench.build(policy, tmp_path / "candidate.onnx").artifact.size_bytes
        assert abs(ratio * whole - size) < 0.06 * whole


def test_effects_are_those_of_the_files(cut_bench: Bench, space: SearchSpace, tmp_path: Path, problem: MeasuredProblem) -> None:
    """Loss and bytes of one option, against the file run by hand."""
    effect: Effect = problem.effects()["inner.0"][-1]
    artifact = cut_bench.build(space.alone("inner.0", space.sizes["inner.0"] - 1), tmp_path / "alone.onnx").artifact
    images = cut_bench.task.sets["calibration"].inputs[:32]
    ours, theirs = (
        onnxruntime.InferenceSession(path).run(None, {"input": images})[0] for path in (artifact.path, cut_bench.graph.path)
    )
    error, signal = (ours - theirs).astype(float).var(axis=1).mean(), theirs.astype(float).var(axis=1).mean()
    labels = cut_bench.task.sets["calibration"].targets[:32]
    assert effect.size_bytes == artifact.size_bytes
    assert effect.divergence == pytest.approx(error / signal, rel=1e-3)
    assert effect.drop == pytest.approx((theirs.argmax(1) == labels).mean() - (ours.argmax(1) == labels).mean())


def test_the_latency_model_is_fitted_once_for_all_questions_of_a_proposal(
    problem: MeasuredProblem, space: SearchSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, fit, fitted = random_rows(space, 4), LatencyModel.fit, list[int]()

    def counted(features: LatencyFeatures, observed: Sequence[Observation]) -> LatencyModel:
        fitted.append(len(observed))
        return fit(features, observed)

    monkeypatch.setattr(LatencyModel, "fit", counted)
    first, part = problem.costs(rows, []), problem.costs(rows[:2], [])
    np.testing.assert_array_equal(part.latency_ratio, first.latency_ratio[:2])
    none, sizes = rows[:0], np.zeros(0)
    slow = [Observation(space.policy(problem.indices(row)), 2.0, 0.01) for row in rows]
    learned = [problem._costs.predict(rows, none, sizes, [*slow]) for _ in range(2)]
    assert fitted == [0, 4]
    assert (learned[1].latency_ratio > first.latency_ratio).all()
    np.testing.assert_array_equal(learned[0].latency_ratio, learned[1].latency_ratio)


def test_options_of_fp32_do_nothing(problem: MeasuredProblem) -> None:
    for effects in problem.effects().values():
        assert effects[0].divergence == pytest.approx(0.0, abs=1e-9)
        assert effects[0].drop == 0
        assert effects[0].size_bytes == pytest.approx(len(problem.bench.graph.data), rel=0.01)  # written in another way


def test_the_journal_answers_what_was_measured(cut_bench: Bench, space: SearchSpace, tmp_path: Path) -> None:
    """A second process measures nothing, and a line that was cut off is measured again."""
    path, settings, quiet = tmp_path / "tables.jsonl", SensitivitySettings(images=16), Progress(quiet=True)
    first = measure_effects(cut_bench, space, settings, Journal(path, ["a"]), quiet)
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:20])
    assert measure_effects(cut_bench, space, settings, Journal(path, ["a"]), quiet) == first
    length = len(path.read_text().splitlines())
    assert measure_effects(cut_bench, space, settings, Journal(path, ["a"]), quiet) == first
    assert len(path.read_text().splitlines()) == length
    assert Journal(path, ["b"]).get("effect on 16", Policy()) is None


def test_options_that_compute_alike_are_timed_once(problem: MeasuredProblem) -> None:
    fast = replace(problem, objective="latency")
    ratios = fast.timed_options.ratios
    assert set(ratios) == set(fast.parameters)
    for name, layer in fast.space.layers.items():
        integer = {ratio for ratio, option in zip(ratios[name], layer, strict=True) if option.quantizer is not None}
        assert len(integer) == 1
    assert all(options[0] == 1.0 for options in ratios.values())
    assert not problem.timed_options.ratios


def timed_alone(space: SearchSpace, name: str) -> Policy:
    """Of options that compute alike the last one is timed."""
    return space.alone(name, space.sizes[name] - 1)


def test_single_options_are_timed_after_the_first_proposals(problem: MeasuredProblem, space: SearchSpace) -> None:
    """Seeds alone do not make a search wait for it."""
    fast, row = replace(problem, objective="latency"), random_rows(space, 1)
    trials = [create_trial(value=0.0, user_attrs={KIND: kind}) for kind in ("seed", *["trial"] * UNTIMED)]
    before = fast.costs(row, trials[:-1])
    assert not fast.latency_predictions([]) and fast.journal.get(LATENCY, timed_alone(space, "head")) is None
    after = fast.costs(row, trials)
    assert fast.journal.get(LATENCY, timed_alone(space, "head")) is not None
    assert after.latency_spread[0] < before.latency_spread[0]


class Spoiling(Device):
    """Breaks the file of one policy before it is timed."""

    spoiled = ""

    def latencies(self, reference: Path, candidates: Sequence[Path], *rest: Any) -> list[Latency]:
        for path in candidates:
            if path.stem == self.spoiled:
                path.write_bytes(b"not a model")
        return super().latencies(reference, candidates, *rest)


def test_a_file_that_does_not_run_is_left_out_of_the_times(problem: MeasuredProblem, space: SearchSpace) -> None:
    """The others of its round are timed without it."""
    bad, good = timed_alone(space, "head"), timed_alone(space, "stem.0")
    device = Spoiling(problem.bench.components.target, 1)
    device.spoiled = bad.digest
    with closing(device):
        spoiled = replace(problem, objective="latency", bench=replace(problem.bench, device=device))
        assert spoiled.timed_options.ratios["head"][-1] is None
    assert spoiled.journal.get(LATENCY, bad) is None
    timed = spoiled.journal.get(LATENCY, good)
    assert timed is not None and timed["reference_ms"] > 0
