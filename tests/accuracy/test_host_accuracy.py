"""Accuracy of the same file on two machines; here the other machine is this one under another name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from autocompress_plugins.agreement import Agreement

from autocompress import LayerPolicy, Policy
from autocompress.accuracy.host_accuracy import host_accuracy
from autocompress.building.candidate import Candidate
from autocompress.measuring.device import open_device
from autocompress.transport import LocalTransport
from autocompress.trials.trial import Bench


class Elsewhere(LocalTransport):
    here = False


def test_there_is_no_difference_on_one_machine(bench: Bench) -> None:
    assert host_accuracy(bench.evaluator, bench.components.target, bench.graph, bench.graph.path, "report") is None


@pytest.mark.parametrize("against_reference", [False, True])
def test_accuracy_is_computed_on_this_machine(
    bench: Bench, build_tiny: Callable[[Policy], Candidate], against_reference: bool
) -> None:
    evaluator, target = bench.evaluator, bench.components.target
    path = build_tiny(Policy({"head": LayerPolicy("int4", 4)})).artifact.path
    if against_reference:
        evaluator = replace(evaluator, metric=Agreement())
        evaluator.keep_reference(bench.graph, "report")
    expected = evaluator.metric.value(evaluator.statistics(path, "report", 0, len(evaluator.targets["report"])))
    with open_device(target, 1, Elsewhere()) as device:
        away = replace(evaluator, device=device, reference={"report": evaluator.targets["report"]})
        assert host_accuracy(away, target, bench.graph, path, "report") == pytest.approx(expected, abs=0.005)


def test_a_file_that_does_not_run_here_has_none(bench: Bench) -> None:
    path = bench.evaluator.folder / "corrupt.onnx"
    path.write_bytes(b"not a model")
    with open_device(bench.components.target, 1, Elsewhere()) as device:
        away = replace(bench.evaluator, device=device)
        assert host_accuracy(away, bench.components.target, bench.graph, path, "report") is None
