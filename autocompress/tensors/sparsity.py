"""Where a pruner may cut within a layer, and how much: from scores to a mask."""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor

from autocompress.errors import PolicyError
from autocompress.network.graph import Layer
from autocompress.policy import UNSTRUCTURED, LayerPolicy

CHANNEL = "channel"
_N_OF_M = re.compile(r"([1-9]\d*):([1-9]\d*)")


def n_of_m(structure: str) -> tuple[int, int] | None:
    """(n, m) of a structure such as `2:4`; None when it is none."""
    found = _N_OF_M.fullmatch(structure)
    numbers = (int(found[1]), int(found[2])) if found else (1, 1)
    return numbers if numbers[0] < numbers[1] else None


def weight_mask(score: Tensor, layer: Layer, policy: LayerPolicy) -> Tensor:
    """Which single weights stay: bool, shape of the score.

    Args:
        score: float32, shape of the weight; higher stays.

    Raises:
        PolicyError: the structure is not one, or has no use for a threshold.
    """
    numbers = n_of_m(policy.structure)
    if numbers is not None and policy.threshold is None:
        return _best_of_each(score, layer, *numbers)
    if policy.structure != UNSTRUCTURED:
        wanted = "'unstructured' with a share or a threshold, or n:m with neither, for example 2:4"
        raise PolicyError(f"structure '{policy.structure}' with threshold {policy.threshold}: expected {wanted}")
    return largest(score, policy.sparsity) if policy.threshold is None else score > policy.threshold


def share_removed(layer: Layer, structure: str) -> float:
    """Share of a layer's weights that `n:m` removes; fewer than m neighbours at the end of a row lose less."""
    numbers = n_of_m(structure)
    assert numbers is not None, f"structure {structure} has no share of its own"
    return 1 - float(_best_of_each(torch.zeros(layer.shape), layer, *numbers).double().mean())


def largest(score: Tensor, sparsity: float) -> Tensor:
    """Mask of the entries that stay when the share `sparsity` with the lowest score is removed; exact also with ties."""
    mask = torch.ones(score.numel(), dtype=torch.bool)
    mask[score.flatten().argsort(stable=True)[: round(sparsity * score.numel())]] = False
    return mask.reshape(score.shape)


def _best_of_each(score: Tensor, layer: Layer, n: int, m: int) -> Tensor:
    """The n highest of each m neighbours; of fewer neighbours at the end of a row, the same share, rounded up.

    Neighbours are input channels at the same place of the window, as sparse kernels have it, or places of the window where a
    layer has fewer input channels than m.
    """
    moved = score.movedim(layer.channel_axis, 0)  # (channels, inputs, *window)
    order = moved.reshape(*moved.shape[:2], math.prod(moved.shape[2:]))
    by_input = order.shape[1] >= m
    order = order.transpose(1, 2) if by_input else order
    rows = order.reshape(math.prod(order.shape[:2]), order.shape[2])
    parts = [rows[:, start : start + m] for start in range(0, rows.shape[1], m)]
    mask = torch.cat([_top(part, math.ceil(n * part.shape[1] / m)) for part in parts], dim=1)
    mask = mask.reshape(order.shape)
    mask = mask.transpose(1, 2) if by_input else mask
    return mask.reshape(moved.shape).movedim(0, layer.channel_axis)


def _top(score: Tensor, count: int) -> Tensor:
    """Mask of the `count` highest of each row; of equal ones the first."""
    order = score.argsort(dim=1, descending=True, stable=True)[:, :count]
    return torch.zeros_like(score, dtype=torch.bool).scatter(1, order, True)
