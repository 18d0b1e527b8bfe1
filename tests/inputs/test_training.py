from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autocompress.errors import DataError, ModelError
from autocompress.inputs.data import DataSettings, Splits, load_splits
from autocompress.inputs.models import ModelSettings, build_model
from autocompress.inputs.training import cached_model, train_baseline
from autocompress.task import Examples

REAL = Path(os.environ.get("AUTOCOMPRESS_DATA") or Path(__file__).parents[3] / "shared" / "data")
SETTINGS = ModelSettings(name="net", factory="torch.nn:Linear", kwargs={"in_features": 2, "out_features": 2}, train_epochs=3)


def accuracy(model: nn.Module, examples: Examples) -> float:
    with torch.inference_mode():
        hits = [(model(inputs).argmax(1) == targets).float() for inputs, targets in examples.batches(256)]
    return torch.cat(hits).mean().item()


def examples(count: int = 65) -> Examples:
    """Two classes that a line separates; 65 leaves a last batch of a single example."""
    inputs = np.random.default_rng(0).standard_normal((count, 2)).astype(np.float32)
    return Examples(inputs, (inputs[:, 0] > inputs[:, 1]).astype(np.int64))


def splits(train: Examples | None) -> Splits:
    return Splits(calibration=examples(4), search=examples(4), report=examples(4), train=train)


def train(seed: int) -> Tensor:
    model = train_baseline(build_model(SETTINGS), examples(), epochs=3, seed=seed)
    return model.state_dict()["weight"]


def test_training_depends_on_its_seed_alone() -> None:
    threads, outside = torch.get_num_threads(), torch.get_rng_state()
    first = train(seed=1)
    torch.manual_seed(99)
    assert torch.equal(first, train(seed=1))
    assert not torch.equal(first, train(seed=2))
    assert torch.get_num_threads() == threads
    torch.set_rng_state(outside)


def test_training_learns_and_reports_each_epoch() -> None:
    seen: list[tuple[int, int, float]] = []
    model = train_baseline(
        build_model(SETTINGS), examples(640), epochs=8, learning_rate=0.1, report=lambda *epoch: seen.append(epoch)
    )
    assert accuracy(model, examples(640)) > 0.97
    assert not model.training
    assert [(epoch, epochs) for epoch, epochs, _ in seen] == [(epoch, 8) for epoch in range(1, 9)]
    assert seen[-1][2] < seen[0][2]


def test_labels_outside_the_classes_are_refused_before_training() -> None:
    wrong = replace(examples(), targets=np.arange(65))
    with pytest.raises(DataError, match=r"labels run from 0 to 64; the model has 2 classes \(0 to 1\)"):
        train_baseline(build_model(SETTINGS), wrong, epochs=1)


def test_the_second_start_finds_the_checkpoint(tmp_path: Path) -> None:
    epochs: list[int] = []
    first = cached_model(SETTINGS, splits(examples()), tmp_path, lambda epoch, _, __: epochs.append(epoch))
    again = cached_model(SETTINGS, splits(examples()), tmp_path, lambda epoch, _, __: epochs.append(epoch))
    assert epochs == [1, 2, 3]
    assert torch.equal(first.state_dict()["weight"], again.state_dict()["weight"])
    assert [path.suffix for path in tmp_path.iterdir()] == [".pt"]


def test_other_settings_or_data_train_anew(tmp_path: Path) -> None:
    cached_model(SETTINGS, splits(examples()), tmp_path)
    cached_model(replace(SETTINGS, seed=1), splits(examples()), tmp_path)
    cached_model(SETTINGS, splits(examples(64)), tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    cached_model(SETTINGS, splits(examples()), tmp_path)
    (checkpoint,) = tmp_path.iterdir()
    checkpoint.write_bytes(b"cut")
    with pytest.raises(ModelError, match=checkpoint.name):
        cached_model(SETTINGS, splits(examples()), tmp_path)


def test_training_without_examples_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"model\.train_epochs=3: .*data\.train_size"):
        cached_model(SETTINGS, splits(None), tmp_path)


def test_a_state_dict_needs_no_training(tmp_path: Path) -> None:
    torch.save(build_model(SETTINGS).state_dict(), tmp_path / "given.pt")
    model = cached_model(replace(SETTINGS, state_dict=str(tmp_path / "given.pt")), splits(None), tmp_path / "cache")
    assert torch.equal(model.state_dict()["weight"], build_model(SETTINGS).state_dict()["weight"])
    assert not (tmp_path / "cache").exists()


def test_a_convolutional_net_learns_the_digits() -> None:
    data = load_splits(DataSettings(factory="autocompress_plugins.datasets:digits", train_size=-1, search_size=400))
    model = build_model(ModelSettings(factory="autocompress_plugins.zoo:digits_net"))
    assert data.train is not None
    train_baseline(model, data.train, epochs=2)
    assert accuracy(model, data.search) > 0.8
    assert model.state_dict()["3.conv1.weight"].is_contiguous()


@pytest.mark.realdata
@pytest.mark.skipif(not (REAL / "resnet20_cifar10.pt").is_file(), reason="set AUTOCOMPRESS_DATA")
def test_resnet20_reaches_its_published_accuracy(tmp_path: Path) -> None:
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    data = DataSettings(root=str(REAL), folder_test="cifar10-test.zip", search_size=500, report_size=10)
    data.image.mean, data.image.std = mean, std
    settings = ModelSettings(factory="autocompress_plugins.zoo:resnet20", state_dict=str(REAL / "resnet20_cifar10.pt"))
    loaded = load_splits(data)
    assert accuracy(cached_model(settings, loaded, tmp_path), loaded.search) == pytest.approx(0.8845, abs=0.035)
