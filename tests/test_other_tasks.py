"""Searches for models that are no image classifiers: other outputs, other metrics, other units."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from command import run
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from autocompress import Budget, SearchResult, Task, search
from autocompress.reporting.report import result_dict, table

QUICK = [
    "tracking=[]",
    "timing.seconds=0.02",
    "timing.precision=1",
    "sensitivity.seconds=0.02",
    "search.finalists=1",
    "trial.load_processes=1",
    "probe.enabled=false",
]
SIZES = (64, 128, 96)
"""Examples for calibration, search and report."""


def parts(inputs: Tensor, targets: Tensor) -> dict[str, list[tuple[Tensor, Tensor]]]:
    split = zip(inputs.split(SIZES), targets.split(SIZES), strict=True)
    return {name: [pair] for name, pair in zip(("calibration", "search", "report"), split, strict=True)}


def outputs(result: SearchResult, task: Task) -> NDArray[Any]:
    """What the delivered file gives for the report set."""
    session = onnxruntime.InferenceSession(result.best.artifact.path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"input": task.sets["report"].inputs})[0])


def test_segmentation(tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(0)
    inputs = torch.randn(sum(SIZES), 3, 12, 10, generator=random)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 4, 1))
    with torch.no_grad():
        targets = model(inputs).argmax(1)  # the model is perfect
    targets[:, :2] = 255
    task = Task(model, inputs[:1], **parts(inputs, targets), metric="mean_iou", name="segmentation")
    result = search(task, Budget(size_ratio=0.9, accuracy_drop=0.5), trials=2, output_dir=tmp_path, overrides=QUICK)

    assert result.baseline.measurement.accuracy == 1.0
    found, wanted = outputs(result, task).argmax(1)[:, 2:], task.sets["report"].targets[:, 2:]
    shares = [((found == c) & (wanted == c)).sum() / ((found == c) | (wanted == c)).sum() for c in range(4)]
    assert result.best.measurement.accuracy == pytest.approx(np.mean(shares))
    assert result.drop == pytest.approx(1 - np.mean(shares))
    assert result_dict(result)["metric"] == "mean_iou"
    assert ["mean_iou", "100.00%"] in [line.split()[:2] for line in table(result).splitlines()]
    assert result.drop_ci[0] <= result.drop <= result.drop_ci[1]


def test_regression_of_whole_numbers(tmp_path: Path) -> None:
    """One output; targets that look like labels of classes, of which the model would have too few; a drop in its own unit."""
    random = torch.Generator().manual_seed(0)
    inputs = torch.randn(sum(SIZES), 6, generator=random)
    targets = (10 * inputs[:, 0] + 5 * inputs[:, 1]).round().long()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 256), nn.ReLU(), nn.Linear(256, 1))
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(150):
        optimizer.zero_grad()
        functional.mse_loss(model(inputs)[:, 0], targets.float()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    def loss(outputs: Tensor, wanted: Tensor) -> Tensor:
        return functional.mse_loss(outputs[:, 0], wanted.float())

    task = Task(model, inputs[:1], **parts(inputs, targets), metric="squared_error", loss=loss, name="regression")
    budget = Budget(size_ratio=0.9, accuracy_drop=2.0)
    result = search(task, budget, trials=3, output_dir=tmp_path, overrides=[*QUICK, "pruner=[importance]"])

    errors = np.square(outputs(result, task)[:, 0] - task.sets["report"].targets)
    assert result.best.measurement.accuracy == pytest.approx(-errors.mean(), rel=1e-5)
    assert result.status == "feasible"
    assert result.drop == pytest.approx(result.baseline.measurement.accuracy + errors.mean(), rel=1e-3, abs=1e-5)  # type: ignore[operator]
    printed = table(result)
    assert "squared_error" in printed
    assert "point" not in printed
    of_the_metric = [line for line in printed.replace("95 % interval", "").splitlines() if "cannot be told apart" not in line]
    assert "%" not in "".join(of_the_metric)


def test_a_table_from_the_command_line(tmp_path: Path) -> None:
    quick = ("search.trials=2", "model.train_epochs=2", "search.finalists=1", "tracking=[]")
    done = run(tmp_path, "search", "+experiment=table_mlp", *quick, "hydra.run.dir=out")
    assert done.returncode == 0, done.stderr
    assert "f1" in done.stdout
    result = json.loads((tmp_path / "out/result.json").read_text())
    assert result["metric"] == "f1"
    assert result["best"]["images"] == 200
    assert result["baseline"]["accuracy"] > 0.8
    assert result["best"]["size_ratio"] < 0.4
