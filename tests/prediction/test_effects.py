"""The journal of single options: several processes write to it and share the work."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from autocompress import LayerPolicy, Policy
from autocompress.display.progress import Progress
from autocompress.prediction.effects import Journal, measure_missing

POLICIES = [Policy({f"layer{index}": LayerPolicy("int8", 8)}) for index in range(60)]


def test_writers_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "sensitivity.jsonl"
    path.write_text('{"key": "torn')

    def write(writer: int) -> None:
        journal = Journal(path, ["tiny"])
        for index, policy in enumerate(POLICIES):
            journal.put(f"writer {writer}", policy, {"index": index})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    journal = Journal(path, ["tiny"])
    for writer in range(4):
        assert [journal.get(f"writer {writer}", policy) for policy in POLICIES] == [{"index": i} for i in range(len(POLICIES))]
    assert path.read_text().count("\n") == 4 * len(POLICIES) + 1


@pytest.mark.parametrize("together", [1, 8])
def test_what_another_one_measured_meanwhile_is_not_measured_again(tmp_path: Path, together: int) -> None:
    """Two that take turns measure each policy once, and both know all of them in the end."""
    path = tmp_path / "sensitivity.jsonl"
    mine, other = Journal(path, ["tiny"]), Journal(path, ["tiny"])
    measured: list[Policy] = []

    def keep(journal: Journal, policies: Sequence[Policy]) -> None:
        measured.extend(policies)
        for policy in policies:
            journal.put("effect", policy, {"drop": 0.0})

    def measure(policies: Sequence[Policy]) -> None:
        assert len(policies) <= together
        keep(mine, policies)
        keep(other, [policy for policy in POLICIES if policy not in measured][:together])

    measure_missing(mine, "effect", POLICIES, measure, "sensitivity", Progress(io.StringIO()), together)
    assert len(measured) == len({policy.digest for policy in measured}) == len(POLICIES)
    assert all(mine.get("effect", policy) is not None for policy in POLICIES)
    other.refresh()
    assert all(other.get("effect", policy) is not None for policy in POLICIES)


def test_what_leaves_nothing_is_tried_once(tmp_path: Path) -> None:
    tried: list[Policy] = []
    journal = Journal(tmp_path / "sensitivity.jsonl", ["tiny"])
    measure_missing(journal, "effect", POLICIES, tried.extend, "sensitivity", Progress(io.StringIO()), 8)
    assert len(tried) == len({policy.digest for policy in tried}) == len(POLICIES)
