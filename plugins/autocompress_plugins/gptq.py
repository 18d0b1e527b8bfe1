"""Quantizer `gptq`: rounding in which each weight makes up for the errors of those rounded before it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from autocompress import (
    QuantizedTensor,
    Quantizer,
    ScaleRows,
    check_bits,
    hookimpl,
    kernel_levels,
    lloyd_max,
    nearest,
    positive_scale,
)
from autocompress.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from autocompress import Layer, LayerStats

CELLS = ("uniform", "kmeans")

LARGEST = 127
"""Of the numbers that an INT8 kernel computes with."""

SHRINKS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
"""Scales that are tried, as fractions of the covering one; least squares refines the best. At 2 bits the last is the best."""

NUDGES = (1.05, 1.0, 0.95)
"""Scales that are tried with a refitted codebook, as fractions of the present one."""

ROUNDS = 3
"""How often codebook and codes are chosen for each other in turn; a fourth round gains less than one part in a hundred."""

SWEEPS = 2
"""Passes over all weights that choose each code again given all others; later ones change next to nothing."""

BLOCK = 64
"""Columns whose errors are passed on one by one; those of a block reach the columns behind it in one matrix product."""


@dataclass
class Gptq(Quantizer):
    """Least error of the layer's output, not of its weights (Frantar et al. 2023, GPTQ, arXiv 2210.17323).

    For an output channel with weights w and codes that stand for v, the mean squared change of the output is
    (w - v) H (w - v)^T with the second moments H = E[x x^T] of its inputs, as im2col orders them. Columns are rounded one by
    one, e = (w_i - v_i) / U_ii with H^-1 = U^T U, and the columns behind take over the error: w_j -= e U_ij (section 3.3).
    On top of the paper:

    * H is what the calibration set supports: its covariance part is shrunk by the layer's `input_shrinkage`, so that a
      classifier of 1,280 inputs seen on 100 images is rounded nearly to nearest and does not learn those images;
    * the scale of each channel is the one of least output error among a few, refitted by least squares, s = v H w / v H v;
    * after that each code is chosen again, given all others, in two sweeps of coordinate descent (compare QuantEase, Behdin et
      al. 2023, arXiv 2309.01885), which removes what the fixed order of the columns cost;
    * `cells=kmeans`: the levels are not even but a codebook of INT8 numbers for the layer, first by k-means, then by least
      squares on the output error: a third less error at the same 4 bits and the same speed where the target expands codebooks.
      Elsewhere its file stores the levels in 8 bits: take `uniform` there.

    A mask is respected: removed weights are 0, and those that stay take over that error too. Costs some ten products of the
    weight with H: for EfficientNet-Lite0 (largest d = 1,280) about 35 seconds of one core, 15 with even cells.

    Attributes:
        cells: `kmeans` or `uniform`. At more than 4 bits, which are stored as 8, cells are always uniform.
        bits: widths on offer, each 2 to 8.
        activation_order: round the columns of the largest inputs first.
        damping: added to the diagonal of H, as a share of its mean.

    Raises:
        ConfigError: cells or a width that there are not, or a damping that leaves H singular.
    """

    name = "gptq"
    compensates = True

    cells: str = "kmeans"
    bits: list[int] = field(default_factory=lambda: [8, 4])
    activation_order: bool = True
    damping: float = 0.01

    def __post_init__(self) -> None:
        check_bits("quantizer.gptq", *self.bits)
        if self.cells not in CELLS:
            raise ConfigError(f"quantizer.gptq.cells='{self.cells}': expected one of {', '.join(CELLS)}")
        if not self.damping > 0:
            raise ConfigError(f"quantizer.gptq.damping={self.damping}: expected more than 0, for example 0.01")

    def bit_widths(self, layer: Layer) -> Sequence[int]:
        """The configured widths; none for an embedding, whose rows are looked up and not summed."""
        return [] if layer.kind == "embedding" else list(self.bits)

    def quantize(self, weight: Tensor, bits: int, stats: LayerStats, mask: Tensor | None = None) -> QuantizedTensor:
        """Codes of the weight's shape, levels or indices into the codebook; scale of shape (channels,), zero point 0."""
        rows = ScaleRows.of(weight, stats.layer, mask)
        if not rows.values.any():
            return rows.quantized(torch.zeros_like(rows.values), rows.values.new_ones(len(rows.values), 1), bits)
        wanted = ScaleRows.of(weight, stats.layer).values  # what the removed weights gave is part of the error
        problem = _Problem.of(wanted, rows.kept, regularized(stats, self.damping), self.activation_order)
        if self.cells == "uniform" or bits > 4:
            even = torch.arange(-(2.0 ** (bits - 1)), 2.0 ** (bits - 1))
            found = problem.solved(even, problem.covering(even), SHRINKS)
            return rows.quantized(problem.in_order(found.steps), problem.scale(found), bits)
        levels, found = _with_codebook(problem, bits)
        codes = nearest(problem.in_order(found.steps), levels)
        return rows.quantized(codes, problem.scale(found), bits, codebook=levels.to(torch.int8))


