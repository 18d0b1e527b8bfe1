"""Quantize only, prune only, joint, at an equal drop of one point: `python -m benchmarks.methods_ablation`.

Three searches for the smallest file, with one kind of method or both; bytes and milliseconds of the file that each delivers.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import torch

from benchmarks.workbench import publish, search_result

MODELS = {"resnet20": "cifar10_resnet20", "mobile net": "cifar10_efficientnet_lite0"}
KINDS = {
    "quantize only": ("quantizer=[int8,gptq]", "pruner=[]"),
    "prune only": ("quantizer=[]", "pruner=[importance]"),
    "joint": ("quantizer=[int8,gptq]", "pruner=[importance]"),
}


def delivered(model: str, kind: str, trials: int) -> dict[str, Any]:
    """One search for the smallest file that loses at most one point."""
    goal = ("objective=size", "budget.accuracy_drop=0.01", f"search.trials={trials}")
    result = search_result(f"+experiment={MODELS[model]}", *KINDS[kind], *goal)
    best = result.best.measurement
    return {
        "model": model,
        "kind": kind,
        "status": result.status,
        "drop_points": 100 * result.drop,
        "drop_ci_points": [100 * bound for bound in result.drop_ci],
        "size_bytes": best.size_bytes,
        "size_ratio": best.size_ratio,
        "latency_ms": best.latency_ms,
        "latency_ratio": best.latency_ratio,
        "fp32_size_bytes": result.baseline.measurement.size_bytes,
        "fp32_latency_ms": result.baseline.measurement.latency_ms,
        "reasons": list(result.reasons),
    }


def main() -> None:
    """Both models, three kinds each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    for model in MODELS:
        for kind in KINDS:
            rows.append(delivered(model, kind, arguments.trials))
            sys.stdout.write(f"{json.dumps(rows[-1])}\n")
    publish("methods_ablation", rows)


if __name__ == "__main__":
    main()
