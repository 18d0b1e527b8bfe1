"""What the race costs and risks on ResNet-20: images that a hopeless candidate costs, and good ones that are lost.

python -m benchmarks.racing

Files are evaluated once, on the whole search set. The race is then run on 200 random orders of their figures per example.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from autocompress_plugins.affine import Int4, Int8
from numpy.typing import NDArray

from autocompress.accuracy.racing import ERROR, Rival, find_defeat
from autocompress.components import Metric
from autocompress.policy import LayerPolicy, Policy
from autocompress.tensors.compress import LayerDatabase
from autocompress.trials.trial import TrialSettings
from benchmarks.workbench import Workbench, publish, workbench

ORDERS = 200
BUDGET = 0.01
"""Drop that the search allows."""

MIXED = 4
"""Policies with 8 bits or 4 in each layer at random."""

INT8, INT4 = LayerPolicy("int8", 8), LayerPolicy("int4", 4)


def statistics(bench: Workbench, policies: Mapping[str, Policy], repaired: bool, bits: int = 4) -> dict[str, NDArray[Any]]:
    """Right or wrong for each image of the search set."""
    quantizers = {"int8": Int8(), "int4": Int4(bits=bits)}
    recoveries = bench.components.recoveries if repaired else ()
    components = replace(bench.components, quantizers=quantizers, recoveries=recoveries)
    fresh = replace(
        bench, components=components, database=LayerDatabase(bench.graph, bench.calibration, components, bench.groups)
    )
    count, found = len(bench.evaluator.targets["search"]), {}
    for name, policy in policies.items():
        path = fresh.build(policy, fresh.compress(policy)).artifact.path
        found[name] = bench.evaluator.statistics(path, "search", 0, count)
    return found


def hopeless(bench: Workbench) -> dict[str, NDArray[Any]]:
    """Rounded to 2 and 3 bits, rounded to 4 without repair, and 80 % sparse."""
    layers = list(bench.graph.layers)

    def every(option: LayerPolicy) -> Policy:
        return Policy(dict.fromkeys(layers, option))

    found: dict[str, NDArray[Any]] = {}
    for bits in (2, 3):
        policies = {f"all {bits} bits": every(LayerPolicy("int4", bits))}
        found |= statistics(bench, policies, True, bits)
    found |= statistics(bench, {"all 4 bits, not repaired": every(INT4)}, False)
    sparse = {
        f"80 % sparse, {option.bits} bits": every(replace(option, pruner="sparse", sparsity=0.8)) for option in (INT8, INT4)
    }
    return found | statistics(bench, sparse, True)


def candidates(bench: Workbench) -> dict[str, NDArray[Any]]:
    """INT8 everywhere, and random mixtures of 8 and 4 bits: some better, some worse."""
    random, layers = np.random.default_rng(0), list(bench.graph.layers)
    policies = {"all 8 bits": Policy(dict.fromkeys(layers, INT8))}
    for index in range(MIXED):
        share = (index + 1) / (MIXED + 1)
        policies[f"mixed {index}"] = Policy({name: INT4 if random.random() < share else INT8 for name in layers})
    return statistics(bench, policies, True)


def stops(examples: int) -> list[int]:
    """Where a trial looks before the end."""
    settings = TrialSettings()
    sizes = {max(settings.minimum_subset, round(share * examples)) for share in settings.subsets}
    return sorted(size for size in sizes if size < examples)


def races(metric: Metric, figures: NDArray[Any], rivals: Sequence[Rival], orders: int = ORDERS) -> list[int]:
    """Images seen in each of the random orders; all of them where the candidate was not dropped."""
    random, looks, seen = np.random.default_rng(1), stops(len(figures)), []
    for _ in range(orders):
        order = random.permutation(len(figures))
        shuffled = [Rival(rival.name, rival.statistics[order], rival.margin) for rival in rivals]
        ends = (stop for stop in looks if find_defeat(metric, figures[order][:stop], shuffled, len(looks)))
        seen.append(next(ends, len(figures)))
    return seen


def cost_rows(metric: Metric, bad: Mapping[str, NDArray[Any]], fp32: Rival, leader: Rival) -> list[dict[str, Any]]:
    """Share of the images that each hopeless file costs, against FP32 alone and with the leader."""
    found = []
    for name, figures in bad.items():
        alone, both = (races(metric, figures, rivals) for rivals in ([fp32], [fp32, leader]))
        found.append(
            {
                "hopeless": name,
                "drop_points": 100 * (metric.value(fp32.statistics) - metric.value(figures)),
                "share_of_images": float(np.mean(both)) / len(figures),
                "share_of_images_fp32_only": float(np.mean(alone)) / len(figures),
            }
        )
    return found


def risk_row(metric: Metric, pool: Mapping[str, NDArray[Any]], reference: NDArray[Any]) -> dict[str, Any]:
    """How often a file is dropped against a leader that it equals or beats on the whole set, FP32 and the budget besides."""
    tried = dropped = 0
    for figures in pool.values():
        fp32 = Rival("FP32", reference, max(BUDGET, metric.value(reference) - metric.value(figures)))
        for other in pool.values():
            if other is not figures and metric.value(figures) >= metric.value(other):
                seen = races(metric, figures, [fp32, Rival("leader", other, 0.0)])
                tried, dropped = tried + len(seen), dropped + sum(count < len(figures) for count in seen)
    return {"races_of_good_candidates": tried, "dropped": dropped, "bound": ERROR}


def power_rows(metric: Metric, pool: Mapping[str, NDArray[Any]], leader: Rival) -> list[dict[str, Any]]:
    """Share of the images that candidates behind the leader cost: the further behind, the less."""
    found = []
    for name, figures in pool.items():
        behind = metric.value(leader.statistics) - metric.value(figures)
        if behind > 0:
            share = float(np.mean(races(metric, figures, [leader]))) / len(figures)
            found.append({"behind": name, "points": 100 * behind, "share_of_images": share})
    return sorted(found, key=lambda row: float(row["points"]))


def main() -> None:
    """ResNet-20 on CIFAR-10."""
    with workbench("+experiment=cifar10_resnet20", "pruner=[sparse]", "data.report_size=100") as bench:
        metric, reference = bench.evaluator.metric, bench.evaluator.reference_statistics("search")
        pool, bad = candidates(bench), hopeless(bench)
    best = max(pool.values(), key=metric.value)
    fp32, leader = Rival("FP32", reference, BUDGET), Rival("leader", best, 0.0)
    rows = cost_rows(metric, bad, fp32, leader) + power_rows(metric, pool, leader) + [risk_row(metric, pool, reference)]
    for row in rows:
        sys.stdout.write(f"{row}\n")
    sys.stdout.write(f"looks at {stops(len(reference))} of {len(reference)} images, {ORDERS} orders\n")
    publish("racing_resnet20", rows)


if __name__ == "__main__":
    main()
