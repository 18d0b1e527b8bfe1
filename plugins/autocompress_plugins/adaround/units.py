"""Which parts of a module are reconstructed as a whole."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn


def find_units(module: nn.Module, layers: Collection[str], largest: int, example: Tensor) -> list[str]:
    """The largest parts with at most `largest` layers, in the order of execution; together they have each layer once.

    A part must be called once, with a tensor in and a tensor out whose first axis is the batch. Layers outside of such parts
    are left out.

    Args:
        example: inputs, shape (N, ...) with N > 1.
    """
    order = _called_once(module, example)
    within = {name: sum(f"{layer}.".startswith(f"{name}.") for layer in layers) for name in order}
    fitting = {name for name, count in within.items() if 0 < count <= largest}
    return [name for name in order if name in fitting and not any(parent in fitting for parent in _parents(name))]


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts))]


def _called_once(module: nn.Module, example: Tensor) -> list[str]:
    """Names of the parts that are called once with batches, in the order of their calls."""
    calls: dict[str, list[bool]] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...], object], None]:
        def hook(_: nn.Module, inputs: tuple[Any, ...], output: object) -> None:
            calls.setdefault(name, []).append(all(_is_batch(value, len(example)) for value in (*inputs[:1], output)))

        return hook

    hooks = [part.register_forward_hook(watch(name)) for name, part in module.named_modules() if name]
    with torch.no_grad():
        module(example)
    for hook in hooks:
        hook.remove()
    return [name for name, usable in calls.items() if usable == [True]]


def _is_batch(value: object, size: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 1 and len(value) == size
