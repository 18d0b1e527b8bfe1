"""The leader's figures are remembered; only those of an earlier run are computed again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autocompress import LayerPolicy, Measurement, Policy
from autocompress.trials.incumbent import Incumbent
from autocompress.trials.trial import Bench

POLICY = Policy({"head": LayerPolicy("int8", 8)})


class Refusing:
    """A bench on which nothing may be built."""

    def __getattr__(self, name: str) -> object:
        raise AssertionError(f"asked for {name}")


def test_what_was_learned_is_not_computed(tmp_path: Path) -> None:
    incumbent = Incumbent(Refusing(), tmp_path / "incumbent.onnx")  # type: ignore[arg-type]
    figures = np.array([1.0, 0.0])
    incumbent.learn(POLICY, figures)
    assert incumbent.statistics(POLICY) is figures


def test_figures_of_an_earlier_run_are_computed_once(quick_bench: Bench, baseline: Measurement, tmp_path: Path) -> None:
    incumbent = Incumbent(quick_bench, tmp_path / "incumbent.onnx")
    found = incumbent.statistics(POLICY)
    path = quick_bench.build(POLICY, tmp_path / "again.onnx").artifact.path
    np.testing.assert_array_equal(found, quick_bench.evaluator.statistics(path, "search", 0, 400))
    assert incumbent.statistics(POLICY) is found
    assert not (tmp_path / "incumbent.onnx").exists()


def test_a_policy_that_cannot_be_built_any_more_has_none(quick_bench: Bench, tmp_path: Path) -> None:
    incumbent = Incumbent(quick_bench, tmp_path / "incumbent.onnx")
    gone = Policy({"head": replace(POLICY.layers["head"], quantizer="gone")})
    assert incumbent.statistics(gone) is None
    assert list(tmp_path.iterdir()) == []


def test_another_policy_has_other_figures(quick_bench: Bench, baseline: Measurement, tmp_path: Path) -> None:
    incumbent = Incumbent(quick_bench, tmp_path / "incumbent.onnx")
    incumbent.learn(POLICY, np.zeros(400))
    found = incumbent.statistics(Policy())
    assert found is not None
    assert found.mean() == pytest.approx(baseline.accuracy)
