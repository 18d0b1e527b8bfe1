"""What the scripts `benchmarks/methods*.py` share: one calibrated model, and the figures of any file built from it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_module

from autocompress.accuracy.evaluation import Evaluator
from autocompress.accuracy.intervals import paired_drop
from autocompress.building.candidate import Candidate, build
from autocompress.building.recovery import Recoverable
from autocompress.choices.space_settings import SpaceSettings
from autocompress.components import Components, Recovery
from autocompress.config import CONFIG_MODULE, job_from, register
from autocompress.display.progress import Progress
from autocompress.measuring.device import Device, TimingSettings, open_device
from autocompress.measuring.fingerprint import device_name
from autocompress.network.channels import ChannelGroup, find_groups
from autocompress.network.exporting import export
from autocompress.network.graph import BaseGraph
from autocompress.policy import Policy
from autocompress.record import SearchResult
from autocompress.registry import load_registry
from autocompress.run import run
from autocompress.task import Task
from autocompress.tensors.calibration import Calibration
from autocompress.tensors.compress import CompressedModel, LayerDatabase
from autocompress.verbs import build_task

RESULTS = Path(__file__).parent / "results"
TIMING = TimingSettings(seconds=4.0)


@dataclass(frozen=True)
class Workbench:
    """A task whose FP32 file is exported, calibrated and measured."""

    task: Task
    graph: BaseGraph
    groups: Mapping[str, ChannelGroup]
    components: Components
    calibration: Calibration
    database: LayerDatabase
    device: Device
    evaluator: Evaluator
    folder: Path
    space: SpaceSettings

    def compress(self, policy: Policy) -> CompressedModel:
        """The tensors of a policy, repaired as in every trial."""
        return self.database.compress(policy)

    def build(self, policy: Policy, compressed: CompressedModel, name: str = "candidate") -> Candidate:
        """The file that would be delivered."""
        capabilities = self.components.target.capabilities()
        return build(self.graph, policy, compressed, capabilities, self.folder / f"{name}.onnx")

    def recover(self, policy: Policy, recoveries: Sequence[Recovery]) -> CompressedModel:
        """The tensors of a policy after the recoveries for finalists, in their order."""
        candidate = Recoverable(
            task=self.task,
            graph=self.graph,
            groups=self.groups,
            components=self.components,
            calibration=self.calibration,
            database=self.database,
            policy=policy,
            compressed=self.compress(policy),
            folder=self.folder,
            seed=0,
            progress=Progress(),
        )
        for recovery in recoveries:
            candidate = replace(candidate, compressed=recovery.recover(candidate))
        return candidate.compressed

    def figures(self, path: Path, *, timed: bool = False) -> dict[str, Any]:
        """Accuracy on the report set with its paired interval, bytes, and the interleaved latency ratio when asked for."""
        outputs = self.evaluator.outputs(path, "report", 0, len(self.evaluator.reference_statistics("report")))
        size = path.stat().st_size
        found: dict[str, Any] = {**self.quality(outputs), "size_bytes": size, "size_ratio": size / len(self.graph.data)}
        return found | self.latency(path) if timed else found

    def quality(self, outputs: Any) -> dict[str, Any]:
        """Accuracy of outputs on the whole report set beside FP32's; with its paired interval."""
        reference = self.evaluator.reference_statistics("report")
        statistics = self.evaluator.score(outputs, "report", 0, len(reference))
        drop = paired_drop(self.evaluator.metric, reference, statistics)
        return {
            "accuracy": self.evaluator.metric.value(statistics),
            "fp32": self.evaluator.metric.value(reference),
            "drop_points": 100 * drop.value,
            "drop_ci_points": [100 * drop.low, 100 * drop.high],
            **_agreement(outputs, self.evaluator.reference["report"]),
        }

    def latency(self, path: Path) -> dict[str, Any]:
        """Median milliseconds and ratio to FP32, interleaved."""
        latency = self.device.latency(self.graph.path, path, self.evaluator.inputs("example"), TIMING)
        return {"latency_ms": latency.median_ms, "latency_ratio": latency.ratio}


def _agreement(outputs: Any, reference: Any) -> dict[str, float]:
    """Share of equal decisions, and mean Kullback-Leibler divergence from FP32, computed here and not by the product."""
    if outputs.ndim != 2:
        return {}
    ours, theirs = (_log_softmax(scores.astype(np.float64)) for scores in (outputs, reference))
    divergence = float((np.exp(theirs) * (theirs - ours)).sum(1).mean())
    return {"agreement": float((outputs.argmax(1) == reference.argmax(1)).mean()), "kl": divergence}


def _log_softmax(scores: Any) -> Any:
    shifted = scores - scores.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


@contextmanager
def workbench(*overrides: str) -> Iterator[Workbench]:
    """Everything for one model, by the configuration that the command line would use."""
    registry = load_registry()
    register(registry)
    with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
        job = job_from(compose("search", overrides=[*overrides, "tracking=[]"]), registry, Path())
    components = job.settings.components
    with tempfile.TemporaryDirectory() as name, open_device(components.target, torch.get_num_threads()) as device:
        folder = Path(name)
        task = build_task(job, replace(job.settings, folder=folder), Progress())
        graph = export(task.model, task.example_input, folder / "fp32.onnx")
        groups = find_groups(graph, task.model, task.example_input[:1], job.settings.space.channel_multiple).groups
        calibration = Calibration(task, graph, components, folder / "cache", job.settings.search.seed)
        calibration.observe()
        evaluator = Evaluator.prepare(task, components.metric, graph, device, folder / "cache")
        for part in ("search", "report"):
            evaluator.keep_reference(graph, part)
        database = LayerDatabase(graph, calibration, components, groups)
        yield Workbench(task, graph, groups, components, calibration, database, device, evaluator, folder, job.settings.space)


def search_result(*overrides: str) -> SearchResult:
    """What a search delivers that is configured as on the command line; its folder is gone afterwards."""
    registry = load_registry()
    register(registry)
    with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
        job = job_from(compose("search", overrides=[*overrides, "tracking=[]"]), registry, Path())
    with tempfile.TemporaryDirectory() as folder:
        settings = replace(job.settings, folder=Path(folder))
        return run(build_task(job, settings, Progress()), settings, registry, Progress())


def publish(name: str, rows: Any) -> None:
    """Write rows with the command that made them and the machine they were made on."""
    RESULTS.mkdir(exist_ok=True)
    content = {"command": _command(), "environment": environment(), "rows": rows}
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")


def _command() -> str:
    """Without the folders of the machine it ran on."""
    module = getattr(sys.modules["__main__"].__spec__, "name", "").removesuffix(".__main__")
    return " ".join(["python -m", module, *("FOLDER" if Path(word).is_absolute() else word for word in sys.argv[1:])])


def environment() -> dict[str, Any]:
    """What a figure depends on besides the code."""
    from importlib.metadata import version
    from importlib.util import find_spec

    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    packages = ["torch", "onnxruntime", "onnx-ir", "numpy", "optuna", *(["openvino"] if find_spec("openvino") else [])]
    return {
        "commit": commit,
        "cpu": device_name(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
        **{package: version(package) for package in packages},
    }
