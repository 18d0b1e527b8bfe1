"""Recovery `adaround`: whether each weight is rounded up or down is learned."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from autocompress import Recovery, hookimpl
from autocompress.errors import ConfigError
from autocompress_plugins.adaround.reconstruction import reconstruct

if TYPE_CHECKING:
    from autocompress import CompressedModel, Recoverable


@dataclass
class AdaRound(Recovery):
    """Learned rounding (Nagel et al. 2020, arXiv 2004.10568), block by block (Li et al. 2021, arXiv 2102.05426), for finalists.

    For each block in the order of execution: its inputs come from the blocks that are already rounded, activations rounded as
    well, and its outputs shall be those of FP32. Rounding up is `h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1)` (equation 23); the
    loss is the error of the block's outputs relative to their variance plus `rounding_weight` times the mean of
    `1 - |2 h(V) - 1|^beta`, beta falling from 20 to 2 (equation 24), so that each h ends at 0 or 1. Biases are learned along.

    Needs calibration inputs, no labels. Codes move by at most one step; scales, zero points and masks stay. Layers with more
    than 4 bits or a codebook stay as they are.

    Attributes:
        block_layers: most layers of a block, a part of the module with one tensor in and one out; 1: the method of 2020.
        images: calibration examples.
        iterations: steps for each block.
        learning_rate: of Adam, for V.
        bias_learning_rate: of Adam, in standard deviations of a layer's weights.
        rounding_weight: of the rounding in the loss.
        seconds: time limit; the schedule of the blocks that are left shrinks to fit.
    """

    name = "adaround"

    block_layers: int = 6
    images: int = 128
    iterations: int = 500
    learning_rate: float = 0.1
    bias_learning_rate: float = 1e-3
    rounding_weight: float = 10.0
    seconds: float = 600.0

    def __post_init__(self) -> None:
        for name in ("block_layers", "images", "iterations", "learning_rate", "rounding_weight", "seconds"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"recover.adaround.{name}={getattr(self, name)}: expected a positive number")

    def recover(self, candidate: Recoverable) -> CompressedModel:
        """Round every block anew; the candidate's own tensors where that does not bring its outputs nearer to FP32."""
        return reconstruct(candidate, replace(self, seconds=min(self.seconds, candidate.seconds)))


@hookimpl
def autocompress_recoveries() -> list[type[Recovery]]:
    """Learned rounding."""
    return [AdaRound]
