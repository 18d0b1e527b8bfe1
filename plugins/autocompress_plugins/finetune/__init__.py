"""Recovery `finetune`: train a finalist with its masks, its grids and a teacher."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from autocompress import Recovery, hookimpl
from autocompress.errors import ConfigError
from autocompress_plugins.finetune.training import train

if TYPE_CHECKING:
    from autocompress import CompressedModel, Recoverable


@dataclass
class FineTune(Recovery):
    """Quantization-aware fine-tuning by distillation (Hinton et al. 2015, arXiv 1503.02531), for finalists.

    The module trains in float and computes as the file will: removed channels are gone, removed weights stay 0, weights are
    rounded to their grid with straight-through gradients (Jacob et al. 2018, arXiv 1712.05877, section 3). The loss is
    `distill * T^2 * KL(teacher || student) + (1 - distill) * loss(outputs, targets)` with both softened by the temperature T,
    or the mean squared error to the teacher's outputs where they are no class scores. AdamW with a warm-up and a cosine to 0.

    Needs training examples (`data.train_size`), no labels when `distill` is 1.

    Attributes:
        seconds: time limit of the training of one finalist; the schedule shrinks to fit.
        epochs: most passes over the training examples.
        patience: epochs without a better held-out loss after which it stops.
        batch_size: examples of one step.
        learning_rate: its peak.
        weight_decay: of AdamW.
        distill: share of the teacher in the loss, 0 to 1.
        temperature: softens both distributions.
        teacher: 'module:function' that returns the teaching module; empty: the task's teacher, else the FP32 model.
        activations: round activations as well.
        flip: mirror images at random.
        shift: move images by up to so many pixels at random.
    """

    name = "finetune"

    seconds: float = 600.0
    epochs: int = 20
    patience: int = 5
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    distill: float = 0.9
    temperature: float = 2.0
    teacher: str = ""
    activations: bool = True
    flip: bool = False
    shift: int = 0

    def __post_init__(self) -> None:
        for name in ("seconds", "epochs", "patience", "learning_rate", "temperature"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"recover.finetune.{name}={getattr(self, name)}: expected a positive number")
        if not 0 <= self.distill <= 1:
            raise ConfigError(f"recover.finetune.distill={self.distill}: expected a share, 0 (labels only) to 1 (teacher only)")
        if self.batch_size < 2:
            raise ConfigError(f"recover.finetune.batch_size={self.batch_size}: expected at least 2, for batch norm")

    def recover(self, candidate: Recoverable) -> CompressedModel:
        """Train, export and compress again.

        Raises:
            DataError: there are no training examples.
        """
        module = candidate.trainable(activations=self.activations)
        train(module, candidate, replace(self, seconds=min(self.seconds, candidate.seconds)))
        return candidate.rebuild(module)


@hookimpl
def autocompress_recoveries() -> list[type[Recovery]]:
    """Fine-tuning."""
    return [FineTune]
