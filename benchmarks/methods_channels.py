"""Inner channels of a mobile net removed, fine-tuned, quantized: `python -m benchmarks.methods_channels SHARE SECONDS`.

Inner channels are those between the expansion and the projection of a block. Shares are uneven, by Taylor importance for what
a channel costs. Everything is measured on the delivered file and the report set.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from autocompress_plugins.finetune import FineTune

from autocompress.building.twin import module_twin
from autocompress.network.allocation import allocate
from autocompress.network.channels import ChannelGroup
from autocompress.policy import ChannelPolicy, LayerPolicy, Policy
from autocompress.tensors.compress import CompressedModel
from benchmarks.workbench import Workbench, publish, workbench

ROUNDS = 5
EXPERIMENT = ("+experiment=cifar10_efficientnet_lite0", "pruner=[importance]", "data.train_size=40000")


def inner_groups(bench: Workbench) -> dict[str, ChannelGroup]:
    """The groups that hold a depthwise convolution."""
    kinds = {name: {bench.graph.layers[entry.module].kind for entry in group.entries} for name, group in bench.groups.items()}
    return {name: group for name, group in bench.groups.items() if "depthwise" in kinds[name]}


def policy_of(bench: Workbench, share: float) -> Policy:
    """INT8 everywhere, and the share of all inner channels removed."""
    inner = inner_groups(bench)
    scores = {entry.module: bench.database.score("importance", entry.module) for g in inner.values() for entry in g.entries}
    shares = allocate(inner, bench.graph.layers, scores, share) if share else {}
    dense = dict.fromkeys(bench.graph.layers, LayerPolicy("int8", 8))
    return Policy(dense, {name: ChannelPolicy("importance", cut) for name, cut in shares.items() if cut > 0})


def rows_of(bench: Workbench, share: float, seconds: float, learning_rate: float) -> list[dict[str, Any]]:
    """Dense INT8, channels removed, and fine-tuned."""
    dense, cut = policy_of(bench, 0), policy_of(bench, share)
    built = {
        "dense": bench.build(dense, bench.compress(dense), "dense"),
        "removed": bench.build(cut, bench.compress(cut), "cut"),
    }
    start = time.monotonic()
    tuned = bench.recover(cut, [FineTune(seconds=seconds, learning_rate=learning_rate, flip=True, activations=False)])
    trained = time.monotonic() - start
    built["fine-tuned"] = bench.build(cut, tuned, "tuned")
    removed = sum(bench.groups[name].size - len(kept) for name, kept in tuned.kept.items())
    counts = {name: len(kept) for name, kept in tuned.kept.items()}
    whole = sum(group.size for group in inner_groups(bench).values())
    rows = [{"what": what, **bench.figures(file.artifact.path, timed=True)} for what, file in built.items()]
    rows[-1]["twin_accuracy"] = twin_accuracy(bench, cut, tuned)
    return [*rows, {"removed_share": removed / whole, "kept_channels": counts, "training_seconds": trained}]


def latencies(bench: Workbench, share: float) -> list[dict[str, Any]]:
    """Dense and cut INT8 files without training, timed in turns: latency depends on shapes, which training does not change."""
    policies = {"dense": policy_of(bench, 0), "removed": policy_of(bench, share)}
    files = {what: bench.build(policy, bench.compress(policy), what).artifact.path for what, policy in policies.items()}
    found: dict[str, list[dict[str, Any]]] = {what: [] for what in files}
    for _ in range(ROUNDS):
        for what, path in files.items():
            found[what].append(bench.latency(path))
    return [
        {"what": what, **{name: median(round[name] for round in rounds) for name in rounds[0]}}
        for what, rounds in found.items()
    ]


def twin_accuracy(bench: Workbench, policy: Policy, compressed: CompressedModel) -> float:
    """Accuracy of the module that computes what the file computes, on the report set."""
    capabilities = bench.components.target.capabilities()
    twin = module_twin(bench.graph, bench.task.model, bench.groups, policy, compressed, capabilities)
    examples = bench.task.sets["report"]
    with torch.no_grad():
        found = torch.cat([twin(inputs).argmax(1) == targets for inputs, targets in examples.batches(100)])
    return float(found.float().mean())


def main() -> None:
    """One share."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("share", type=float)
    parser.add_argument("seconds", type=float, help="of training; 0: only the latencies of the shapes")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--keep", type=Path, help="folder for copies of the files, to time them again")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with workbench(*EXPERIMENT) as bench:
        if not arguments.seconds:
            rows, name = latencies(bench, arguments.share), "methods_channels_latency"
        else:
            rows, name = rows_of(bench, arguments.share, arguments.seconds, arguments.learning_rate), "methods_channels"
        if arguments.keep:
            shutil.copytree(bench.folder, arguments.keep, ignore=shutil.ignore_patterns("cache"), dirs_exist_ok=True)
    publish(f"{name}_{round(100 * arguments.share)}", rows)
    for row in rows:
        sys.stdout.write(f"{json.dumps(row)}\n")


if __name__ == "__main__":
    main()
