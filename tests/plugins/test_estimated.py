"""Estimated ranges, against numpy and exhaustive search."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from autocompress_plugins.affine import Int4, Int8
from autocompress_plugins.estimated import Estimated, least_divergent_share, percentiles
from torch import Tensor

from autocompress import QuantizedTensor, Quantizer
from autocompress.errors import ConfigError
from autocompress.testing import QuantizerContract, make_layer, make_stats

VARIANTS = [
    Estimated(),
    Estimated(method="percentile", percentile=95.0, bits=[6, 3]),
    Estimated(method="entropy"),
    Estimated(group_size=3),
]


class TestEstimated(QuantizerContract):
    @pytest.fixture(params=VARIANTS, ids=str)
    def quantizer(self, request: pytest.FixtureRequest) -> Quantizer:
        assert isinstance(request.param, Estimated)
        return request.param


@pytest.fixture
def weight() -> Tensor:
    """Heavy-tailed channels of different sizes."""
    random = np.random.default_rng(0)
    return torch.from_numpy(random.laplace(size=(8, 32, 3, 3)).astype(np.float32)) * torch.logspace(-2, 1, 8).reshape(
        -1, 1, 1, 1
    )


def quantized(quantizer: Quantizer, weight: Tensor, bits: int, mask: Tensor | None = None) -> QuantizedTensor:
    return quantizer.quantize(weight, bits, make_stats(weight, make_layer(tuple(weight.shape))), mask)


def squared_error(quantizer: Quantizer, weight: Tensor, bits: int) -> float:
    return float((quantized(quantizer, weight, bits).dequantize() - weight).square().sum())


@pytest.mark.parametrize("bits", [8, 4])
def test_least_squared_error_is_that_of_the_fitted_grid(weight: Tensor, bits: int) -> None:
    one, other = quantized(Estimated(), weight, bits), quantized(Int4(bits=bits), weight, bits)
    assert torch.equal(one.codes, other.codes)
    assert torch.equal(one.scale, other.scale)


def test_percentile_is_that_of_numpy_over_what_is_kept(weight: Tensor) -> None:
    rows, kept = weight.flatten(1).abs(), torch.rand(8, 288, generator=torch.Generator().manual_seed(0)) > 0.3
    found = percentiles(rows, kept, 99.0)
    for row, stays, value in zip(rows.numpy(), kept.numpy(), found.flatten().tolist(), strict=True):
        assert value == pytest.approx(np.percentile(row[stays], 99.0), rel=1e-5)
    assert not percentiles(rows, torch.zeros_like(kept), 99.0).any()


def test_percentile_sets_the_range_of_each_channel(weight: Tensor) -> None:
    found = quantized(Estimated(method="percentile", percentile=97.0), weight, 8)
    limits = np.percentile(weight.flatten(1).abs().numpy(), 97.0, axis=1)
    low, high = weight.flatten(1).numpy().min(1), weight.flatten(1).numpy().max(1)
    np.testing.assert_allclose(
        found.scale, np.maximum(np.minimum(-low, limits) / 128, np.minimum(high, limits) / 127), rtol=1e-5
    )
    assert (found.codes.flatten(1).abs() >= 127).float().mean(1).max() < 0.05


def test_the_whole_percentile_covers_everything(weight: Tensor) -> None:
    one, other = quantized(Estimated(method="percentile", percentile=100.0), weight, 8), quantized(Int8(), weight, 8)
    assert torch.equal(one.codes, other.codes)


def test_entropy_clips_tails_and_nothing_else() -> None:
    even = torch.linspace(-1, 1, 50_001)
    tailed = torch.distributions.Laplace(0.0, 0.05).icdf(torch.linspace(1e-5, 1 - 1e-5, 50_000)).clamp(-1, 1)
    assert least_divergent_share(even, 4) > 0.95
    assert 0.05 < least_divergent_share(tailed, 4) < 0.8
    assert least_divergent_share(tailed, 4) < least_divergent_share(tailed, 8)


def test_entropy_gives_all_channels_the_same_share_of_their_range() -> None:
    weight = (
        torch.from_numpy(np.random.default_rng(0).laplace(size=(8, 8192)).astype(np.float32))
        * torch.logspace(-2, 1, 8)[:, None]
    )
    layer = make_layer((8, 8192), "linear")
    found = Estimated(method="entropy").quantize(weight, 4, make_stats(weight, layer))
    largest = weight.abs().amax(1)
    share = least_divergent_share((weight / largest[:, None]).flatten(), 4)
    assert 0.2 < share < 0.9
    assert (weight.amax(1) > share * largest).all()  # both ends are clipped, so that level 7 stands at the threshold
    np.testing.assert_allclose(found.scale, share * largest / 7, rtol=1e-5)


def test_methods_trade_as_documented(weight: Tensor) -> None:
    errors = {method: squared_error(Estimated(method=method), weight, 4) for method in ("mse", "percentile", "entropy")}
    assert errors["mse"] == min(errors.values())
    assert errors["mse"] < 0.8 * squared_error(Int4(mse=False), weight, 4)
    assert len(set(errors.values())) == 3


def test_removed_weights_do_not_count() -> None:
    weight = torch.cat([torch.linspace(-1, 1, 64), torch.full((64,), 50.0)])[None]
    mask = weight < 50
    for method in ("mse", "percentile", "entropy"):
        layer = make_layer((1, 128), "linear")
        found = Estimated(method=method).quantize(weight, 8, make_stats(weight, layer), mask)
        assert found.scale.item() < 1.05 / 127


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "best"}, "method='best'"),
        ({"percentile": 50.0}, "percentile=50"),
        ({"percentile": 100.1}, "percentile=100.1"),
        ({"bits": [8, 8]}, "bits"),
        ({"bits": [1]}, "1 bits"),
        ({"group_size": 0}, "group_size=0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Estimated(**settings)  # type: ignore[arg-type]
