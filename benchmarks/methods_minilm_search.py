"""A sentence encoder end to end: `python -m benchmarks.methods_minilm_search`.

The search of `+experiment=minilm`, as the command line runs it; the delivered file on sentences that neither calibration nor
the search saw, at sequence length 64 and batch 1.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import torch

from benchmarks.workbench import publish, search_result


def delivered(overrides: list[str]) -> dict[str, Any]:
    """The figures of one search."""
    result = search_result("+experiment=minilm", *overrides)
    best = result.best.measurement
    return {
        "status": result.status,
        "cosine": best.accuracy,
        "sentences": best.images,
        "smaller": 1 / (best.size_ratio or 1.0),
        "size_bytes": best.size_bytes,
        "latency_ms": best.latency_ms,
        "fp32_latency_ms": result.baseline.measurement.latency_ms,
        "faster": 1 / (best.latency_ratio or 1.0),
        "policy": {name: [layer.quantizer, layer.bits, layer.activation] for name, layer in result.policy.layers.items()},
        "ops": dict(result.policy.ops),
        "reasons": list(result.reasons),
    }


def main() -> None:
    """One search."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    row = delivered(arguments.overrides)
    publish("methods_minilm_search", [row])
    sys.stdout.write(f"{json.dumps(row)}\n")


if __name__ == "__main__":
    main()
