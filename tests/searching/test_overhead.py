"""The person is told when removing channels does not buy time."""

from collections.abc import Callable
from pathlib import Path

import pytest

from autocompress.budget import Measurement
from autocompress.building.candidate import layer_rows
from autocompress.policy import ChannelPolicy, LayerPolicy, Policy
from autocompress.record import TrialRecord
from autocompress.searching.overhead import overhead_notes
from autocompress.trials.trial import Bench

CUT = {"inner.0": ChannelPolicy("sparse", 0.75)}


@pytest.fixture
def trial(bench: Bench, tmp_path: Path) -> Callable[[int, dict[str, ChannelPolicy], float | None], TrialRecord]:
    """A trial with the real per-layer table of its file, and a given latency."""

    def trial(number: int, channels: dict[str, ChannelPolicy], latency_ratio: float | None) -> TrialRecord:
        policy = Policy(dict.fromkeys(bench.graph.layers, LayerPolicy("int8", 8)), channels)
        rows = layer_rows(bench.graph, bench.build(policy, tmp_path / f"{number}.onnx"))
        measurement = Measurement(latency_ratio=latency_ratio)
        return TrialRecord(number, "trial", "complete", "done", "", policy, measurement, {}, layers=rows)

    return trial


def test_work_that_does_not_show_up_as_time_is_said(trial: Callable[..., TrialRecord], bench: Bench) -> None:
    whole, cut = trial(1, {}, 0.50), trial(2, CUT, 0.49)
    share = 1 - sum(row.macs for row in cut.layers) / sum(layer.macs for layer in bench.graph.layers.values())
    assert share > 0.4
    (note,) = overhead_notes([whole, cut])
    assert f"trial 2 computes {share:.0%} fewer multiply-accumulates than trial 1 and takes 2% less time" in note


def test_work_that_buys_time_needs_no_word(trial: Callable[..., TrialRecord]) -> None:
    assert overhead_notes([trial(1, {}, 0.50), trial(2, CUT, 0.30)]) == []


def test_without_a_pair_nothing_is_claimed(trial: Callable[..., TrialRecord]) -> None:
    """Another precision, no latency, or no cut at all."""
    assert overhead_notes([trial(1, {}, None), trial(2, CUT, 0.49)]) == []
    assert overhead_notes([trial(1, {}, 0.5), trial(2, {}, 0.5)]) == []
    assert overhead_notes([trial(2, CUT, 0.49)]) == []
