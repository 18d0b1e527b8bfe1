"""Asks a device which ways of compressing gain time or bytes there, and whether it adds up right: a minute for all of them.

Small networks (`probe_nets`) are exported and lowered as a search does it and timed beside their FP32 files on the real device;
single layers are compared with exact arithmetic (`exact_sums`). What is found is kept in the study's folder, so that a search
that resumes has the same space, and in the user's cache, so that the next study on this device need not ask again.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from autocompress.bounds import check_positive
from autocompress.building.candidate import build
from autocompress.components import Capabilities, Components, CompressedLayer, Observer, Target
from autocompress.display.progress import Progress
from autocompress.errors import AutocompressError
from autocompress.measuring.device import Device, TimingSettings
from autocompress.measuring.lease import lease
from autocompress.network.exporting import export
from autocompress.network.graph import BaseGraph, Layer
from autocompress.network.onnx_file import save
from autocompress.policy import LayerPolicy, Policy, Precision
from autocompress.probing.exact_sums import SumCheck
from autocompress.probing.findings import Case, Finding, Findings, Subject
from autocompress.probing.probe_encodings import Encoding, encoded, encodings
from autocompress.probing.probe_nets import ProbeNet, layer_nets, op_nets
from autocompress.task import Task
from autocompress.tensors.calibration import Calibration
from autocompress.tensors.compress import CompressedModel, placed_ranges

if TYPE_CHECKING:
    from autocompress.settings import Settings

VERSION = 1
"""Of networks and measurement; findings of another one are not used."""

EXAMPLES = 4
PRECISION = 0.01
"""Half-width of an interval, relative, at which a file has been timed long enough."""

OPS_ENCODING = Encoding("int8", 8, "static")
"""How the convolutions around an operator compute."""

PRECISIONS: tuple[Precision, Precision] = ("float", "integer")

Named = tuple[Subject, str]
Key = TypeVar("Key")


@dataclass
class ProbeSettings:
    """The capability probe at the start of a search.

    Attributes:
        enabled: whether the device is asked, and options that gain nothing for the goal leave the space.
        seconds: at most so long each small network's file is timed at each shape.
    """

    enabled: bool = True
    seconds: float = 0.2

    def __post_init__(self) -> None:
        check_positive("probe", self, "seconds")


@dataclass
class _Extremes(Observer):
    """The range of all values."""

    name = "extremes"
    low: float = 0.0
    high: float = 0.0

    def update(self, batch: NDArray[np.float32]) -> None:
        self.low, self.high = min(self.low, float(batch.min())), max(self.high, float(batch.max()))

    def range(self, bits: int) -> tuple[float, float]:
        return self.low, self.high


@dataclass(frozen=True)
class CapabilityProbe:
    """A device and what it is asked with.

    Attributes:
        folder: for files; emptied at the end.
    """

    components: Components
    device: Device
    timing: TimingSettings
    folder: Path
    progress: Progress

    @classmethod
    def of(cls, settings: Settings, device: Device, progress: Progress) -> CapabilityProbe:
        """The probe of a search's device."""
        timing = replace(settings.timing, seconds=settings.probe.seconds, precision=PRECISION)
        return cls(settings.components, device, timing, settings.scratch / "cache" / "probe", progress)

    @property
    def _capabilities(self) -> Capabilities:
        return self.components.target.capabilities()

    def subjects(self) -> list[Named]:
        """Everything that the target names and a network is known for."""
        known = self._capabilities
        return [*(("layer", kind) for kind in known.containers), *(("op", name) for name in sorted(known.integer_ops))]

    def find(self, subjects: Iterable[Named]) -> list[Finding]:
        """Measure; a way of computing that does not build or run has no cases."""
        wanted, start, found = list(subjects), time.monotonic(), list[Finding]()
        try:
            for done, (subject, name) in enumerate(wanted):
                self.progress.step("capability probe", done, len(wanted), time.monotonic() - start)
                found += self._asked(subject, name)
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)
        return found

    def _asked(self, subject: Subject, name: str) -> list[Finding]:
        """What cannot be tried has a row without cases, so that it is not tried again; the search goes on without it."""
        try:
            return self._layer(name) if subject == "layer" else self._op(name)
        except AutocompressError as error:
            self.progress.note(f"capability probe of {name}: {error}")
            return [Finding(subject, name, "", "", 0, ())]

    def _layer(self, kind: str) -> list[Finding]:
        ways = list(encodings(kind, self._capabilities))
        cases: dict[Encoding, list[Case | None]] = {way: [] for way in ways}
        for net in layer_nets(kind):
            trial = _Net.of(net, self)
            around = trial.surroundings()
            policies = {way: replace(around, layers={**around.layers, **trial.policy(way).layers}) for way in ways}
            for shape in net.shapes:
                timed = trial.cases(shape, policies, base=around)
                for way in ways:
                    cases[way].append(timed.get(way))
        errors = self._errors(kind, ways)
        return [
            Finding("layer", kind, way.mode, way.name, way.bits, _complete(cases[way]), *errors.get(way, (None, None)))
            for way in ways
            if cases[way]
        ]

    def _errors(self, kind: str, ways: Sequence[Encoding]) -> dict[Encoding, tuple[float, float]]:
        integer = [way for way in ways if way.mode != "float"]
        check = SumCheck.of(kind, self.folder) if integer else None
        found: dict[Encoding, tuple[float, float]] = {}
        if check is None:
            return found
        for way in integer:
            try:
                found[way] = check.errors(way, self._capabilities, self.device, self.folder)
            except Exception:  # nosec B112  # its cases say that it does not run
                continue
        return found

    def _op(self, op_type: str) -> list[Finding]:
        if OPS_ENCODING not in encodings("conv2d", self._capabilities):
            return []
        return [Finding("op", op_type, "integer", "", 0, self._op_cases(net)) for net in op_nets(op_type)]

    def _op_cases(self, net: ProbeNet) -> tuple[Case, ...]:
        """The operator in integers against the same file with it in float."""
        trial = _Net.of(net, self)
        ops = [op.name for op in trial.graph.ops if op.op_type == net.subject and not op.constant]
        around = trial.policy(OPS_ENCODING, "conv2d")
        apart, inside = (replace(around, ops=dict.fromkeys(ops, precision)) for precision in PRECISIONS)
        shapes = net.shapes if ops else ()
        return _complete([trial.cases(shape, {net.subject: inside}, base=apart).get(net.subject) for shape in shapes])


