"""How much a search flatters itself: `python -m benchmarks.selection_gap [OVERRIDES] --seeds 3`.

The most accurate file within a size is chosen among trials by the search set and judged on the report set, with
`objective=accuracy`, which picks a maximum and so deceives itself most. Each set has an FP32 accuracy of its own, so the gap
compares drops: the drop on the report set minus the drop of the same file on the search set, in points.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

import torch

from autocompress.record import SearchResult
from benchmarks.workbench import publish, search_result

DIGITS = (
    "+experiment=digits",
    "objective=accuracy",
    "budget.accuracy_drop=null",
    "budget.size_ratio=0.16",
    "search.trials=15",
    "search.finalists=1",
)


def row_of(overrides: Sequence[str], seed: int) -> dict[str, Any]:
    """One search from nothing."""
    result = search_result(*overrides, f"search.seed={seed}")
    searched = drop_on_search_set(result)
    return {
        "seed": seed,
        "status": result.status,
        "trials": len(result.records),
        "drop_points_search": searched,
        "drop_points_report": 100 * result.drop,
        "drop_ci_points_report": [100 * bound for bound in result.drop_ci],
        "gap_points": None if searched is None else 100 * result.drop - searched,
        "report_examples": result.best.measurement.images,
    }


def drop_on_search_set(result: SearchResult) -> float | None:
    """As its trial measured it, in points; None: FP32 was delivered."""
    drops = [r.measurement.accuracy_drop for r in result.records if r.number == result.best_trial]
    return 100 * drops[0] if drops and drops[0] is not None else None


def main() -> None:
    """A row for each seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", default=DIGITS)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for seed in range(arguments.seeds):
        rows.append(row_of(arguments.overrides, seed))
        sys.stdout.write(f"{json.dumps(rows[-1])}\n")
        publish("selection_gap", {"overrides": list(arguments.overrides), "searches": rows})


if __name__ == "__main__":
    main()
