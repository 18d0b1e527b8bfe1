"""Which examples and classes changed: counted by hand, and read back from the tables."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from autocompress_plugins.agreement import Agreement
from autocompress_plugins.cosine import Cosine

from autocompress import Measurement
from autocompress.accuracy.changes import Changes, find_changes, write_changes
from autocompress.accuracy.class_drops import ClassDrop, class_drops, worst_classes
from autocompress.accuracy.flips import Flip, find_flips, top_choices
from autocompress.accuracy.worst_examples import WorstExample, worst_examples
from autocompress.trials.trial import Bench

LABELS = np.array([0, 0, 0, 0, 1, 1, 2, 2])
FP32 = np.array([0, 0, 0, 1, 1, 1, 2, 0])
FILE = np.array([0, 1, 2, 0, 1, 0, 2, 2])


def test_flips_are_the_examples_decided_otherwise() -> None:
    assert find_flips(LABELS, FP32, FILE) == [
        Flip(1, 0, 0, 1, True, False),
        Flip(2, 0, 0, 2, True, False),
        Flip(3, 0, 1, 0, False, True),
        Flip(5, 1, 1, 0, True, False),
        Flip(7, 2, 0, 2, False, True),
    ]


def test_of_equal_outputs_the_first_is_the_choice() -> None:
    assert top_choices(np.array([[1.0, 3.0, 3.0], [0.0, -1.0, 0.0]])).tolist() == [1, 0]


def test_each_class_has_its_own_drop() -> None:
    assert class_drops(LABELS, FP32, FILE) == [
        ClassDrop(0, 4, 0.75, 0.5, 0.25),
        ClassDrop(1, 2, 1.0, 0.5, 0.5),
        ClassDrop(2, 2, 0.5, 1.0, -0.5),
    ]


def test_worst_classes_are_those_that_lose_most_and_only_losers() -> None:
    drops = [
        ClassDrop(n, examples, 0.9, 0.9 - drop, drop)
        for n, (examples, drop) in enumerate([(10, 0.1), (20, 0.2), (30, 0.1), (40, 0.0), (50, -0.3), (60, 0.05), (9, 1.0)])
    ]
    assert [found.label for found in worst_classes(drops)] == [1, 2, 0]
    assert [found.label for found in worst_classes(drops, count=9)] == [1, 2, 0, 5]


def test_worst_examples_are_in_order_and_differ() -> None:
    assert worst_examples(np.array([0.0, 0.3, 0.1, 0.0, 0.2]), count=9) == [
        WorstExample(1, 0.3),
        WorstExample(4, 0.2),
        WorstExample(2, 0.1),
    ]
    assert [found.index for found in worst_examples(np.array([0.1, 0.3, 0.2]), count=2)] == [1, 2]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_tables_hold_what_was_found(tmp_path: Path) -> None:
    write_changes(Changes(find_flips(LABELS, FP32, FILE), class_drops(LABELS, FP32, FILE)), tmp_path)
    flips, classes = rows(tmp_path / "flips.csv"), rows(tmp_path / "classes.csv")
    assert flips[1] == {
        "index": "2",
        "label": "0",
        "choice_fp32": "0",
        "choice_file": "2",
        "right_fp32": "True",
        "right_file": "False",
    }
    assert [(int(row["label"]), int(row["examples"]), float(row["drop"])) for row in classes] == [
        (0, 4, 0.25),
        (1, 2, 0.5),
        (2, 2, -0.5),
    ]
    assert not (tmp_path / "worst.csv").exists()


def test_tables_of_an_earlier_answer_are_removed(tmp_path: Path) -> None:
    write_changes(Changes(find_flips(LABELS, FP32, FILE), class_drops(LABELS, FP32, FILE)), tmp_path)
    write_changes(Changes(worst=[WorstExample(3, 0.5)]), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["worst.csv"]
    assert rows(tmp_path / "worst.csv") == [{"index": "3", "divergence": "0.5"}]


@pytest.fixture
def shifted(bench: Bench, baseline: Measurement) -> np.ndarray:
    """FP32's outputs on the search set, and every tenth decided for class 3."""
    outputs = bench.evaluator.reference["search"].copy()
    outputs[::10, 3] += 1000
    return outputs


def test_what_counts_as_right_is_the_label_or_fp32(bench: Bench, shifted: np.ndarray) -> None:
    fp32, labels = bench.evaluator.reference["search"].argmax(1), bench.evaluator.targets["search"]
    expected = [at for at in range(0, len(shifted), 10) if fp32[at] != 3]
    by_label = find_changes(bench.evaluator, shifted, "search")
    by_fp32 = find_changes(replace(bench.evaluator, metric=Agreement()), shifted, "search")
    for found, right in ((by_label, labels), (by_fp32, fp32)):
        assert [flip.index for flip in found.flips] == expected
        assert [flip.label for flip in found.flips] == right[expected].tolist()
        assert sum(row.examples for row in found.classes) == len(shifted)
    assert all(row.accuracy_fp32 == 1 for row in by_fp32.classes)
    assert any(row.accuracy_fp32 < 1 for row in by_label.classes)


def test_outputs_that_are_no_scores_have_worst_examples(bench: Bench, shifted: np.ndarray) -> None:
    found = find_changes(replace(bench.evaluator, metric=Cosine()), shifted, "search")
    assert (found.flips, found.classes) == ((), ())
    assert sorted(row.index for row in found.worst) == list(range(0, len(shifted), 10))
    power = np.square(bench.evaluator.reference["search"], dtype=np.float64).mean()
    assert found.worst[0].divergence == pytest.approx(1000**2 / 10 / power, rel=1e-4)
