"""Pruner `stability`: what varies, and what does not, decides what is cut; five readings of the word."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from autocompress import Pruner, compensate, hookimpl
from autocompress.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from autocompress import LayerStats

MODES = ("snr", "selection", "std", "ucb", "drift")
SPREADS = ("channel", "tensor")

TINY = 1e-38
"""Keeps 0 / 0 at 0 in a layer whose importance is 0 everywhere."""


@dataclass
class Stability(Pruner):
    """Five modes. The first three look at the importance I_r = (g_r w)^2 under gradients g_r of R resampled batches.

    `snr`: cuts the UNSTABLE. T = mu / (s + eps m), with mean mu and standard deviation s of I_r, and m the layer's mean mu. A
        weight with high T is useful on every resample and is kept. One with low T owes its importance to a few examples: drawn
        again, the calibration set would judge it otherwise, so cutting it is the bet that carries over to unseen data. T is a
        Wald statistic (compare Ko et al. 2019, arXiv 1912.04845, for |w|). Insensitive weights have mu, hence T, near 0 and
        are cut as well. T has no unit: small but steady importance ranks above a large unsteady one.
    `selection`: cuts the UNSTABLE. The share of resamples in which the weight is among the best `keep` of its layer; ties by
        mu. (Stability selection, Meinshausen and Buehlmann 2010, for masks.) A threshold is a probability: with 0.75, a weight
        stays that at least three of four resamples would keep.
    `ucb`: keeps the UNSTABLE. mu + kappa s: what may be important is not cut before it is known (PLATON, Zhang et al. 2022,
        arXiv 2206.12562, which smooths over training steps where this takes resamples).
    `std`: cuts the STABLE. Standard deviation of a channel's weights: a channel whose values are all alike tells its inputs
        apart no more than their sum does. Of a single weight, its part in that spread: its distance from the mean of its
        output channel, or of the whole tensor.
    `drift`: cuts the STABLE. Variance of the input times w^2 (FLAP, An et al. 2024, arXiv 2312.11983): an input that hardly
        varies is a constant, which a bias gives back; recovery `moments` sets that bias. Of a channel that a layer gives: the
        variance of the channel.

    For channels, I_r is that of the whole channel, (sum of g_r w)^2, before anything is compared.

    Attributes:
        mode: one of the above.
        eps: for `snr`, damping as a fraction of the layer's mean importance. Larger values rank more like mean importance.
        keep: for `selection`, the share of the layer that counts as selected in each resample.
        kappa: for `ucb`, standard deviations added.
        spread: for `std` of single weights, whose mean they are compared with: that of the `channel` or of the `tensor`.
        compensate: let the weights that stay take over what the removed ones computed (`autocompress.compensate`).

    Raises:
        ConfigError: a mode or spread that is none, or a share that is none.
    """

    name = "stability"

    mode: str = "snr"
    eps: float = 1e-3
    keep: float = 0.5
    kappa: float = 1.0
    spread: str = "channel"
    compensate: bool = True

    def __post_init__(self) -> None:
        for field, value, known in (("mode", self.mode, MODES), ("spread", self.spread, SPREADS)):
            if value not in known:
                raise ConfigError(f"pruner.stability.{field}='{value}': expected one of {', '.join(known)}")
        if not 0 < self.keep < 1:
            raise ConfigError(f"pruner.stability.keep={self.keep}: expected a share between 0 and 1, for example 0.5")

    def score(self, weight: Tensor, stats: LayerStats) -> Tensor:
        """The mode's figure of each weight, shape of the weight."""
        if self.mode == "std":
            return _deviations(weight, stats.layer.channel_axis if self.spread == "channel" else None).abs()
        if self.mode == "drift":
            return stats.input_variance * weight.square()
        return self._resampled((stats.gradient_samples * weight).square())

    def channel_score(self, weight: Tensor, stats: LayerStats, axis: int) -> Tensor:
        """The mode's figure of each slice, shape (weight.shape[axis],)."""
        if self.mode == "std":
            return _deviations(weight, axis).square().movedim(axis, 0).flatten(1).mean(1).sqrt()
        if self.mode == "drift" and axis == stats.layer.channel_axis:
            return stats.output_variance(weight)
        if self.mode == "drift":
            return super().channel_score(weight, stats, axis)
        return self._resampled((stats.gradient_samples * weight).movedim(axis + 1, 1).flatten(2).sum(2).square())

    def update(self, weight: Tensor, mask: Tensor, stats: LayerStats) -> Tensor:
        """The weights that are left."""
        return compensate(weight, mask, stats) if self.compensate else weight * mask

    def _resampled(self, importance: Tensor) -> Tensor:
        """One figure from the importance in each resample: (R, ...) -> (...)."""
        mean = importance.mean(dim=0)
        if self.mode == "selection":
            return _selected(importance, self.keep) + _tie_break(mean) / len(importance)
        deviation = (importance - mean).square().mean(dim=0).sqrt()  # 0 for a single sample, which then ranks by its mean
        if self.mode == "ucb":
            return mean + self.kappa * deviation
        return mean / (deviation + self.eps * mean.mean() + TINY)


def _deviations(weight: Tensor, axis: int | None) -> Tensor:
    """Distance of each weight from the mean of its slice along `axis`, or of all weights."""
    return weight - weight.mean([other for other in range(weight.dim()) if other != axis], keepdim=True)


def _selected(importance: Tensor, keep: float) -> Tensor:
    """Share of the resamples in which each entry is among the best `keep` of all: (R, ...) -> (...)."""
    flat = importance.flatten(1)
    best = flat.topk(round(keep * flat.shape[1]), dim=1).indices
    return torch.zeros_like(flat).scatter_(1, best, 1.0).mean(dim=0).reshape(importance.shape[1:])


def _tie_break(values: Tensor) -> Tensor:
    """Values >= 0 in their order, squeezed into [0, 1)."""
    return values / (values + values.mean() + TINY)


@hookimpl
def autocompress_pruners() -> list[type[Pruner]]:
    """One pruner with a choice of modes."""
    return [Stability]
