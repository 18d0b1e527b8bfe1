"""What the command line's verbs do, in terms of the Python interface."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from autocompress.accuracy.evaluation import Evaluator
from autocompress.accuracy.export_check import check_export
from autocompress.accuracy.host_accuracy import host_accuracy
from autocompress.accuracy.intervals import Statistics, interval, paired_drop
from autocompress.accuracy.significance import paired_p
from autocompress.artifact import Artifact, sha256_of
from autocompress.budget import Measurement
from autocompress.building.candidate import build, check_state, load_state
from autocompress.building.preparation import prepare
from autocompress.config import Job
from autocompress.display.progress import Progress
from autocompress.errors import ConfigError, PolicyError, RuntimeCrashError
from autocompress.guarding.held_folder import held_folder
from autocompress.guarding.whole_file import write_whole
from autocompress.inputs.cache import cache_folder
from autocompress.inputs.data import load_splits
from autocompress.inputs.factories import load_function
from autocompress.inputs.onnx_files import check_fits, read_onnx
from autocompress.inputs.training import cached_model
from autocompress.measuring.device import open_device
from autocompress.network.graph import BaseGraph
from autocompress.policy import SavedPolicy, load_saved_policy
from autocompress.probing.capability_probe import CapabilityProbe, find_capabilities
from autocompress.record import Final
from autocompress.registry import Registry
from autocompress.reporting.figures import heat_map
from autocompress.reporting.report import final_dict, table
from autocompress.reporting.sensitivity import measure_sensitivity
from autocompress.reporting.sensitivity_files import sensitivity_content, write_sensitivity
from autocompress.reporting.sensitivity_table import WIDTH, sensitivity_table
from autocompress.run import run, work
from autocompress.settings import Settings
from autocompress.task import Task
from autocompress.workspace import open_workspace

MINIMUM_WIDTH = 60

Verb = Callable[[Job, Settings, Registry], None]


def run_verb(verb: str, job: Job, registry: Registry) -> None:
    """Run one job."""
    verbs: dict[str, Verb] = {"search": _search, "worker": _worker, "sensitivity": _sensitivity, "probe": _probe}
    verbs |= {"apply": _alone(_apply), "evaluate": _alone(_evaluate)}
    verbs[verb](job, job.settings, registry)


def _alone(verb: Verb) -> Verb:
    """With the output folder for itself, as a search has it."""

    def run(job: Job, settings: Settings, registry: Registry) -> None:
        with held_folder(settings.folder):
            verb(job, settings, registry)

    return run


def _say(text: str) -> None:
    """Results go to standard output, progress to standard error."""
    sys.stdout.write(f"{text}\n")


def build_task(job: Job, settings: Settings, progress: Progress) -> Task:
    """The configured model and data as a task."""
    with progress.stage("data"):
        splits = load_splits(job.data)
    with progress.stage("model"):
        model = cached_model(job.model, splits, cache_folder(), progress.epoch)
    example = torch.from_numpy(splits.calibration.inputs[:1])
    return Task(
        model=model,
        example_input=example,
        calibration=splits.calibration,
        search=splits.search,
        report=splits.report,
        train=splits.train,
        metric=settings.components.metric.name,
        loss=load_function("loss", job.loss),
        name=f"{job.model.name}-{job.data.name}",
    )


def _search(job: Job, settings: Settings, registry: Registry) -> None:
    progress = Progress(label=job.label)
    with redirect_stdout(sys.stderr):  # what plugins and models print
        result = run(build_task(job, settings, progress), settings, registry, progress)
    _say(table(result))
    _say(f"file: {result.best.artifact.path}\nreport: {result.folder / 'report.html'}\nmore: {result.folder / 'result.json'}")
    if result.status == "interrupted":
        raise KeyboardInterrupt  # told to the shell, and to a sweep, which ends


def _worker(job: Job, settings: Settings, registry: Registry) -> None:
    progress = Progress(label=job.label)
    with redirect_stdout(sys.stderr):
        ended = work(build_task(job, settings, progress), settings, progress)
    _say(ended)


def _sensitivity(job: Job, settings: Settings, registry: Registry) -> None:
    progress = Progress(label=job.label)
    with open_workspace(build_task(job, settings, progress), settings, progress) as workspace, progress.stage("sensitivity"):
        found = measure_sensitivity(workspace, settings.sensitivity, progress, settings.goal.budget.accuracy_drop)
    write_sensitivity(found, settings.folder)
    heat_map(sensitivity_content(found)).png(settings.folder / "sensitivity.png")
    _say(sensitivity_table(found, max(MINIMUM_WIDTH, shutil.get_terminal_size((WIDTH, 0)).columns)))
    _say(f"more: sensitivity.json, sensitivity.csv and sensitivity.png in {settings.folder}")


def _probe(job: Job, settings: Settings, registry: Registry) -> None:
    progress, file = Progress(label=job.label), settings.folder / "probe.json"
    with open_device(settings.components.target, torch.get_num_threads()) as device:
        probe = CapabilityProbe.of(settings, device, progress)
        with progress.stage("capability probe"):
            findings = find_capabilities(probe, probe.subjects(), file, cache_folder())
    _say(findings.table())
    _say(f"more: {file}")


def _apply(job: Job, settings: Settings, registry: Registry) -> None:
    assert job.policy is not None
    saved = load_saved_policy(job.policy)
    state = job.policy.parent / "state.safetensors"
    if not state.is_file() or sha256_of(state) != saved.state_sha256:
        raise PolicyError(f"state {state}: missing, or not the one that {job.policy} was saved with; keep both files together")
    progress = Progress(label=job.label)
    task = build_task(job, settings, progress)
    with progress.stage("export"):
        task, graph = prepare(task, settings.components, settings.folder / "fp32.onnx")
    artifact = apply_policy(graph, saved, state, settings, job.policy)
    same = "the same bytes" if artifact.sha256 == saved.artifact_sha256 else "other bytes (other versions?)"
    _say(f"file: {artifact.path}\n{artifact.size_bytes} bytes, sha256 {artifact.sha256}: {same} as the search delivered")


def apply_policy(graph: BaseGraph, saved: SavedPolicy, state: Path, settings: Settings, path: Path) -> Artifact:
    """Build the file of a saved policy.

    Raises:
        PolicyError: the policy was found for another model, or is not what the state was saved with.
    """
    if saved.model != graph.digest:
        raise PolicyError(
            f"policy {path}: found for the model {saved.model[:12]}, this model is {graph.digest[:12]}; "
            "expected the same architecture, weights and recover=... (and the same exporter version)"
        )
    capabilities, compressed = settings.components.target.capabilities(), load_state(state)
    check_state(graph, saved.policy, compressed, capabilities)
    return build(graph, saved.policy, compressed, capabilities, settings.folder / "model.onnx").artifact


def _evaluate(job: Job, settings: Settings, registry: Registry) -> None:
    assert job.artifact is not None
    model = read_onnx(job.artifact)
    progress = Progress(label=job.label)
    task = build_task(job, settings, progress)
    with progress.stage("export"):
        task, graph = prepare(task, settings.components, settings.folder / "fp32.onnx")
    facts = task.sets["report"].facts
    check_fits(job.artifact, model, facts.shape, np.dtype(facts.dtype), graph.batch)
    with progress.stage("measuring"):
        figures = evaluate_artifact(task, graph, job.artifact, settings)
    write_whole(settings.folder / "evaluation.json", json.dumps(figures, indent=2) + "\n")
    _say(json.dumps(figures, indent=2))


def evaluate_artifact(task: Task, graph: BaseGraph, path: Path, settings: Settings) -> dict[str, object]:
    """Any file beside the FP32 file, in the words of result.json: both on the report set, timed in the same rounds.

    Raises:
        ConfigError: the runtime does not run the file, or it gives something else than the FP32 file does.
    """
    components, patience = settings.components, settings.trial.reconnect_seconds
    with open_device(components.target, torch.get_num_threads(), patience=patience) as device:
        evaluator = Evaluator.prepare(task, components.metric, graph, device, settings.folder / "cache")
        evaluator.keep_reference(graph, "report")
        check_export(task, "report", evaluator.reference["report"])
        reference = evaluator.reference_statistics("report")
        statistics = np.asarray(evaluator.score(artifact_outputs(evaluator, path), "report", 0, len(reference)))
        baseline, found = _evaluated(evaluator, settings, [(graph.path, reference), (path, statistics)])
        on_host = host_accuracy(evaluator, components.target, graph, path, "report")
        environment = device.environment()
    shutil.rmtree(evaluator.folder, ignore_errors=True)
    drop = paired_drop(evaluator.metric, reference, statistics)
    return {
        "artifact": str(path),
        "metric": components.metric.name,
        "baseline": final_dict(baseline),
        "best": final_dict(found),
        "accuracy_host": on_host,
        "drop": drop.value,
        "drop_ci": (drop.low, drop.high),
        "drop_p": paired_p(evaluator.metric, reference, statistics),
        "device": environment["device"],
        "environment": environment,
    }


def artifact_outputs(evaluator: Evaluator, path: Path) -> NDArray[Any]:
    """What a file from elsewhere gives for the report set, of which the evaluator has FP32's outputs.

    Raises:
        ConfigError: the runtime does not run it, or its outputs are not finite or of another form.
    """
    expected = evaluator.reference["report"]
    try:
        outputs = evaluator.outputs(path, "report", 0, len(expected))
    except RuntimeCrashError as error:
        raise ConfigError(f"artifact={path}: the runtime cannot run it: {error}") from error
    if outputs.shape != expected.shape or outputs.dtype != expected.dtype:
        ends = [f"{part.dtype} of shape {part.shape}" for part in (outputs, expected)]
        raise ConfigError(f"artifact={path}: it gives {ends[0]}; expected {ends[1]}, as the configured model does")
    if not np.isfinite(outputs).all():
        raise ConfigError(f"artifact={path}: it gives NaN or infinity on the report set; expected finite outputs")
    return outputs


def _evaluated(evaluator: Evaluator, settings: Settings, files: Sequence[tuple[Path, Statistics]]) -> list[Final]:
    """The figures of files, the first of which is the reference."""
    device, example, paths = evaluator.device, evaluator.inputs("example"), [path for path, _ in files]
    latencies = device.latencies(paths[0], paths, example, settings.timing, settings.goal.budget)
    whole = paths[0].stat().st_size
    return [
        Final(
            artifact=Artifact.of(path, "onnx"),
            measurement=Measurement(
                size_bytes=path.stat().st_size,
                size_ratio=path.stat().st_size / whole,
                latency=latency,
                latency_ms=latency.ms,
                latency_ratio=latency.ratio,
                accuracy=evaluator.metric.value(statistics),
                images=len(statistics),
                energy=device.energy(path, example),
                **device.footprint(path, example, settings.trial.load_processes).figures,
            ),
            accuracy_ci=interval(evaluator.metric, statistics),
        )
        for (path, statistics), latency in zip(files, latencies, strict=True)
    ]