def regularized(stats: LayerStats, damping: float) -> Tensor:
    """Second moments that a layer's calibration examples support, with a diagonal of mean 1: (groups, d, d), float32."""
    mean, unit = stats.input_mean, torch.eye(stats.input_mean.shape[1])
    outer = mean[:, :, None] * mean[:, None, :]
    covariance = stats.input_second_moment - outer
    share = stats.input_shrinkage[:, None, None]
    moments = (1 - share) * covariance + share * _level(covariance) * unit + outer
    level = _level(moments)
    return torch.where(level > 0, moments / level.clamp_min(1e-30), 0.0) + damping * unit


def _level(moments: Tensor) -> Tensor:
    """Mean of the diagonal, (groups, 1, 1)."""
    return moments.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]


@dataclass(frozen=True)
class _Solution:
    """Chosen values of a problem.

    Attributes:
        steps: values in units of the scale, shape (groups, rows, d).
        scale: in the problem's units, shape (groups, rows, 1).
    """

    steps: Tensor
    scale: Tensor


@dataclass(frozen=True)
class _Problem:
    """Least squares over a few levels: the rows of each group share their second moments.

    Attributes:
        weight: float32 (groups, rows, d), each row in its own unit, so that the smallest channel is as exact as the largest.
        kept: bool, the same shape: entries that may differ from 0.
        moments: (groups, d, d), positive definite.
        inverse_factor: upper U with inverse moments U^T U, (groups, d, d).
        unit: (groups, rows, 1).
        order: what column of the weight each column is, (groups, d).
    """

    weight: Tensor
    kept: Tensor
    moments: Tensor
    inverse_factor: Tensor
    unit: Tensor
    order: Tensor

    @classmethod
    def of(cls, rows: Tensor, kept: Tensor, moments: Tensor, by_activation: bool) -> _Problem:
        groups, width = moments.shape[:2]
        unit = positive_scale(rows.abs().amax(1, keepdim=True) / LARGEST)
        weight, kept = ((part.reshape(groups, -1, width)) for part in (rows / unit, kept))
        order = torch.arange(width).expand(groups, width)
        if by_activation:
            order = moments.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True, stable=True)
            across = order[:, None].expand(-1, weight.shape[1], -1)
            weight, kept = weight.gather(2, across), kept.gather(2, across)
            square = order[:, None].expand(-1, width, -1)
            moments = moments.gather(2, square).gather(1, square.transpose(1, 2))
        factor = torch.linalg.cholesky(moments.double())
        inverse = torch.linalg.cholesky(torch.cholesky_inverse(factor), upper=True).float()
        return cls(weight, kept, moments, inverse, unit.reshape(groups, -1, 1), order)

    def in_order(self, steps: Tensor) -> Tensor:
        """Columns as the weight has them: (groups, rows, d) -> (channels, d)."""
        across = self.order.argsort(dim=1)[:, None].expand_as(steps)
        return steps.gather(2, across).flatten(0, 1)

    def scale(self, found: _Solution) -> Tensor:
        """In the weight's unit, (channels, 1)."""
        return positive_scale((found.scale * self.unit).reshape(-1, 1))

    def covering(self, levels: Tensor) -> Tensor:
        """The least scale for which no weight lies outside the levels."""
        stays = self.weight * self.kept
        low, high = stays.amin(2, keepdim=True), stays.amax(2, keepdim=True)
        scale = (low / levels[0]).maximum(high / levels[-1])
        return scale.where(scale > 0, 1.0)

    def error(self, found: _Solution) -> Tensor:
        """Output error of each row, (groups, rows, 1)."""
        change = self.weight - found.steps * found.scale
        return ((change @ self.moments) * change).sum(2, keepdim=True)

    def solved(self, levels: Tensor, scale: Tensor, factors: Sequence[float]) -> _Solution:
        """Values and scales of least error that are found, from scales of the given fractions of `scale`."""
        trials = [self._compensated(levels, scale * factor) for factor in factors]
        best = torch.stack([self.error(trial) for trial in trials]).argmin(0)  # (groups, rows, 1)
        found = trials[0]
        for index, trial in enumerate(trials):
            chosen = best == index
            found = _Solution(trial.steps.where(chosen, found.steps), trial.scale.where(chosen, found.scale))
        for _ in range(2):
            found = self._refitted(self._descended(levels, found))
        return self._descended(levels, found)

    def _compensated(self, levels: Tensor, scale: Tensor) -> _Solution:
        """Round column by column; the columns behind take over each error."""
        left, factor = self.weight / scale, self.inverse_factor
        steps, width = torch.empty_like(left), left.shape[2]
        for start in range(0, width, BLOCK):
            stop = min(start + BLOCK, width)
            inner = left[:, :, start:stop].clone()
            errors = torch.empty_like(inner)
            for column in range(stop - start):
                place = start + column
                steps[:, :, place] = self._rounded(levels, inner[:, :, column], place)
                error = (inner[:, :, column] - steps[:, :, place]) / factor[:, None, place, place]
                errors[:, :, column] = error
                inner[:, :, column + 1 :] -= error[:, :, None] * factor[:, None, place, place + 1 : stop]
            left[:, :, stop:] -= errors @ factor[:, start:stop, stop:]
        return _Solution(steps, scale)

    def _descended(self, levels: Tensor, found: _Solution) -> _Solution:
        """Choose each value again, given all others, in sweeps over the columns."""
        steps, moments, width = found.steps.clone(), self.moments, found.steps.shape[2]
        pull = (self.weight / found.scale - steps) @ moments  # half the error's slope, with the sign of a step down it
        for start in [*range(0, width, BLOCK)] * SWEEPS:
            stop = min(start + BLOCK, width)
            inner, before = pull[:, :, start:stop].clone(), steps[:, :, start:stop].clone()
            for column in range(stop - start):
                place = start + column
                wanted = steps[:, :, place] + inner[:, :, column] / moments[:, None, place, place]
                value = self._rounded(levels, wanted, place)
                inner -= (value - steps[:, :, place])[:, :, None] * moments[:, None, place, start:stop]
                steps[:, :, place] = value
            pull -= (steps[:, :, start:stop] - before) @ moments[:, start:stop]
        return replace(found, steps=steps)

    def _rounded(self, levels: Tensor, values: Tensor, column: int) -> Tensor:
        """Nearest levels of one column, (groups, rows); 0 where the weight was removed."""
        return levels[nearest(values.contiguous(), levels)].where(self.kept[:, :, column], 0.0)

    def _refitted(self, found: _Solution) -> _Solution:
        """The scale of least error for the present steps v: s = v H w / v H v."""
        felt = found.steps @ self.moments
        scale = (felt * self.weight).sum(2, keepdim=True) / (felt * found.steps).sum(2, keepdim=True)
        return replace(found, scale=scale.where(scale > 0, found.scale))  # 0 / 0 where every step is 0

    def refitted_levels(self, levels: Tensor, found: _Solution) -> Tensor:
        """The levels of least error over all rows for the present choice among them, by the normal equations: (levels,)."""
        worth = found.scale * self.unit / self.unit.max()
        parts = [(found.steps == level) * worth for level in levels]
        felt = torch.stack([(part @ self.moments).flatten() for part in parts])  # (levels, weights)
        sides = torch.stack([*(part.flatten() for part in parts), (self.weight * self.unit / self.unit.max()).flatten()], 1)
        equations = (felt @ sides).double()
        matrix, right = equations[:, :-1], equations[:, -1]
        ridge = 1e-6 * matrix.diagonal().mean() + 1e-30
        start = levels.double()  # a level that no weight takes stays where it is
        change = torch.linalg.solve(matrix + ridge * torch.eye(len(levels)), right - matrix @ start)
        refitted: Tensor = (start + change).float().sort().values
        return refitted


def _with_codebook(problem: _Problem, bits: int) -> tuple[Tensor, _Solution]:
    """Codebook and codes in turn, each the best that is found for the other."""
    worth = (problem.unit / problem.unit.max()).square() * problem.moments.diagonal(dim1=1, dim2=2)[:, None]
    worth = worth.expand_as(problem.weight)[problem.kept]
    levels = kernel_levels(lloyd_max(problem.weight[problem.kept], worth, 2**bits))
    found = problem.solved(levels, torch.ones_like(problem.unit), SHRINKS)
    for _ in range(ROUNDS - 1):
        wanted = problem.refitted_levels(levels, found)
        stretch = LARGEST / wanted.abs().max()  # whole numbers are the finer the larger they are
        levels, scale = kernel_levels(wanted * stretch), found.scale / stretch
        found = problem.solved(levels, scale, NUDGES)
    return levels, found


@hookimpl
def autocompress_quantizers() -> list[type[Quantizer]]:
    """Error-compensated rounding."""
    return [Gptq]
