"""What the user brings is refused in one line when it cannot work, before anything is computed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autocompress import Task
from autocompress.errors import DataError, ModelError
from autocompress.task import Examples, check_labels


def batches(count: int, seed: int, size: int = 4) -> list[tuple[Tensor, Tensor]]:
    """`count` examples of shape (3,) with labels 0 to 2, in batches."""
    inputs = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))
    return [(inputs[at : at + size], torch.arange(at, min(at + size, count)) % 3) for at in range(0, count, size)]


def make(**changes: Any) -> Task:
    parts: dict[str, Any] = {
        "model": nn.Linear(3, 3),
        "example_input": torch.zeros(1, 3),
        "calibration": batches(8, 0),
        "search": batches(10, 1),
        "report": batches(12, 2),
    }
    return Task(**{**parts, **changes})


def test_sets_hold_every_example_in_order() -> None:
    task = make(search=iter(batches(10, 1)))
    assert {name: len(examples) for name, examples in task.sets.items()} == {"calibration": 8, "search": 10, "report": 12}
    expected = torch.cat([inputs for inputs, _ in batches(10, 1)])
    np.testing.assert_array_equal(task.sets["search"].inputs, expected.numpy())
    assert task.sets["search"].targets.tolist() == [i % 3 for i in range(10)]
    again = [part.tolist() for _, part in task.sets["search"].batches(3)]
    assert again == [[0, 1, 2], [0, 1, 2], [0, 1, 2], [0]]


def test_inputs_become_float32() -> None:
    doubles = [(inputs.double(), targets) for inputs, targets in batches(8, 0)]
    assert make(calibration=doubles).sets["calibration"].inputs.dtype == np.float32


def test_token_ids_stay_integers_in_every_set() -> None:
    ids = torch.arange(30, dtype=torch.int32).reshape(10, 3)
    labels = torch.arange(10) % 3

    def part(start: int, stop: int) -> list[tuple[Tensor, Tensor]]:
        return [(ids[start:stop], labels[start:stop])]

    sets = {"calibration": part(0, 2), "search": part(2, 5), "report": [(ids[5:].float(), labels[5:])]}
    task = make(model=nn.Embedding(30, 3), example_input=ids[:1], **sets)
    assert task.example_input.dtype == torch.int64
    assert {examples.inputs.dtype for examples in task.sets.values()} == {np.dtype(np.int64)}
    np.testing.assert_array_equal(task.sets["report"].inputs, ids[5:].numpy())


def test_pixels_in_bytes_become_float32() -> None:
    pixels = [(torch.zeros(4, 3, dtype=torch.uint8), torch.zeros(4))]
    task = make(example_input=pixels[0][0], calibration=pixels)
    assert task.example_input.dtype == torch.float32
    assert task.sets["calibration"].inputs.dtype == np.float32


def test_model_is_put_into_eval_mode() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout())
    assert not make(model=model.train()).model.training


@pytest.mark.parametrize("name", ["calibration", "search", "report"])
@pytest.mark.parametrize(
    "empty", [[], [(torch.zeros(0, 3), torch.zeros(0))], Examples(np.zeros((0, 3), np.float32), np.zeros(0))]
)
def test_empty_set_is_refused(name: str, empty: Any) -> None:
    with pytest.raises(DataError, match=rf"task\.{name}: no examples; expected an iterable of \(inputs, targets\) batches"):
        make(**{name: empty})


@pytest.mark.parametrize("name", ["calibration", "search", "report"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("collected", [False, True])
def test_inputs_that_are_not_finite_are_refused(name: str, value: float, collected: bool) -> None:
    bad = batches(8, 5)
    bad[1][0][2, 1] = value
    source: Iterable[Any] = bad
    if collected:
        source = Examples(torch.cat([x for x, _ in bad]).numpy(), torch.cat([y for _, y in bad]).numpy())
    with pytest.raises(DataError, match=rf"task\.{name}: inputs contain NaN or infinity"):
        make(**{name: source})


@pytest.mark.parametrize(
    ("batch", "problem"),
    [
        (torch.zeros(4, 3), "batch 0 is Tensor; expected a pair"),
        ((torch.zeros(4, 3),), "batch 0 is tuple; expected a pair"),
        ((torch.zeros(4, 3), torch.zeros(3)), "batch 0 has 4 inputs and 3 targets"),
        ((torch.zeros(3), 1), r"batch 0 has no batch axis; .* one example .* DataLoader"),
        ((torch.zeros(4, 5), torch.zeros(4)), r"inputs have shape \(5,\); the example input has \(3,\)"),
    ],
)
def test_batch_of_another_form_is_refused(batch: Any, problem: str) -> None:
    with pytest.raises(DataError, match=rf"task\.search: {problem}"):
        make(search=[batch])


def test_batches_of_different_shapes_are_refused() -> None:
    with pytest.raises(DataError, match=r"task\.report: batch 1 has inputs of shape \(5,\), batch 0 of \(3,\)"):
        make(report=[(torch.zeros(4, 3), torch.zeros(4)), (torch.zeros(4, 5), torch.zeros(4))])


def test_overlap_of_search_and_report_is_refused() -> None:
    shared = batches(10, 1)
    with pytest.raises(DataError, match="10 examples are in both search and report"):
        make(search=shared, report=[*batches(12, 2), *reversed(shared)])


@pytest.mark.parametrize(("equal", "refused"), [(1, False), (2, True)])
def test_one_equal_example_in_a_hundred_is_an_accident(equal: int, refused: bool) -> None:
    search = batches(100, 1, size=100)
    report = batches(50, 2, size=50)
    report[0][0][:equal] = search[0][0][-equal:]
    if refused:
        with pytest.raises(DataError, match="2 examples are in both"):
            make(search=search, report=report)
    else:
        assert len(make(search=search, report=report).sets["report"]) == 50


def test_calibration_may_share_examples() -> None:
    assert len(make(calibration=batches(10, 1)).sets["calibration"]) == 10


@pytest.mark.parametrize(("low", "high"), [(-1, 2), (0, 3)])
def test_labels_outside_the_classes_are_refused(low: int, high: int) -> None:
    task = make(report=[(torch.ones(3, 3), torch.tensor([low, 1, high]))])
    with pytest.raises(DataError, match=rf"task\.report: labels run from {low} to {high}; the model has 3 classes \(0 to 2\)"):
        check_labels(task, outputs=3)


def test_labels_within_the_classes_pass() -> None:
    check_labels(make(), outputs=3)


@pytest.mark.parametrize("targets", [torch.full((3,), 7.5), torch.full((3, 2), 9)])
def test_targets_that_are_no_labels_are_left_alone(targets: Tensor) -> None:
    check_labels(make(report=[(torch.ones(3, 3), targets)]), outputs=3)


def test_digest_follows_data_and_metric_but_not_the_batches() -> None:
    assert make().digest() == make(search=batches(10, 1, size=7)).digest() == make(name="other").digest()
    changed = batches(10, 1)
    changed[0][1][0] = 2
    others = [make(metric="top5"), make(search=batches(10, 3)), make(search=changed), make(calibration=batches(8, 9))]
    assert len({task.digest() for task in [make(), *others]}) == 1 + len(others)


def test_what_numpy_lacks_becomes_float32() -> None:
    halves = [(inputs.bfloat16().requires_grad_(), targets) for inputs, targets in batches(8, 0)]
    task = make(example_input=torch.zeros(1, 3, dtype=torch.bfloat16), calibration=halves)
    assert task.example_input.dtype == torch.float32
    assert task.sets["calibration"].inputs.dtype == np.float32


@pytest.mark.parametrize(
    ("example", "problem"),
    [
        (torch.tensor(1.0), r"shape \(\); expected one input batch"),
        (torch.zeros(0, 3), r"shape \(0, 3\); expected one input batch"),
        ("words", "str is no tensor of numbers"),
        ([[1.0, 2.0], [3.0]], "list is no tensor of numbers"),
        (torch.zeros(1, 3, dtype=torch.complex64), "complex numbers"),
        (torch.zeros(1, 3, device="meta"), "Tensor is no tensor of numbers"),
    ],
    ids=["no axis", "empty", "text", "ragged", "complex", "meta"],
)
def test_an_example_that_is_no_batch_of_numbers_is_refused(example: Any, problem: str) -> None:
    with pytest.raises(DataError, match=rf"task\.example_input: {problem}") as error:
        make(example_input=example)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_targets_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(DataError, match=r"task\.report: targets contain NaN or infinity"):
        make(report=[(torch.zeros(2, 3), torch.tensor([1.0, value]))])


def test_a_model_without_finite_float32_weights_is_refused() -> None:
    for model in (nn.Linear(3, 3).half(), nn.Linear(3, 3, device="meta"), "resnet18"):
        with pytest.raises(ModelError):
            make(model=model)
