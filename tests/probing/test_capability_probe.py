"""What a device is asked, what is kept, and that a kernel that loses sums is found and given weights that it adds up right."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from autocompress_plugins.onnxruntime_cpu import OnnxRuntime
from torch import nn

from autocompress import Capabilities, Policy
from autocompress.choices.seeds import uniform_policies
from autocompress.components import Components
from autocompress.config import compose_settings
from autocompress.display.progress import Progress
from autocompress.errors import ConfigError
from autocompress.measuring.device import Device, TimingSettings, open_device
from autocompress.probing.capability_probe import CapabilityProbe, Named, ProbeSettings, find_capabilities
from autocompress.probing.exact_sums import SumCheck
from autocompress.probing.findings import WRONG_STEPS, Finding, is_smaller
from autocompress.probing.probe_encodings import Encoding, encodings
from autocompress.probing.probe_nets import _OPS, ProbeNet, layer_nets, op_nets
from autocompress.task import Task
from autocompress.workspace import open_workspace
from tests.conftest import Tiny
from tests.probing.test_findings import INT8

QUICK = TimingSettings(seconds=0.01, precision=1.0)
SMALL = ProbeNet("conv2d", lambda: nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()), ((1, 8, 5, 5), (1, 8, 9, 9)))


@dataclasses.dataclass
class Saturating(OnnxRuntime):
    """A stranger's target whose convolutions lose sums."""

    name = "saturating"

    def capabilities(self) -> Capabilities:
        known = super().capabilities()
        kinds = {"conv2d": (8,), "linear": (8,)}
        return dataclasses.replace(
            known, containers=kinds, integer_ops=frozenset(), group_sizes=frozenset(), packed_sparse=False, activations={}
        )

    @property
    def session_file(self) -> Path:
        return Path(__file__).with_name("saturating_session.py")

    def options(self) -> dict[str, object]:
        return {}


@dataclasses.dataclass
class Boastful(OnnxRuntime):
    """Says that convolutions can find their ranges at run time, for which the lowering has no operator."""

    name = "boastful"

    def capabilities(self) -> Capabilities:
        known = super().capabilities()
        ways = {"conv2d": ("dynamic", "static")}
        return dataclasses.replace(known, containers={"conv2d": (4, 8)}, activations=ways, packed_sparse=False, codebooks=False)


@pytest.fixture(scope="module")
def saturating() -> Iterator[Device]:
    with open_device(Saturating(), threads=1) as device:
        yield device


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autocompress.probing.capability_probe.layer_nets", lambda kind: (SMALL,) if kind == "conv2d" else ())


def probe(components: Components, device: Device, folder: Path) -> CapabilityProbe:
    return CapabilityProbe(components, device, QUICK, folder / "probe", Progress(quiet=True))


@pytest.fixture(scope="module")
def rows(tiny: Tiny, device: Device, tmp_path_factory: pytest.TempPathFactory) -> list[Finding]:
    folder = tmp_path_factory.mktemp("rows")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("autocompress.probing.capability_probe.layer_nets", lambda kind: (SMALL,))
        found = probe(tiny.components, device, folder).find([("layer", "conv2d")])
    assert not (folder / "probe").exists()
    return found


def test_every_way_of_a_kind_is_timed_at_every_shape(tiny: Tiny, rows: list[Finding]) -> None:
    ways = list(encodings("conv2d", tiny.components.target.capabilities()))
    assert [Encoding(row.encoding, row.bits, row.mode) for row in rows] == ways  # type: ignore[arg-type]
    assert {(way.name, way.mode) for way in ways} >= {("int8", "static"), ("sparse-int4", "float"), ("codebook4", "static")}
    assert all(len(row.cases) == 2 and all(case.ratio > 0 for case in row.cases) for row in rows)
    by = {(row.encoding, row.mode): row for row in rows}
    assert is_smaller(by["int4", "static"].cases, by["int8", "static"].cases)


def test_integer_layers_of_this_machine_add_up_right(rows: list[Finding]) -> None:
    """Against float64; where this fails, the machine is one that the probe is for."""
    assert all((row.error is None) == (row.mode == "float") for row in rows)
    assert all(0 <= row.error <= WRONG_STEPS for row in rows if row.error is not None)


def test_an_operator_is_timed_against_itself_in_float(tiny: Tiny, device: Device, tmp_path: Path) -> None:
    (row,) = probe(tiny.components, device, tmp_path).find([("op", "Sigmoid")])
    assert (row.subject, row.name, row.mode, len(row.cases)) == ("op", "Sigmoid", "integer", 2)


