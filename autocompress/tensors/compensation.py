"""Compensation: the weights that stay take over, as far as they can, what the removed ones computed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from autocompress.tensors.stats import LayerStats

DAMPING = 0.01
"""Added to the diagonal of the second moments, as a share of its mean; SparseGPT and GPTQ take the same."""

TOLERANCE = 3e-3
"""Residual at which the solver stops, as a share of the first one. What is left to gain is about its square."""

STEPS = 300
"""Most steps of the solver; each is one product of the layer's weight with its second moments."""


def compensate(weight: Tensor, mask: Tensor, stats: LayerStats) -> Tensor:
    """The weights that are left, moved so that each output changes least: least squares for the given mask.

    For one output channel with weights w, of which S stay and R go, and second moments H = E[x x^T] of its inputs, the mean
    squared change of the output is (w - v) H (w - v)^T. It is smallest for

        v_S = w_S + (H_SS + damping)^-1 H_SR w_R

    (Hassibi and Stork 1993, "Optimal Brain Surgeon", with all of R removed at once; Frantar and Alistarh 2023, SparseGPT,
    arXiv 2301.00774, equation 2). Damping pulls v_S towards w_S, not towards 0: weights on inputs that calibration never saw
    stay as they are. A weight that is 0 where the mask is False already is left alone, so that fine-tuned weights keep.

    Args:
        weight: float32, the layer's shape.
        mask: bool, the same shape; False entries become exactly 0.
    """
    layer = stats.layer
    moved, kept = weight.movedim(layer.channel_axis, 0), mask.movedim(layer.channel_axis, 0)
    if not moved.numel():
        return weight.clone()
    rows, kept = moved.flatten(1), kept.flatten(1)  # (channels, d)
    size = rows.abs().amax(1, keepdim=True).clamp_min(1e-30)
    product = _masked_product(stats.input_second_moment, kept)
    change = _solved(product, product(rows / size * ~kept))
    return (rows * kept + size * change).reshape(moved.shape).movedim(0, layer.channel_axis)


def _masked_product(moments: Tensor, kept: Tensor) -> Callable[[Tensor], Tensor]:
    """Multiplies each row v, (channels, d), with its group's damped moments in units of their mean, and keeps v H at `kept`."""
    diagonal = moments.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-30)
    damped = moments / diagonal[:, None, None] + DAMPING * torch.eye(moments.shape[1])

    def product(rows: Tensor) -> Tensor:
        grouped = rows.reshape(len(damped), -1, rows.shape[1])
        return (grouped @ damped).reshape(rows.shape) * kept

    return product


def _solved(product: Callable[[Tensor], Tensor], right: Tensor) -> Tensor:
    """Solve `product(x) = right` for each row by conjugate gradients (Hestenes and Stiefel 1952): (channels, d).

    All rows share their second moments but no two share a mask: a factorization for each row costs several times more.
    """
    found, residual, direction = torch.zeros_like(right), right, right
    square = right.square().sum(1, keepdim=True)
    enough = TOLERANCE**2 * square
    for _ in range(STEPS):
        if bool((square <= enough).all()):
            break
        image = product(direction)
        step = square / (direction * image).sum(1, keepdim=True).clamp_min(1e-30)
        found, residual = found + step * direction, residual - step * image
        previous, square = square, residual.square().sum(1, keepdim=True)
        direction = residual + square / previous.clamp_min(1e-30) * direction
    return found
