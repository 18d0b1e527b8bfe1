"""Numbers of settings that mean something: neither NaN nor infinite, neither negative nor too large."""

from __future__ import annotations

import math

from autocompress.errors import ConfigError

MOST_SEED = 2**31 - 1
"""What every generator takes, with the numbers of trials added."""


def check_positive(part: str, settings: object, *names: str, zero: bool = False) -> None:
    """Refuse fields of a part of the configuration that are set and no positive finite number.

    Args:
        zero: whether they may be zero.

    Raises:
        ConfigError: one is negative, NaN or infinite, or zero where that may not be.
    """
    for name in names:
        value = getattr(settings, name)
        if value is not None and not (0 < value < math.inf or (zero and value == 0)):
            raise ConfigError(f"{part}.{name}={value}: expected {'0 or more' if zero else 'more than 0'}, and a finite number")


def check_seed(part: str, seed: int) -> None:
    """Refuse a seed that some generator does not take.

    Raises:
        ConfigError: it is negative or too large.
    """
    if not 0 <= seed <= MOST_SEED:
        raise ConfigError(f"{part}.seed={seed}: expected 0 to {MOST_SEED}")
