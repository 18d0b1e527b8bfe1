"""The training loop: time-limited, seeded, with a held-out loss that decides when to stop and what to keep."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from autocompress import Examples, call_factory
from autocompress.errors import DataError, ModelError
from autocompress_plugins.finetune.depthwise import FastDepthwise

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from autocompress import Recoverable

WARM_UP = 0.05
"""Share of the training in which the learning rate rises."""

HELD_OUT = 1000
"""At most so many examples, and a tenth of all, are kept for the loss that decides."""

CLIP_NORM = 5.0

SURE = 20
"""Steps after which the pace is known."""


class Recipe(Protocol):
    """What the loop needs of the configuration; see `FineTune`."""

    seconds: float
    epochs: int
    patience: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    distill: float
    temperature: float
    teacher: str
    flip: bool
    shift: int


@dataclass
class _Clock:
    """How far the training is: by its steps, or by the time where that will run out first."""

    steps: int
    seconds: float
    step: int = 0
    start: float = field(default_factory=time.monotonic)

    @property
    def done(self) -> float:
        """0 at the start, 1 at the end; depends on the time only where the limit binds, so that a seed decides the rest."""
        by_time = (time.monotonic() - self.start) / self.seconds
        by_step = self.step / self.steps
        return min(1.0, by_time if by_time >= 1 or (self.step >= SURE and by_time > by_step) else by_step)

    def rate(self) -> float:
        """The learning rate as a share of its peak."""
        done = self.done
        return min(1.0, done / WARM_UP + 0.01) * (1 + math.cos(math.pi * done)) / 2


@dataclass
class _Best:
    """The state with the lowest held-out loss."""

    loss: float = math.inf
    state: dict[str, Tensor] = field(default_factory=dict)
    age: int = 0

    def see(self, loss: float, module: nn.Module) -> None:
        """Keep the module's state when it is the best so far."""
        self.age += 1
        if loss < self.loss:
            self.loss, self.age, self.state = loss, 0, copy.deepcopy(module.state_dict())


def train(module: nn.Module, candidate: Recoverable, recipe: Recipe) -> None:
    """Train a module in place; it ends with the weights of the epoch whose held-out loss is lowest, in eval mode."""
    examples = candidate.task.training()
    if examples is None:
        raise DataError("recover.finetune: no training examples; set data.train_size, or Task(train=...)")
    lesson = _Lesson(_teacher(candidate, recipe), candidate, recipe)
    held = min(HELD_OUT, len(examples) // 10)
    taught, kept = np.arange(held, len(examples)), np.arange(held)
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, recipe.learning_rate, weight_decay=recipe.weight_decay)
    per_epoch = max(1, len(taught) // recipe.batch_size)
    clock, best = _Clock(recipe.epochs * per_epoch, recipe.seconds), _Best()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        torch.manual_seed(candidate.seed)
        stack.enter_context(FastDepthwise())
        module.to(memory_format=torch.channels_last)
        for epoch in range(1, recipe.epochs + 1):
            loss = _epoch(module.train(), lesson, examples, taught, optimizer, clock, recipe)
            best.see(_held_out(module.eval(), lesson, examples, kept, recipe), module)
            candidate.progress.training("fine-tuning", epoch, recipe.epochs, loss, best.loss, clock.done)
            if clock.done >= 1 or best.age >= recipe.patience:
                break
    module.load_state_dict(best.state)
    module.eval().to(memory_format=torch.contiguous_format)


def _epoch(
    module: nn.Module,
    lesson: _Lesson,
    examples: Examples,
    indices: NDArray[np.int64],
    optimizer: torch.optim.Optimizer,
    clock: _Clock,
    recipe: Recipe,
) -> float:
    """One pass, or what the time allows of it; the mean loss."""
    losses = []
    for batch in _shuffled(indices, recipe.batch_size):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * clock.rate()
        loss = lesson.loss(module, examples, batch, augment=True)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(module.parameters(), CLIP_NORM)
        optimizer.step()
        losses.append(loss.item())
        clock.step += 1
        if clock.done >= 1:
            break
    return float(np.mean(losses))


def _shuffled(indices: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    """Batches in random order; a last one that is not full is left out, unless it is the only one."""
    order = indices[torch.randperm(len(indices)).numpy()]
    for start in range(0, max(1, len(order) - size + 1), size):
        yield order[start : start + size]


@torch.no_grad()
def _held_out(module: nn.Module, lesson: _Lesson, examples: Examples, indices: NDArray[np.int64], recipe: Recipe) -> float:
    """The mean loss on examples that are not trained on."""
    losses = [
        float(lesson.loss(module, examples, indices[start : start + recipe.batch_size], augment=False))
        for start in range(0, len(indices), recipe.batch_size)
    ]
    return float(np.mean(losses)) if losses else 0.0


def _teacher(candidate: Recoverable, recipe: Recipe) -> nn.Module:
    if not recipe.teacher:
        return candidate.task.teacher or candidate.task.model
    teacher = call_factory("recover.finetune.teacher", recipe.teacher, {})
    if not isinstance(teacher, nn.Module):
        raise ModelError(f"recover.finetune.teacher: {recipe.teacher} returned {type(teacher).__name__}; expected an nn.Module")
    return teacher


class _Lesson:
    """The loss of a batch: what the teacher says, what the labels say."""

    def __init__(self, teacher: nn.Module, candidate: Recoverable, recipe: Recipe) -> None:
        self._teacher = copy.deepcopy(teacher).eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self._task, self._recipe = candidate.task, recipe
        # Without hardware for it, bfloat16 is computed in float32 at a fraction of float32's pace.
        self._autocast = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())

    def loss(self, module: nn.Module, examples: Examples, indices: NDArray[np.int64], *, augment: bool) -> Tensor:
        """Mean loss of the examples, a scalar."""
        inputs = torch.from_numpy(examples.inputs[indices])
        inputs = self._augmented(inputs) if augment else inputs
        inputs = inputs.to(memory_format=torch.channels_last) if inputs.dim() == 4 else inputs
        share = self._recipe.distill
        outputs = self._run(module, inputs)
        total = torch.zeros(())
        if share > 0:
            with torch.no_grad():
                taught = self._run(self._teacher, inputs)
            total = total + share * _distance(outputs, taught, self._recipe.temperature)
        if share < 1:
            total = total + (1 - share) * self._task.loss(outputs, torch.from_numpy(examples.targets[indices]))
        return total

    def _run(self, module: nn.Module, inputs: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self._autocast):
            outputs: Tensor = module(inputs)
        return outputs.float()

    def _augmented(self, inputs: Tensor) -> Tensor:
        if self._recipe.flip:
            mirrored = torch.rand(len(inputs)) < 0.5
            inputs = torch.where(mirrored[:, None, None, None], inputs.flip(3), inputs)
        if self._recipe.shift:
            reach = self._recipe.shift
            down, right = torch.randint(0, 2 * reach + 1, (2,)).tolist()
            padded = functional.pad(inputs, (reach,) * 4)
            inputs = padded[:, :, down : down + inputs.shape[2], right : right + inputs.shape[3]]
        return inputs


def _distance(outputs: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """Softened Kullback-Leibler divergence of class scores (N, classes), else the mean squared error."""
    if outputs.dim() != 2 or outputs.shape[1] < 2:
        return functional.mse_loss(outputs, taught)
    student, teacher = (functional.log_softmax(scores / temperature, dim=1) for scores in (outputs, taught))
    return functional.kl_div(student, teacher, log_target=True, reduction="batchmean") * temperature**2
