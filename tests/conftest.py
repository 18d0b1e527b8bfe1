"""One tiny trained network on scikit-learn's digits, exported once, for all tests that need a real model."""

from __future__ import annotations

import copy
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor, nn

import autocompress.tensors.patches
from autocompress.accuracy.evaluation import Evaluator
from autocompress.budget import NO_LIMITS, Budget, Footprint, Latency, Measurement
from autocompress.building.candidate import Candidate, build
from autocompress.components import Components
from autocompress.config import compose_settings
from autocompress.guarding import interruption
from autocompress.measuring.device import Device, TimingSettings, open_device
from autocompress.measuring.runner import load_session
from autocompress.network.channels import ChannelGroups, find_groups
from autocompress.network.exporting import export
from autocompress.network.graph import BaseGraph
from autocompress.policy import Policy
from autocompress.record import SearchResult
from autocompress.registry import Registry, load_registry
from autocompress.run import search
from autocompress.task import Task
from autocompress.tensors.calibration import Calibration
from autocompress.tensors.compress import LayerDatabase
from autocompress.trials.trial import Bench, TrialSettings

torch.set_num_threads(1)
"""Tiny tensors gain nothing from a second thread, which waits by spinning; and the trained weights depend on the number."""


class TinyNet(nn.Module):
    """A residual block, a depthwise block and a linear layer: each kind of layer that the bundled target computes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.inner = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.outer = nn.Sequential(nn.Conv2d(32, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16))
        self.depthwise = nn.Sequential(nn.Conv2d(16, 16, 3, 2, 1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
        self.pointwise = nn.Conv2d(16, 32, 1)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.outer(self.inner(x)))
        x = torch.relu(self.pointwise(self.depthwise(x)))
        outputs: Tensor = self.head(x.mean(dim=(2, 3)))
        return outputs


def digits() -> tuple[Tensor, Tensor]:
    """1,797 images (N, 1, 8, 8) in a seeded order, and their labels."""
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(data.images, dtype=torch.float32)[order, None] / 16 - 0.3
    return images, torch.tensor(data.target)[order]


def trained(images: Tensor, labels: Tensor) -> nn.Module:
    torch.manual_seed(0)
    model = TinyNet()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for step in range(120):
        batch = torch.randint(0, len(images), (64,), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model.eval()


def make_task(model: nn.Module, images: Tensor, labels: Tensor) -> Task:
    def part(start: int, stop: int) -> list[tuple[Tensor, Tensor]]:
        return [(images[start:stop], labels[start:stop])]

    return Task(copy.deepcopy(model), images[:1], part(0, 128), part(897, 1297), part(1297, 1797), name="tiny")


@pytest.fixture
def own_signals() -> Iterator[None]:
    """Whoever listens to signals stops after the test."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    interruption.answered()
    for number, handler in kept.items():
        signal.signal(number, handler)


@dataclass(frozen=True)
class Tiny:
    """The tiny network and everything derived from it once. Do not change it."""

    task: Task
    graph: BaseGraph
    components: Components
    calibration: Calibration
    registry: Registry
    folder: Path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder = tmp_path_factory.mktemp("tiny")
    images, labels = digits()
    task = make_task(trained(images[:897], labels[:897]), images, labels)
    graph = export(task.model, task.example_input, folder / "fp32.onnx")
    registry = load_registry()
    settings = compose_settings(["pruner=[sparse,importance,stability]", "tracking=[]"], registry)
    calibration = Calibration(task, graph, settings.components, folder)
    calibration.observe()
    return Tiny(task, graph, settings.components, calibration, registry, folder)


@pytest.fixture
def tiny_task(tiny: Tiny) -> Task:
    """A fresh copy of the tiny task, free to change."""
    images, labels = digits()
    return make_task(tiny.task.model, images, labels)


