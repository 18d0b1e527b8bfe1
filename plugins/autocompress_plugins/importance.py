"""Pruner `importance`: keep the weights whose removal changes the loss, or the layer's output, most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from autocompress import Pruner, compensate, hookimpl
from autocompress.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from autocompress import LayerStats

CRITERIA = ("taylor", "activation", "fisher", "wanda")


@dataclass
class Importance(Pruner):
    """One of four criteria; all of them cut what is insensitive, whether or not it is stable.

    `taylor`: mean of (g w)^2 over gradients g of calibration batches (Molchanov et al. 2019, arXiv 1906.10771, section 3).
        g w is the change of the loss, to first order, when the weight becomes 0; it is squared before it is averaged, because
        at a trained minimum the gradients of different examples cancel. Of a channel, g w is summed over its weights first:
        the joint change when all of them become 0.
    `fisher`: w^2 F / 2, the change to second order at a minimum (LeCun et al. 1989, "Optimal Brain Damage"), with the mean
        square of single examples' gradients for the curvature F (empirical Fisher; Theis et al. 2018, arXiv 1801.05787). It
        ranks nearly as `taylor` does unless the model is far from a minimum.
    `wanda`: |w| times the root mean square of the input that it multiplies (Sun et al. 2023, arXiv 2306.11695, equation 1).
        Each output's scores are divided by their mean: the paper compares weights of the same output only, and with this a
        mask of the whole layer removes nearly the same share from each output, more only where an output has more small
        scores. Channels are thereby judged by the layers that read them.
    `activation`: root mean square of the input times that of the output that a weight connects; of a channel, that of the
        channel (compare Molchanov et al. 2016, arXiv 1611.06440, "mean activation"). Meant for channels: it looks at
        single weights only through what passes their two ends.

    Attributes:
        compensate: let the weights that stay take over what the removed ones computed (`autocompress.compensate`).

    Raises:
        ConfigError: the criterion is none of these.
    """

    name = "importance"

    criterion: str = "taylor"
    compensate: bool = True

    def __post_init__(self) -> None:
        if self.criterion not in CRITERIA:
            raise ConfigError(f"pruner.importance.criterion='{self.criterion}': expected one of {', '.join(CRITERIA)}")

    def score(self, weight: Tensor, stats: LayerStats) -> Tensor:
        """The criterion of each weight, shape of the weight."""
        if self.criterion == "wanda":
            return _wanda(weight, stats)
        if self.criterion == "activation":
            return stats.input_square.sqrt() * _along(stats.output_square(weight).sqrt(), stats)
        return self._of_losses(stats.gradient_samples * weight, stats)

    def channel_score(self, weight: Tensor, stats: LayerStats, axis: int) -> Tensor:
        """The criterion of each slice, shape (weight.shape[axis],)."""
        if self.criterion == "wanda":
            return super().channel_score(weight, stats, axis)
        if self.criterion == "activation":
            return _passing(weight, stats, axis)
        losses = (stats.gradient_samples * weight).movedim(axis + 1, 1).flatten(2).sum(2)  # (R, slices)
        return self._of_losses(losses, stats)

    def update(self, weight: Tensor, mask: Tensor, stats: LayerStats) -> Tensor:
        """The weights that are left."""
        return compensate(weight, mask, stats) if self.compensate else weight * mask

    def _of_losses(self, losses: Tensor, stats: LayerStats) -> Tensor:
        """`taylor` or `fisher` from the first-order changes g w of the loss, (R, ...) -> (...)."""
        if self.criterion == "taylor":
            return losses.square().mean(dim=0)
        mean = losses.mean(dim=0)
        variance = (losses - mean).square().sum(dim=0) / max(1, len(losses) - 1)
        # A sample is a mean over a batch: its variance is that of single examples divided by their number.
        return (mean.square() + stats.gradient_examples * variance) / 2


def _wanda(weight: Tensor, stats: LayerStats) -> Tensor:
    score = weight.abs() * stats.input_square.sqrt()
    mean = score.movedim(stats.layer.channel_axis, 0).flatten(1).sum(1) / max(1, weight.numel() // max(1, stats.layer.channels))
    return score / _along(mean.where(mean > 0, 1.0), stats)


def _along(values: Tensor, stats: LayerStats) -> Tensor:
    """One figure for each output channel, shaped to broadcast over the weight."""
    return values.reshape([-1 if axis == stats.layer.channel_axis else 1 for axis in range(len(stats.layer.shape))])


def _passing(weight: Tensor, stats: LayerStats, axis: int) -> Tensor:
    """Root mean square of the layer's outputs, or of its inputs, shape (weight.shape[axis],)."""
    if axis == stats.layer.channel_axis:
        return stats.output_square(weight).sqrt()
    return stats.input_square.movedim(axis, 0).flatten(1).mean(1).sqrt()


@hookimpl
def autocompress_pruners() -> list[type[Pruner]]:
    """One pruner with a choice of criteria."""
    return [Importance]