def _complete(cases: Sequence[Case | None]) -> tuple[Case, ...]:
    """All cases, or none where one did not run."""
    known = [case for case in cases if case is not None]
    return tuple(known) if len(known) == len(cases) else ()


@dataclass(frozen=True)
class _Net:
    """A small network, exported and calibrated."""

    probe: CapabilityProbe
    net: ProbeNet
    graph: BaseGraph
    calibration: Calibration

    @classmethod
    def of(cls, net: ProbeNet, probe: CapabilityProbe) -> _Net:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            module = net.make()
        example = net.examples(net.shapes[0], EXAMPLES + 2, 0)
        graph = export(module, example[:1], probe.folder / "float.onnx")
        parts = (example[:EXAMPLES], example[EXAMPLES : EXAMPLES + 1], example[EXAMPLES + 1 :])
        calibration, search, report = ([(part, torch.zeros(len(part)))] for part in parts)
        task = Task(module, example[:1], calibration, search, report, name=net.subject)
        seen = replace(probe.components, observer=_Extremes())
        return cls(probe, net, graph, Calibration(task, graph, seen, probe.folder))

    def policy(self, way: Encoding, kind: str = "") -> Policy:
        """Every layer of the kind in one way; the quantizer's name says only that there is one."""
        kind = kind or self.net.subject
        decision = LayerPolicy(way.name, way.bits, activation=way.mode)
        return Policy({name: decision for name, layer in self.graph.layers.items() if layer.kind == kind})

    def surroundings(self) -> Policy:
        """What the other layers do: nothing, or integers where the network is about a layer between such ones."""
        able = self.net.between and OPS_ENCODING in encodings("conv2d", self.probe._capabilities)
        return self.policy(OPS_ENCODING, "conv2d") if able else Policy()

    def cases(self, shape: tuple[int, ...], policies: Mapping[Key, Policy], base: Policy) -> dict[Key, Case]:
        """Each policy's file against that of `base`, timed in the same rounds; without those that do not build or run."""
        graph, folder = self._resized(shape), self.probe.folder
        np.save(folder / "inputs.npy", self.net.examples(shape, 1, 1).numpy())
        reference = graph.path if base == Policy() else self._file(graph, base, folder / "base.onnx")
        files = {key: self._file(graph, policy, folder / f"way{n}.onnx") for n, (key, policy) in enumerate(policies.items())}
        built = {key: path for key, path in files.items() if path is not None}
        return dict(self._timed(reference, folder / "inputs.npy", built)) if reference is not None else {}

    def _file(self, graph: BaseGraph, policy: Policy, path: Path) -> Path | None:
        """None where the lowering has no form for what the target names."""
        try:
            return build(graph, policy, self._compressed(policy), self.probe._capabilities, path).artifact.path
        except Exception:
            return None

    def _timed(self, reference: Path, inputs: Path, files: Mapping[Key, Path]) -> Iterator[tuple[Key, Case]]:
        """All files together; one at a time where some does not run."""
        device, timing = self.probe.device, self.probe.timing
        groups = [list(files)] if files else []
        while groups:
            keys = groups.pop()
            try:
                found = device.latencies(reference, [files[key] for key in keys], inputs, timing)
            except AutocompressError:
                groups += [[key] for key in keys] if len(keys) > 1 else []
                continue
            for key, latency in zip(keys, found, strict=True):
                size = files[key].stat().st_size / reference.stat().st_size
                yield key, Case(latency.ratio, latency.ratio_low, latency.ratio_high, size)

    def _compressed(self, policy: Policy) -> CompressedModel:
        layers = {name: self._layer(self.graph.layers[name], decision) for name, decision in policy.layers.items()}
        ranges = placed_ranges(self.graph, policy, self.probe._capabilities, self.calibration.ranges.__getitem__)
        return CompressedModel(layers, ranges)

    def _layer(self, layer: Layer, decision: LayerPolicy) -> CompressedLayer:
        weight = torch.from_numpy(self.graph.initializers[layer.weight].copy())
        bias = None if layer.bias is None else torch.from_numpy(self.graph.initializers[layer.bias].copy())
        way = Encoding(str(decision.quantizer), decision.bits, decision.activation)
        return CompressedLayer(encoded(weight, layer, way), bias)

    def _resized(self, shape: tuple[int, ...]) -> BaseGraph:
        """The same network for another size of its input."""
        if shape == self.net.shapes[0]:
            return self.graph
        model = self.graph.open()
        model.graph.inputs[0].shape = ir.Shape([*model.graph.inputs[0].shape[:1], *shape[1:]])  # type: ignore[index]
        model.graph.outputs[0].shape = None
        path = self.probe.folder / "resized.onnx"
        save(model, path)
        return replace(self.graph, path=path, data=path.read_bytes())


