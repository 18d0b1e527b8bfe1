"""Trains a small baseline where no trained weights exist, and keeps its checkpoint."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from autocompress.errors import DataError
from autocompress.inputs.data import Splits
from autocompress.inputs.models import ModelSettings, build_model, load_weights
from autocompress.task import Batch, Examples

EpochReport = Callable[[int, int, float], None]
"""Called after each epoch with its number from 1, the number of epochs, and the mean loss."""

RECIPE = 1
"""Part of every cached checkpoint's name: count up whenever training changes its result."""


def train_baseline(
    model: nn.Module,
    examples: Examples,
    epochs: int,
    seed: int = 0,
    *,
    batch_size: int = 32,
    learning_rate: float = 3e-3,
    report: EpochReport | None = None,
) -> nn.Module:
    """Train a classifier in place with AdamW on a one-cycle schedule.

    The same seed gives the same weights: it runs on one thread, which small batches hardly feel, so that the result depends
    neither on the number of cores nor, where the machine is busy with other things, its pace on theirs.

    Args:
        model: maps (N, ...) to logits (N, classes); on the CPU.
        examples: targets are class numbers, shape (N,).
        learning_rate: its peak.

    Returns:
        The same module, in eval mode.

    Raises:
        DataError: a target is not one of the model's classes.
    """
    _check_targets(model, examples)
    steps = epochs * len(list(_slices(len(examples), batch_size)))
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    with _one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.train().to(memory_format=torch.channels_last)  # a quarter faster
        for epoch in range(1, epochs + 1):
            losses = [_step(model, batch, optimizer, schedule) for batch in _shuffled(examples, batch_size)]
            if report:
                report(epoch, epochs, float(np.mean(losses)))
    return model.eval().to(memory_format=torch.contiguous_format)


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _step(
    model: nn.Module, batch: Batch, optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.OneCycleLR
) -> float:
    inputs, targets = batch
    loss = functional.cross_entropy(model(inputs), targets)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it without types
    optimizer.step()
    schedule.step()
    return loss.item()


def _shuffled(examples: Examples, batch_size: int) -> Iterator[Batch]:
    order = torch.randperm(len(examples)).numpy()
    for part in _slices(len(examples), batch_size):
        chosen = order[part]
        yield torch.from_numpy(examples.inputs[chosen]), torch.from_numpy(examples.targets[chosen])


def _slices(count: int, size: int) -> Iterator[slice]:
    """Equal batches but for the last; a last one of a single example, which batch norm cannot train on, is left out."""
    for start in range(0, count, size):
        if count - start > 1:
            yield slice(start, start + size)


def _check_targets(model: nn.Module, examples: Examples) -> None:
    with torch.inference_mode():
        classes = model.eval()(torch.from_numpy(examples.inputs[:1])).shape[1]
    low, high = examples.targets.min(), examples.targets.max()
    if low < 0 or high >= classes:
        raise DataError(f"data: training labels run from {low} to {high}; the model has {classes} classes (0 to {classes - 1})")


def cached_model(settings: ModelSettings, splits: Splits, cache: Path, report: EpochReport | None = None) -> nn.Module:
    """The configured model, trained first when it asks for epochs and has no state dict.

    Args:
        cache: folder of checkpoints; one is found again by the settings, the model's shapes and the training data.

    Raises:
        ConfigError, ModelError: the model cannot be built as configured.
        DataError: training is asked for without training examples, or they do not fit the model.
    """
    model = build_model(settings)
    if settings.state_dict or settings.train_epochs <= 0:
        return model
    if splits.train is None:
        raise DataError(
            f"model.train_epochs={settings.train_epochs}: nothing to train on; set data.train_size or model.state_dict"
        )
    checkpoint = cache / f"{settings.name}-{_key(settings, model, splits.train)}.pt"
    if checkpoint.is_file():
        load_weights(model, checkpoint)
        return model
    train_baseline(model, splits.train, settings.train_epochs, settings.seed, report=report)
    _save(model, checkpoint)
    return model


def _key(settings: ModelSettings, model: nn.Module, train: Examples) -> str:
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    written = json.dumps([RECIPE, asdict(settings), shapes, train.digest], sort_keys=True, default=str)
    return hashlib.sha256(written.encode()).hexdigest()[:16]


def _save(model: nn.Module, path: Path) -> None:
    """Write under another name and rename, so that an interrupted write is never found as a checkpoint."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as part:
        torch.save(model.state_dict(), part)
    Path(part.name).replace(path)
