"""What single options cost and save: figures against plain onnxruntime, the rule, the files, the table and the picture."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from command import SMALL, run
from numpy.typing import NDArray

from autocompress.choices.options import build_space
from autocompress.choices.space_settings import SpaceSettings
from autocompress.display.progress import Progress
from autocompress.network.channels import ChannelGroups
from autocompress.network.regions import RegionPolicy
from autocompress.prediction.effects import Journal, SensitivitySettings
from autocompress.problem import Effect
from autocompress.quality import Quality
from autocompress.reporting.figure import HeatMap
from autocompress.reporting.figures import heat_map
from autocompress.reporting.sensitivity import LayerSensitivity, OptionSensitivity, Sensitivity, measure_sensitivity
from autocompress.reporting.sensitivity_files import sensitivity_content, write_sensitivity
from autocompress.reporting.sensitivity_table import sensitivity_table
from autocompress.trials.trial import Bench
from autocompress.workspace import Workspace

SETTINGS = SensitivitySettings(images=48, seconds=0.05)


class Quiet(Progress):
    """Says nothing, and counts what is measured; may be interrupted as by Ctrl-C."""

    def __init__(self, interrupt_at: int | None = None) -> None:
        super().__init__(quiet=True)
        self.steps, self.interrupt_at = 0, interrupt_at

    def step(self, what: str, done: int, total: int, seconds: float) -> None:
        if done == self.interrupt_at:
            raise KeyboardInterrupt
        self.steps += what == "sensitivity"


@pytest.fixture
def workspace(quick_bench: Bench, groups: ChannelGroups, tmp_path: Path) -> Workspace:
    return opened(quick_bench, groups, tmp_path / "sensitivity.jsonl")


def opened(bench: Bench, groups: ChannelGroups, path: Path) -> Workspace:
    settings = SpaceSettings(sparsities=[0.5], structures=["channel"])
    space = build_space(bench.graph, bench.components, groups.groups, settings, bench.database)
    return Workspace(["tiny"], groups, bench, space, Journal(path, ["tiny"]))


def outputs(path: Path, images: NDArray[Any]) -> NDArray[np.float64]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: images})[0]).astype(np.float64)


@pytest.mark.parametrize(("layer", "label"), [("outer.0", "int4"), ("inner.0", "channels sparse 50%")])
def test_figures_of_an_option_by_plain_onnxruntime(workspace: Workspace, tmp_path: Path, layer: str, label: str) -> None:
    found = measure_sensitivity(workspace, SETTINGS, Quiet())
    measured = next(row for row in found.layers if row.name == layer)
    option = next(option for option in measured.options if option.label == label)
    bench, examples = workspace.bench, workspace.bench.task.sets["calibration"]
    built = bench.build(workspace.space.alone(option.parameter, option.index), tmp_path / "option.onnx").artifact
    ours, theirs = (outputs(path, examples.inputs[:48]) for path in (built.path, bench.graph.path))
    expected = (ours - theirs).var(axis=1).mean() / theirs.var(axis=1).mean()
    right = [float((scores.argmax(1) == examples.targets[:48]).mean()) for scores in (theirs, ours)]
    assert option.effect.divergence == pytest.approx(expected, rel=1e-3)
    assert expected > 1e-6
    assert option.effect.drop == pytest.approx(right[0] - right[1])
    assert option.effect.size_bytes == built.path.stat().st_size
    assert option.saved_bytes == bench.graph.path.stat().st_size - built.path.stat().st_size > 0


def test_ctrl_c_keeps_what_was_measured_and_a_cut_off_line_is_measured_again(
    workspace: Workspace, quick_bench: Bench, groups: ChannelGroups, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        measure_sensitivity(workspace, SETTINGS, Quiet(interrupt_at=5))
    journal = tmp_path / "sensitivity.jsonl"
    written = journal.read_text()
    journal.write_text(written[: written.rindex("size_bytes")])  # a line was being written when the machine went down
    rest = Quiet()
    found = measure_sensitivity(opened(quick_bench, groups, journal), SETTINGS, rest)
    space = workspace.space
    files = {space.alone(name, index).digest for name, count in space.sizes.items() for index in range(count)}
    assert rest.steps == len(files) - 4  # FP32, and whatever else is equal, is measured once
    again = Quiet()
    assert measure_sensitivity(opened(quick_bench, groups, journal), SETTINGS, again) == found
    assert again.steps == 0


def test_milliseconds_are_timed_once_for_options_that_compute_alike(workspace: Workspace) -> None:
    found = measure_sensitivity(workspace, SensitivitySettings(images=8, seconds=0.05), Quiet())
    for layer in found.layers:
        times = {option.saved_ms for option in layer.options if option.parameter == layer.name and "float" not in option.label}
        assert len(times) == 1
        assert None not in times


def made_up(*rows: tuple[str, float, float, int], allowed: float = 0.01) -> Sensitivity:
    """Layers with one option each: name, divergence, drop, bytes saved."""
    layers = [
        LayerSensitivity(name, 4 * saved, 100, (OptionSensitivity("int8", name, 1, Effect(loss, drop, 10), saved, None),))
        for name, loss, drop, saved in rows
    ]
    return Sensitivity(layers, [name for name, *_ in reversed(rows)], Quality(), 64, allowed)


HARMLESS = [(f"rest{index}", 1e-4, 0.0, 100) for index in range(16)]


def test_a_layer_is_left_alone_when_it_surely_costs_more_than_half_of_the_allowed_drop() -> None:
    unlucky = ("unlucky", 0.1, 1 / 64, 100)  # one image of 64 may be chance
    rows = [("broken", math.inf, math.inf, 0), ("useless", 0.9, 0.5, 0), ("a:b", 0.5, 0.3, 1), ("c/d", 0.4, 0.2, 100), unlucky]
    found = made_up(*rows, *HARMLESS)
    assert found.leave_alone == ["broken", "a:b", "c/d"]  # `useless` saves nothing that could be had
    assert found.override == "space.exclude=[broken,'a:b',c/d]"
    assert made_up(*rows, *HARMLESS, allowed=0.2).leave_alone == ["broken", "a:b"]  # 0.3 - 2 sqrt(0.3 / 64) = 0.16
    table = sensitivity_table(found)
    rule = (
        "* none of its options runs, or each that saves anything surely costs more than 0.50 points alone (50% of the allowed"
    )
    assert rule in " ".join(table.split())


def test_the_most_sensitive_of_harmless_layers_is_not_left_alone() -> None:
    found = made_up(("first", 100.0, 0.0, 1), *HARMLESS)
    assert found.leave_alone == []
    assert "nothing to leave alone" in sensitivity_table(found)


def test_one_good_option_is_enough() -> None:
    bad, good = (
        OptionSensitivity(label, "x", i, Effect(loss, drop, 10), 5, None)
        for i, (label, loss, drop) in enumerate([("int4", 0.9, 0.5), ("int8", 1e-3, 0.0)])
    )
    for options, expected in (((bad, good), []), ((bad,), ["x"])):
        assert Sensitivity([LayerSensitivity("x", 20, 9, options)], ["x"], Quality(), 64).leave_alone == expected


def test_regions_of_operators_have_rows(workspace: Workspace, tmp_path: Path) -> None:
    bench = workspace.bench
    (add,) = (op.name for op in bench.graph.ops if op.op_type == "Add")
    options = (RegionPolicy(), RegionPolicy("float", (add,)), RegionPolicy("integer", (add,)))
    space = replace(workspace.space, ops={"Add.x": options})
    found = measure_sensitivity(replace(workspace, space=space), SETTINGS, Quiet(), 0.02)
    region = next(row for row in found.layers if row.name == "ops/Add.x")
    assert [option.label for option in region.options] == ["operators float", "operators integer"]
    built = bench.build(space.alone("ops/Add.x", 2), tmp_path / "option.onnx").artifact
    ours, theirs = (outputs(p, bench.task.sets["calibration"].inputs[:48]) for p in (built.path, bench.graph.path))
    expected = (ours - theirs).var(axis=1).mean() / theirs.var(axis=1).mean()
    assert region.options[1].effect.divergence == pytest.approx(expected, rel=1e-3)
    assert region.options[0].effect.divergence < 1e-9 < expected
    assert found.order[-1] == "ops/Add.x"
    assert found.labels[-2:] == ["operators float", "operators integer"]
    assert "ops/Add.x" not in found.leave_alone
    assert "ops/Add.x" in sensitivity_table(found)
    assert "1.00 points alone (50% of the allowed 2.00 points)" in found.rule


def large(layers: int, options: int) -> Sensitivity:
    random = np.random.default_rng(0)
    labels = ["int8", "int4", "gptq4", "int4 dynamic", "int8 sparse 50%", "int4 importance 2:4", "channels sparse 30%", "float"]
    names = [f"model.blocks.{index}.depthwise.convolution" for index in range(layers)]
    rows = [
        LayerSensitivity(
            name,
            1000,
            1000,
            tuple(
                OptionSensitivity(label, name, place, Effect(10.0 ** random.uniform(-6, 1), 0.0, 10), 10, None)
                for place, label in enumerate(labels[:options])
            ),
        )
        for name in names
    ]
    return Sensitivity(rows, names, Quality(), 64)


def test_table_of_50_layers_and_8_options_fits_100_columns() -> None:
    lines = sensitivity_table(large(50, 8), 100).splitlines()
    rows = [line for line in lines if "convolution " in line]
    assert len(rows) == 50
    assert max(map(len, rows)) <= 100
    assert all(len(row.removeprefix("*").split()) == 2 + 8 for row in rows)


def test_what_does_not_fit_follows_below_and_every_figure_is_there() -> None:
    found = large(3, 8)
    lines = sensitivity_table(found, 60).splitlines()
    rows = [line for line in lines if "volution " in line]
    assert len(rows) == 6
    written = [cell for row in rows for cell in row.removeprefix("*").split()[2:]]
    assert sorted(written) == sorted(f"{option.effect.divergence:.2g}" for layer in found.layers for option in layer.options)


def test_the_picture_is_small_and_shows_layers_as_the_file_has_them(tmp_path: Path) -> None:
    found = large(50, 8)
    heat_map(sensitivity_content(found)).png(tmp_path / "heat.png")
    assert (tmp_path / "heat.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "heat.png").stat().st_size < 300_000
    two = made_up(("b", 2.0, 0.0, 1), ("a", 1.0, 0.0, 1))
    shown = heat_map(sensitivity_content(two)).panels[0].marks[0]
    assert isinstance(shown, HeatMap)
    assert (shown.rows, shown.values) == (["a", "b"], [[1.0], [2.0]])
    broken = heat_map(sensitivity_content(made_up(("broken", math.inf, math.inf, 1))))
    assert broken.png(tmp_path / "broken.png").read_bytes().startswith(b"\x89PNG")
    assert "fails" in broken.html(plotly_js=False)


def test_files_hold_the_same_figures_and_a_file_that_does_not_run_has_none(tmp_path: Path) -> None:
    write_sensitivity(made_up(("broken", math.inf, math.inf, 7), ("good", 0.5, 0.0, 8)), tmp_path)
    written = json.loads((tmp_path / "sensitivity.json").read_text())
    rows = list(csv.DictReader((tmp_path / "sensitivity.csv").read_text().splitlines()))
    assert [row["options"][0]["divergence"] for row in written["layers"]] == [None, 0.5]
    assert [row["divergence"] for row in rows] == ["", "0.5"]
    assert [row["saved_bytes"] for row in rows] == ["7", "8"]
    assert written["leave_alone"]["layers"] == ["broken"]


def test_the_verb_writes_everything_and_measures_nothing_twice(tmp_path: Path) -> None:
    arguments = ("sensitivity", *SMALL, "pruner=[sparse]", "space.sparsities=[0.5]", "hydra.run.dir=out")
    done = run(tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "out"
    before = (folder / "sensitivity.jsonl").read_text()
    assert {"sensitivity.json", "sensitivity.csv", "sensitivity.png"} <= {path.name for path in folder.iterdir()}
    assert "cells: squared error of the outputs" in done.stdout
    assert not (folder / "cache").exists()
    again = run(tmp_path, *arguments)
    assert again.stdout == done.stdout
    assert (folder / "sensitivity.jsonl").read_text() == before
