"""Even cells around the mean, and learned cells against scikit-learn's k-means."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from autocompress_plugins.affine import Int4, Int8
from autocompress_plugins.mean_rounding import MeanRounding
from sklearn.cluster import KMeans
from torch import Tensor

from autocompress import QuantizedTensor, Quantizer
from autocompress.errors import ConfigError
from autocompress.testing import QuantizerContract, make_layer, make_stats

VARIANTS = [MeanRounding(), MeanRounding(bits=[2, 7]), MeanRounding("kmeans"), MeanRounding("kmeans", [2, 7])]


class TestMeanRounding(QuantizerContract):
    @pytest.fixture(params=VARIANTS, ids=str)
    def quantizer(self, request: pytest.FixtureRequest) -> Quantizer:
        assert isinstance(request.param, MeanRounding)
        return request.param


def laplace(*shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).laplace(size=shape).astype(np.float32))


def quantized(quantizer: Quantizer, weight: Tensor, bits: int = 4, mask: Tensor | None = None) -> QuantizedTensor:
    kind = "linear" if weight.dim() == 2 else "conv2d"
    return quantizer.quantize(weight, bits, make_stats(weight, make_layer(tuple(weight.shape), kind)), mask)


def squared_error(quantizer: Quantizer, weight: Tensor, bits: int = 4) -> float:
    return float((quantized(quantizer, weight, bits).dequantize() - weight).square().sum())


# --- even cells ---


@pytest.mark.parametrize("bits", [4, 8])
def test_codes_count_steps_from_the_mean(bits: int) -> None:
    weight = laplace(6, 200) + torch.linspace(-3, 3, 6)[:, None]
    found = quantized(MeanRounding(), weight, bits)
    scale, mean = found.scale.double().numpy()[:, None], weight.double().numpy().mean(1, keepdims=True)
    most = 2 ** (bits - 1) - 1
    np.testing.assert_array_equal(found.zero_point, np.clip(np.rint(-mean / scale), -most - 1, most)[:, 0])
    centred = np.abs(mean / scale) <= most
    moved = np.abs(found.codes.numpy() - np.clip((weight.double().numpy() - mean) / scale, -most - 1, most))
    assert (moved[centred[:, 0]] <= 1 + 1e-4).all()  # half a step for rounding, half for a legal zero point
    assert centred.sum() >= 4


def test_weights_of_one_sign_lose_less_than_on_a_grid_around_zero() -> None:
    weight = laplace(8, 64, 3, 3).abs() + 0.2
    assert squared_error(MeanRounding(), weight) < 0.7 * squared_error(Int4(), weight)


def test_weights_around_zero_lose_about_what_int4_loses() -> None:
    weight = laplace(8, 64, 3, 3)
    assert squared_error(MeanRounding(), weight) < 1.1 * squared_error(Int4(), weight)


def test_levels_are_numbers_of_an_int8_kernel() -> None:
    weight = laplace(5, 300) + torch.tensor([-20.0, -1.0, 0.0, 1.0, 20.0])[:, None]
    for bits in (8, 4):
        found = quantized(MeanRounding(), weight, bits)
        levels = found.codes.int() - found.zero_point.int()[:, None]
        assert levels.min() >= -128
        assert levels.max() <= 127


def test_8_bits_lose_about_what_int8_loses() -> None:
    weight = laplace(5, 300)
    assert squared_error(MeanRounding(), weight, 8) < 1.1 * squared_error(Int8(), weight, 8)


def test_removed_weights_do_not_move_the_mean() -> None:
    weight = torch.tensor([[1.0, 2.0, 3.0, 1000.0]])
    found = quantized(MeanRounding(), weight, 4, torch.tensor([[True, True, True, False]]))
    assert found.dequantize()[0].tolist() == pytest.approx([1.0, 2.0, 3.0, 0.0], abs=0.15)


# --- learned cells ---


@pytest.mark.parametrize("bits", [2, 4])
def test_learned_cells_are_as_good_as_k_means(bits: int) -> None:
    weight = laplace(1, 4000)
    found = squared_error(MeanRounding("kmeans"), weight, bits)
    free = KMeans(2**bits, n_init=5, random_state=0).fit(weight.numpy().reshape(-1, 1)).inertia_  # no whole numbers, no zero
    assert free * 0.99 <= found <= free * (1.06 if bits == 4 else 1.35)  # of four levels, one has to be 0


def test_learned_cells_lose_less_than_even_ones() -> None:
    weight = laplace(16, 32, 3, 3) * torch.logspace(-2, 1, 16).reshape(-1, 1, 1, 1)
    assert squared_error(MeanRounding("kmeans"), weight) < 0.7 * squared_error(Int4(), weight)


def test_each_weight_has_the_nearest_level() -> None:
    found = quantized(MeanRounding("kmeans"), laplace(4, 100))
    assert torch.equal(found.rounded(laplace(4, 100)).codes, found.codes)


def test_the_scale_is_the_best_for_the_cells() -> None:
    weight = laplace(4, 400)
    found = quantized(MeanRounding("kmeans"), weight)
    levels = found.levels.double()
    best = (levels * weight).sum(1) / levels.square().sum(1)
    np.testing.assert_allclose(found.scale, best, rtol=0.01)


def test_a_codebook_of_a_whole_byte_is_not_offered() -> None:
    layer = make_layer((4, 4), "linear")
    assert MeanRounding("kmeans", [8, 4]).bit_widths(layer) == [4]
    assert MeanRounding("uniform", [8, 4]).bit_widths(layer) == [8, 4]


@pytest.mark.parametrize(
    ("settings", "message"), [({"cells": "round"}, "cells='round'"), ({"bits": []}, "bits"), ({"bits": [9]}, "9 bits")]
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MeanRounding(**settings)  # type: ignore[arg-type]