def find_capabilities(probe: CapabilityProbe, subjects: Sequence[Named], study: Path, cache: Path) -> Findings:
    """What is known of these subjects; measured is only what neither the study's folder nor the cache holds.

    Args:
        subjects: those that the target or the probe does not know have no rows.
        study: the study's file, `probe.json`.
        cache: the folder of the user's cache.
    """
    description = probe.device.describe()
    key = _key(description, probe.components.target)
    empty = Findings(key, description["device"], description["runtime"])
    shared = cache / "probes" / f"{key}.json"
    shared.parent.mkdir(parents=True, exist_ok=True)
    with lease(shared.with_suffix(".lease")):  # of processes that start together one measures, and all find the same
        found = Findings.load(study, key) or empty
        found = found.joined((Findings.load(shared, key) or empty).rows)
        missing = [subject for subject in subjects if subject in probe.subjects() and not found.about(*subject)]
        if missing:
            found = found.joined(probe.find(missing))
            ours = Findings.load(shared, key) or empty
            ours.joined(found.rows).save(shared)
        found.save(study)
    return found


def _key(description: Mapping[str, str], target: Target) -> str:
    """Hash of all that findings depend on; the session module stands for the target's version."""
    told = {name: description[name] for name in ("device", "runtime")}
    known = target.capabilities()
    session = hashlib.sha256(target.session_file.read_bytes()).hexdigest()
    parts = [VERSION, importlib.metadata.version("autocompress"), told, target.name, target.threads, target.options(), session]
    return hashlib.sha256(json.dumps([*parts, _plain(known)], sort_keys=True).encode()).hexdigest()[:16]


def _plain(capabilities: Capabilities) -> dict[str, object]:
    return {name: sorted(value) if isinstance(value, frozenset) else value for name, value in asdict(capabilities).items()}