@pytest.fixture(scope="session")
def exhaustive(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    """Statistics over all positions of the images, not over a sample of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autocompress.tensors.patches, "POSITIONS", 64)
        calibration = Calibration(tiny.task, tiny.graph, tiny.components, tmp_path_factory.mktemp("exhaustive"))
        calibration.observe()
    return calibration


@pytest.fixture(scope="session")
def groups(tiny: Tiny) -> ChannelGroups:
    """The channel groups of the tiny network, found but not verified."""
    return find_groups(tiny.graph, tiny.task.model, tiny.task.example_input, multiple=8)


@pytest.fixture(scope="session")
def database(tiny: Tiny, groups: ChannelGroups) -> LayerDatabase:
    return LayerDatabase(tiny.graph, tiny.calibration, tiny.components, groups.groups)


@pytest.fixture
def build_tiny(tiny: Tiny, database: LayerDatabase, tmp_path: Path) -> Callable[[Policy], Candidate]:
    """Builds the file of a policy for the tiny network."""

    def built(policy: Policy) -> Candidate:
        path = tmp_path / f"{policy.digest}.onnx"
        return build(tiny.graph, policy, database.compress(policy), tiny.components.target.capabilities(), path)

    return built


@pytest.fixture(scope="session")
def calibration_file(tiny: Tiny) -> Path:
    """The calibration images as an array file, as the runtime's process reads them."""
    path = tiny.folder / "calibration.npy"
    np.save(path, tiny.task.sets["calibration"].inputs)
    return path


@pytest.fixture(scope="session")
def device(tiny: Tiny) -> Iterator[Device]:
    with open_device(tiny.components.target, threads=1) as opened:
        yield opened


@pytest.fixture(scope="session")
def bench(
    tiny: Tiny, groups: ChannelGroups, database: LayerDatabase, device: Device, tmp_path_factory: pytest.TempPathFactory
) -> Bench:
    """Turns policies of the tiny network into measured files, quickly rather than precisely."""
    evaluator = Evaluator.prepare(tiny.task, tiny.components.metric, tiny.graph, device, tmp_path_factory.mktemp("bench"))
    quick = TimingSettings(seconds=0.01, precision=1.0)
    parts = (tiny.task, tiny.graph, groups.groups, tiny.components, tiny.calibration, database, device, evaluator)
    return Bench(*parts, quick, TrialSettings(load_processes=1))


class Stopwatch(Device):
    """Times a few calls in this process, where it does not matter how sure a latency is, and makes up what a load takes."""

    def latencies(
        self, reference: Path, candidates: Sequence[Path], inputs: Path, timing: TimingSettings, budget: Budget = NO_LIMITS
    ) -> list[Latency]:
        example = [np.load(inputs)[:1]]
        base, *times = (self._milliseconds(path, example) for path in (reference, *candidates))
        return [Latency(ms, ms, base, ms / base, ms / base, ms / base, 1, "stopwatch") for ms in times]

    def footprint(self, path: Path, inputs: Path, processes: int) -> Footprint:
        size = path.stat().st_size
        return Footprint(size, size, 1.0, 1.0, 1.0)

    def _milliseconds(self, path: Path, example: list[NDArray[np.generic]]) -> float:
        session = load_session(self._target, path, threads=1)
        session(example)
        start = time.perf_counter()
        session(example)
        return 1000 * (time.perf_counter() - start)


@pytest.fixture(scope="session")
def quick_bench(bench: Bench) -> Iterator[Bench]:
    """The same with latencies that take no time."""
    device = Stopwatch(bench.components.target, threads=1)
    yield replace(bench, device=device, evaluator=replace(bench.evaluator, device=device))
    device.close()


@pytest.fixture(scope="session")
def baseline(bench: Bench) -> Measurement:
    """The tiny network's FP32 file on its search set."""
    return bench.baseline()


QUICK = [
    *("tracking=[]", "quantizer=[int8]", "pruner=[]", "search.start=tables", "search.finalists=1", "probe.enabled=false"),
    *("timing.seconds=0.05", "timing.precision=1", "sensitivity.seconds=0.05", "trial.load_processes=1"),
]


@pytest.fixture(scope="session")
def searched(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    """A search of three trials that measured its tables, with everything that it left in its folder. Do not change it."""
    folder = tmp_path_factory.mktemp("searched")
    return search(tiny.task, objective="latency", trials=3, output_dir=folder, overrides=QUICK)


PLUGIN_HEADER = """
from dataclasses import dataclass
from autocompress import Pruner, Quantizer, hookimpl
"""


@pytest.fixture
def install(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Puts a distribution on the path as pip does: its name, then the source of one module for each plugin."""
    folder = tmp_path_factory.mktemp("site")
    written: list[str] = []
    monkeypatch.syspath_prepend(str(folder))

    def installed(distribution: str, **plugins: str) -> None:
        lines = ["[autocompress]"]
        for name, source in plugins.items():
            written.append(f"{distribution}_{name}_module")
            lines.append(f"{name} = {written[-1]}")
            (folder / f"{written[-1]}.py").write_text(PLUGIN_HEADER + source, encoding="utf-8")
        info = folder / f"{distribution}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n", encoding="utf-8")
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")

    yield installed
    for module in written:
        sys.modules.pop(module, None)