def test_a_way_that_does_not_run_leaves_the_others(tiny: Tiny, tmp_path: Path, small: None) -> None:
    components = dataclasses.replace(tiny.components, target=Boastful())
    with open_device(components.target, threads=1) as boastful:
        rows = probe(components, boastful, tmp_path).find([("layer", "conv2d")])
    assert {row.mode for row in rows if not row.cases} == {"dynamic"}
    assert {row.encoding for row in rows if row.cases} == {"int8", "int4"}


def test_every_network_is_about_what_it_is_named_after(tmp_path: Path) -> None:
    for name in ("Mul", "HardSwish"):
        (net,) = op_nets(name)
        assert net.make()(net.examples(net.shapes[0], 1, 0)).shape[0] == 1
    assert all(len(op_nets(name)) == 1 for name in _OPS)
    assert not layer_nets("conv9d")
    assert not op_nets("Einsum")
    assert not layer_nets("embedding")[0].examples((1, 8), 2, 0).is_floating_point()


class Counting(CapabilityProbe):
    """Finds without measuring."""

    asked: list[Named]

    def find(self, subjects: Iterable[Named]) -> list[Finding]:
        wanted = list(subjects)
        object.__setattr__(self, "asked", wanted)
        return [dataclasses.replace(INT8, name=name) for _, name in wanted]


def test_only_what_is_not_known_is_asked(tiny: Tiny, device: Device, tmp_path: Path) -> None:
    def asked(study: str, *kinds: str) -> list[str]:
        counting = Counting(tiny.components, device, QUICK, tmp_path / "probe", Progress(quiet=True))
        object.__setattr__(counting, "asked", [])
        wanted: list[Named] = [("layer", kind) for kind in kinds]
        find_capabilities(counting, wanted, tmp_path / study / "probe.json", tmp_path / "cache")
        return [name for _, name in counting.asked]

    assert asked("one", "conv2d") == ["conv2d"]
    assert asked("one", "conv2d", "linear", "conv9d") == ["linear"]
    assert asked("two", "linear") == []
    (tmp_path / "cache" / "probes").rename(tmp_path / "cache" / "gone")
    assert asked("two", "linear") == []
    assert asked("three", "linear") == ["linear"]


def test_seconds_must_be_positive() -> None:
    with pytest.raises(ConfigError, match=r"probe\.seconds=0: expected more than 0"):
        ProbeSettings(seconds=0)


def test_a_kernel_that_loses_sums_is_found(saturating: Device, tmp_path: Path) -> None:
    check = SumCheck.of("conv2d", tmp_path)
    assert check is not None
    wide, narrow = check.errors(Encoding("int8", 8, "static"), Saturating().capabilities(), saturating, tmp_path)
    assert wide > 10
    assert narrow <= WRONG_STEPS


@pytest.mark.parametrize("enabled", [True, False])
def test_the_file_is_right_on_a_kernel_that_loses_sums(
    tiny_task: Task, tiny: Tiny, tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch, enabled: bool
) -> None:
    """Optimized, as the kernel computes it, against unoptimized in float."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    settings = compose_settings(["quantizer=[int8]", f"probe.enabled={enabled}", "probe.seconds=0.01"], tiny.registry)
    components = dataclasses.replace(settings.components, target=Saturating())
    settings = dataclasses.replace(settings, components=components, folder=tmp_path / "study")
    for layer in (tiny_task.model.inner[0], tiny_task.model.stem[0]):  # type: ignore[union-attr, index]
        layer.weight.data.abs_()  # every sum of two products is extreme
    with open_workspace(tiny_task, settings, Progress(quiet=True)) as workspace:
        (policy,) = uniform_policies(workspace.space)
        assert isinstance(policy, Policy)
        assert {policy.layers[name].bits for name in ("stem.0", "inner.0")} == ({7} if enabled else {8})
        assert policy.layers["head"].bits == 8
        path = tmp_path / "model.onnx"
        workspace.bench.build(policy, path)
        inputs, device = workspace.bench.evaluator.inputs("calibration"), workspace.bench.device
        lost, right = (device.outputs(path, inputs, 0, 64, 64, optimize=optimize) for optimize in (True, False))
    error = float(np.square(lost - right).mean() / np.square(right).mean())
    notes = ["conv2d: integer kernels lose sums on this device, weights have at most 7 bits there"]
    assert list(workspace.notes) == (notes if enabled else [])
    assert error < 1e-4 if enabled else error > 1e-2
