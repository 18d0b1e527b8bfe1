"""What a search may try, as it is configured."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import get_args

from autocompress.errors import ConfigError
from autocompress.policy import UNSTRUCTURED, Activation
from autocompress.tensors.sparsity import CHANNEL, n_of_m

SCOPES = ("layer", "global")


@dataclass
class SpaceSettings:
    """What may be tried.

    Attributes:
        include, exclude: globs of layer names; a layer that is not included, or is excluded, stays float.
        allow_float: whether an included layer may stay float.
        activations: how layers whose weight has codes may compute, where the target can: `static`, `dynamic`, `float`; a layer
            that can do none of these computes as it can.
        sparsities: shares that a pruner may remove.
        thresholds: scores; a pruner may remove what is not above one. Scores of channels are in units of their group's mean.
        structures: where a pruner may cut: single weights (`unstructured`), n of each m neighbouring inputs stay (`n:m`, for
            example `2:4`), whole channels (`channel`).
        scope: what a share in `sparsities` is a share of: each `layer` (each group of channels), or all of them (`global`):
            then one score decides everywhere, and layers lose different shares.
        channel_multiple: the channels that stay are rounded to a multiple of this.
        ops: whether the precision of what sits between layers (activations, sums, squeeze-excite products) is searched, one
            decision for all regions of a kind; otherwise it is integer where all its inputs are quantized anyway.
    """

    include: list[str] = field(default_factory=lambda: ["*"])
    exclude: list[str] = field(default_factory=list)
    allow_float: bool = True
    sparsities: list[float] = field(default_factory=lambda: [0.3, 0.5, 0.7])
    structures: list[str] = field(default_factory=lambda: [UNSTRUCTURED, CHANNEL])
    channel_multiple: int = 8
    thresholds: list[float] = field(default_factory=list)
    scope: str = "layer"
    activations: list[str] = field(default_factory=lambda: ["static"])
    ops: bool = True

    def __post_init__(self) -> None:
        if not self.activations or not set(self.activations) <= set(get_args(Activation)):
            raise ConfigError(f"space.activations={self.activations}: expected some of {', '.join(get_args(Activation))}")
        wrong = [share for share in self.sparsities if not 0 < share < 1]
        if wrong:
            raise ConfigError(f"space.sparsities={wrong}: expected shares between 0 and 1, for example 0.5")
        unknown = [name for name in self.structures if name not in (UNSTRUCTURED, CHANNEL) and n_of_m(name) is None]
        if unknown:
            known = f"'{UNSTRUCTURED}', '{CHANNEL}' or n:m such as '2:4'"
            raise ConfigError(f"space.structures={unknown}: expected {known} (YAML reads it as a time of day without quotes)")
        if not all(math.isfinite(score) for score in self.thresholds):
            raise ConfigError(f"space.thresholds={self.thresholds}: expected finite scores, for example 0.01")
        if self.scope not in SCOPES:
            raise ConfigError(f"space.scope='{self.scope}': expected one of {', '.join(SCOPES)}")
        if self.channel_multiple < 1:
            raise ConfigError(f"space.channel_multiple={self.channel_multiple}: expected at least 1")
