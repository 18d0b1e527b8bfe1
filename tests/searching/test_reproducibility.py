"""How far two halves of the calibration data agree on what to remove: against masks computed by hand, and in the answer."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor

from autocompress import Budget, ChannelPolicy, LayerPolicy, Policy, search
from autocompress.reporting.report import table
from autocompress.searching.reproducibility import jaccard, mask_overlap
from autocompress.task import Examples
from autocompress.tensors.calibration import Calibration
from autocompress.tensors.compress import LayerDatabase
from autocompress.trials.trial import Bench

if TYPE_CHECKING:
    from tests.conftest import Tiny

HALF = LayerPolicy(pruner="importance", sparsity=0.5)


def mask(*kept: int) -> Tensor:
    return (
        torch.zeros(2, 5, dtype=torch.bool).flatten().index_fill(0, torch.tensor(kept, dtype=torch.int64), True).reshape(2, 5)
    )


def test_jaccard_by_hand() -> None:
    found = jaccard(mask(0, 1, 2, 3), mask(2, 3, 4, 5))
    assert found.jaccard == 2 / 6
    assert found.by_chance == pytest.approx(0.16 / (0.8 - 0.16))
    assert jaccard(mask(0, 1), mask(0, 1)).jaccard == 1
    assert jaccard(mask(0, 1), mask(2)).jaccard == 0
    assert jaccard(mask(), mask()) == jaccard(~mask(), ~mask())  # nothing to disagree about


def test_chance_is_what_random_masks_have() -> None:
    random = torch.Generator().manual_seed(0)
    pairs = [[torch.rand(50, 40, generator=random) > removed for removed in (0.6, 0.3)] for _ in range(50)]
    measured = [jaccard(*pair) for pair in pairs]
    assert np.mean([one.jaccard for one in measured]) == pytest.approx(np.mean([one.by_chance for one in measured]), abs=0.005)


def half_stats(tiny: Tiny, part: int, folder: Path) -> Calibration:
    """Calibration on every second example, by a task made for it."""
    examples = tiny.task.sets["calibration"]
    task = copy.copy(tiny.task)
    task.sets = {**tiny.task.sets, "calibration": Examples(examples.inputs[part::2], examples.targets[part::2])}
    return Calibration(task, tiny.graph, tiny.components, folder, 0)


def test_overlap_of_a_layer_is_that_of_masks_from_disjoint_halves(tiny: Tiny, bench: Bench, tmp_path: Path) -> None:
    policy = Policy({"inner.0": HALF, "head": LayerPolicy("int8", 8)})
    found = mask_overlap(bench, policy, tmp_path, seed=0)
    assert list(found) == ["inner.0"]
    kept = []
    for part in (0, 1):
        stats = half_stats(tiny, part, tmp_path).stats(tiny.graph.layers["inner.0"])
        score = (stats.gradient_samples * stats.weight).square().mean(0).flatten().numpy()
        kept.append(set(np.argsort(-score)[: len(score) // 2].tolist()))
    assert found["inner.0"].jaccard == pytest.approx(len(kept[0] & kept[1]) / len(kept[0] | kept[1]))
    assert found["inner.0"].by_chance == pytest.approx(1 / 3)
    assert found["inner.0"].by_chance < found["inner.0"].jaccard < 1


def test_magnitude_agrees_with_itself_and_asks_for_no_data(bench: Bench, tmp_path: Path) -> None:
    every = dict.fromkeys(bench.graph.layers, LayerPolicy("int8", 8, "sparse", 0.6))
    found = mask_overlap(bench, Policy(every), tmp_path, seed=0)
    assert {overlap.jaccard for overlap in found.values()} == {1.0}
    assert list(found) == list(bench.graph.layers)
    assert not list(tmp_path.iterdir())


def test_channels_count_in_every_layer_that_they_are_part_of(bench: Bench, database: LayerDatabase, tmp_path: Path) -> None:
    policy = Policy({"outer.0": HALF}, {"inner.0": ChannelPolicy("importance", 0.5)})
    found = mask_overlap(bench, policy, tmp_path, seed=0)
    assert sorted(found) == ["inner.0", "outer.0"]
    left = database.remaining(policy)
    assert left["inner.0"].shape == bench.graph.layers["inner.0"].shape
    assert int(left["inner.0"].flatten(1).any(1).sum()) == 16  # of 32 channels
    assert left["inner.0"].flatten(1).sum(1).unique().tolist() == [0, 144]
    kept = left["inner.0"].flatten(1).any(1)
    assert not left["outer.0"][:, ~kept].any()
    assert int(left["outer.0"].sum()) == 16 * 16 * 9 // 2


def test_one_example_has_no_halves(bench: Bench, tmp_path: Path) -> None:
    task = copy.copy(bench.task)
    examples = task.sets["calibration"]
    task.sets = {**task.sets, "calibration": Examples(examples.inputs[:1], examples.targets[:1])}
    assert mask_overlap(replace(bench, task=task), Policy({"head": HALF}), tmp_path, 0) == {}


def test_answer_says_how_reproducible_its_masks_are(tiny: Tiny, tmp_path: Path) -> None:
    """The only file within the budget is a pruned one: one seed, smaller than any dense file."""
    cut = LayerPolicy("int8", 8, "importance", 0.0, "1:4")
    seed = tmp_path / "seed.json"
    seed.write_text(json.dumps(Policy({"inner.0": cut, "outer.0": cut}).to_dict()))
    quick = [
        "tracking=[]",
        "timing.seconds=0.05",
        "timing.precision=1",
        "sensitivity.seconds=0.05",
        "search.finalists=1",
        "probe.enabled=false",
        f"search.seeds=[{seed}]",
    ]
    result = search(
        tiny.task,
        Budget(size_ratio=0.9),
        trials=1,
        output_dir=tmp_path / "answer",
        overrides=[*quick, "quantizer=[int8]", "pruner=[importance]", "space.structures=['1:4']"],
    )
    assert result.policy.layers["inner.0"].structure == "1:4"
    assert sorted(result.mask_overlap) == ["inner.0", "outer.0"]
    written = json.loads((tmp_path / "answer" / "result.json").read_text())["mask_overlap"]
    assert written == {name: {"jaccard": o.jaccard, "by_chance": o.by_chance} for name, o in result.mask_overlap.items()}
    pattern = r"share (\d+) % of what stays \((\d+) % by chance\), mean of 2 layers; least: (\S+), (\d+) %"
    shown = re.search(pattern, table(result))
    assert shown is not None
    overlaps = {name: overlap.jaccard for name, overlap in result.mask_overlap.items()}
    assert float(shown[1]) == pytest.approx(100 * np.mean(list(overlaps.values())), abs=0.51)
    assert int(shown[2]) == 14  # 0.25 / (2 - 0.25)
    assert shown[3] == min(overlaps, key=overlaps.__getitem__)
    assert float(shown[4]) == pytest.approx(100 * overlaps[shown[3]], abs=0.51)
    rows = {row.layer: (row.structure, row.sparsity) for row in result.records[0].layers}
    assert rows["inner.0"][0] == "1:4"
    assert 0.75 <= rows["inner.0"][1] < 0.8  # counted in the codes: rounding adds some
    assert rows["stem.0"] == ("", 0.0)
