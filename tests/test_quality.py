"""How a metric's values read."""

from __future__ import annotations

import pytest
from autocompress_plugins.accuracy import Accuracy
from autocompress_plugins.kl import Kl

from autocompress import Metric, Quality

SHARE, OWN = Quality("accuracy"), Quality("kl", percent=False)


@pytest.mark.parametrize(("metric", "expected"), [(Accuracy(), SHARE), (Kl(), OWN)])
def test_the_metric_says_what_it_is(metric: Metric, expected: Quality) -> None:
    assert Quality.of(metric) == expected


def test_values() -> None:
    assert (SHARE.value(0.881), SHARE.value(0.881, 1), SHARE.value(1.0)) == ("88.10%", "88.1%", "100.00%")
    assert (OWN.value(-0.51234), OWN.value(0.99987), OWN.value(1234.5)) == ("-0.51234", "0.99987", "1234.5")


def test_differences() -> None:
    assert (SHARE.difference(0.005), SHARE.difference(0.001, 0.009, digits=2)) == ("0.5 points", "0.10 to 0.90 points")
    assert (OWN.difference(0.005), OWN.difference(-0.001, 0.02, digits=2)) == ("0.005", "-0.001 to 0.02")


@pytest.mark.parametrize(("quality", "half_a_point"), [(SHARE, "0.5 points"), (OWN, "0.005")])
def test_changes(quality: Quality, half_a_point: str) -> None:
    assert quality.change(0.005) == f"{half_a_point} lower"
    assert quality.change(-0.005) == f"{half_a_point} higher"
    assert quality.change(0.0) == "unchanged"
    assert (quality.signed(0.005), quality.signed(-0.005)) == (f"-{half_a_point}", f"+{half_a_point}")


def test_no_negative_zero() -> None:
    assert (SHARE.signed(0.0), SHARE.signed(0.00001), SHARE.difference(-0.00001)) == (
        "+0.0 points",
        "+0.0 points",
        "0.0 points",
    )
    assert (OWN.signed(0.0), OWN.signed(-0.0)) == ("+0", "+0")
