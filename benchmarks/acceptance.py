"""The end results that were asked for, each found by the command line: `python -m benchmarks.acceptance [CASE ...]`.

Each case is searched several times from nothing; figures are medians over the runs, from each run's result.json (report set).
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from autocompress.building.candidate import load_state
from autocompress.components import QuantizedTensor

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Case:
    """A search and what was asked of it.

    Attributes:
        asked: words for the table.
        met: whether the medians fulfil it.
    """

    overrides: tuple[str, ...]
    asked: str
    met: Callable[[dict[str, Any]], bool]


SMALL = ("quantizer=[int8,gptq]", "objective=size", "budget.accuracy_drop=0.01", "search.trials=30")
SPARSE = ("pruner=[sparse]", "space.structures=[unstructured]")
CHANNELS = (
    "pruner=[importance]",
    "space.structures=[channel]",
    "data.train_size=40000",
    "search.finalists=1",
    "search.recoverable_drop=0.01",
)
FINE_TUNE = ("seconds=900", "learning_rate=5e-4", "flip=true", "activations=false")

CASES = {
    "digits": Case(
        ("+experiment=digits",),
        "feasible, 3x smaller, 1.5x faster, at most 1.0 point lost, search under 4 minutes",
        lambda m: m["size_ratio"] <= 1 / 3 and m["latency_ratio"] <= 1 / 1.5 and m["drop"] <= 0.01 and m["seconds"] < 240,
    ),
    "resnet20_latency": Case(
        ("+experiment=cifar10_resnet20", "objective=latency", "budget.accuracy_drop=0.01", "search.trials=40"),
        "latency ratio at most 0.54, size ratio at most 0.34, at most 1.0 point lost",
        lambda m: m["latency_ratio"] <= 0.54 and m["size_ratio"] <= 0.34 and m["drop"] <= 0.01,
    ),
    "resnet20_size": Case(
        ("+experiment=cifar10_resnet20", "budget.size_ratio=0.22", "budget.latency_ratio=0.60", "search.trials=60"),
        "size ratio at most 0.22, latency ratio at most 0.60, at least two bit-widths, at most 2.0 points lost",
        lambda m: m["size_ratio"] <= 0.22 and m["latency_ratio"] <= 0.60 and m["bit_widths"] >= 2 and m["drop"] <= 0.02,
    ),
    "resnet20_impossible": Case(
        ("+experiment=cifar10_resnet20", "objective=accuracy", "budget.size_ratio=0.05", "search.trials=20"),
        "infeasible, binding constraint size_ratio",
        lambda m: m["status"] == ["infeasible"] and m["binding"] == ["size_ratio"],
    ),
    "efficientnet_lite0_latency": Case(
        ("+experiment=imagenet_efficientnet_lite0", "objective=latency", "budget.accuracy_drop=0.01", "search.trials=30"),
        "latency ratio at most 0.56, size ratio at most 0.29, at most 1.0 point lost",
        lambda m: m["latency_ratio"] <= 0.56 and m["size_ratio"] <= 0.29 and m["drop"] <= 0.01,
    ),
    "efficientnet_lite0_openvino": Case(
        (
            *("+experiment=imagenet_efficientnet_lite0", "target=openvino", "objective=latency"),
            *("budget.accuracy_drop=0.01", "search.trials=30"),
        ),
        "latency ratio at most 0.50, at most 1.0 point lost",
        lambda m: m["latency_ratio"] <= 0.50 and m["drop"] <= 0.01,
    ),
    "resnet20_small": Case(
        ("+experiment=cifar10_resnet20", *SMALL, *SPARSE, "search.trials=40", "budget.latency_ratio=0.54"),
        "1.85x faster and 5x smaller at no more than 1.0 point lost, no training data",
        lambda m: m["latency_ratio"] <= 1 / 1.85 and m["size_ratio"] <= 1 / 5 and m["drop"] <= 0.01,
    ),
    "efficientnet_lite0_small": Case(
        ("+experiment=imagenet_efficientnet_lite0", *SMALL, "budget.latency_ratio=0.54"),
        "1.85x faster and 5x smaller at no more than 1.0 point lost, no training data",
        lambda m: m["latency_ratio"] <= 1 / 1.85 and m["size_ratio"] <= 1 / 5 and m["drop"] <= 0.01,
    ),
    "mobile_net_small": Case(
        (
            *("+experiment=cifar10_efficientnet_lite0", *SMALL, *CHANNELS, "budget.latency_ratio=0.45"),
            *("recover=[moments,finetune]", *(f"recover.finetune.{setting}" for setting in FINE_TUNE)),
        ),
        "1.8x faster and 7x smaller at no more than 1.0 point lost, at most 60 minutes of fine-tuning",
        lambda m: m["latency_ratio"] <= 1 / 1.8 and m["size_ratio"] <= 1 / 7 and m["drop"] <= 0.01,
    ),
}


def run_case(name: str, run: int, work: Path, resume: bool, more: Sequence[str]) -> dict[str, Any]:
    """One search; returns its result.json.

    Args:
        resume: go on in the folder of an earlier one instead of beginning from nothing.
        more: overrides besides the case's own.
    """
    folder = work / f"{name}-{run}"
    if not resume:
        shutil.rmtree(folder, ignore_errors=True)
    overrides = [*CASES[name].overrides, *more, f"search.seed={run}", f"hydra.run.dir={folder}"]
    subprocess.run([sys.executable, "-m", "autocompress", "search", *overrides], check=True)
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return {**result, "bit_widths": bit_widths(folder / "best/state.safetensors")}


def bit_widths(state: Path) -> int:
    """Different weight bit-widths in the delivered file; a layer that is not in the state is float."""
    layers = load_state(state).layers.values() if state.exists() else []
    return len({layer.weight.bits for layer in layers if isinstance(layer.weight, QuantizedTensor)})


def medians(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the runs; statuses and binding constraints as the set of what occurred."""
    best = {key: median(result["best"][key] for result in results) for key in ("size_ratio", "latency_ratio", "accuracy")}
    rest = {key: median(result[key] for result in results) for key in ("drop", "drop_upper", "seconds", "bit_widths")}
    binding = {result["binding_constraint"]["name"] for result in results if result["binding_constraint"]}
    return {
        **best,
        **rest,
        "accuracy_fp32": median(result["baseline"]["accuracy"] for result in results),
        "latency_ratios": [round(result["best"]["latency_ratio"], 4) for result in results],
        "drops": [round(result["drop"], 4) for result in results],
        "status": sorted({result["status"] for result in results}),
        "binding": sorted(binding),
        "smallest_met": [r["binding_constraint"]["smallest_met"] for r in results if r["binding_constraint"]],
        "device": results[0]["device"],
        "versions": results[0]["versions"],
    }


def main() -> None:
    """Run the named cases, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", default=[], metavar="CASE")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("outputs/acceptance"))
    parser.add_argument("--resume", action="store_true", help="go on with searches that were stopped")
    parser.add_argument(
        "--override", action="append", default=[], help="a setting for every case: target=openvino, search.trials=9"
    )
    arguments = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    for name in arguments.cases or CASES:
        work, more = arguments.work.resolve(), arguments.override
        measured = medians([run_case(name, run, work, arguments.resume, more) for run in range(arguments.runs)])
        record = {"asked": CASES[name].asked, "met": CASES[name].met(measured), "runs": arguments.runs, **measured}
        command = f"autocompress search {' '.join([*CASES[name].overrides, *more])}"
        suffix = "".join(f"_{setting.removeprefix('target=')}" for setting in more if setting.startswith("target="))
        (RESULTS / f"acceptance_{name}{suffix}.json").write_text(json.dumps({"command": command, **record}, indent=2) + "\n")
        sys.stdout.write(f"{name}: {'met' if record['met'] else 'MISSED'}: asked {record['asked']}\n  {json.dumps(measured)}\n")


if __name__ == "__main__":
    main()
