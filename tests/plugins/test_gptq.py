"""Error-compensated rounding: against exhaustive search, the paper's algorithm written out plainly, and real convolutions."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from autocompress_plugins.affine import Int4, Int8
from autocompress_plugins.gptq import Gptq, regularized
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from autocompress import Layer, LayerStats, QuantizedTensor, Quantizer
from autocompress.errors import ConfigError
from autocompress.testing import QuantizerContract, make_layer, make_stats

if TYPE_CHECKING:
    from tests.conftest import Tiny

PLAIN = Gptq("uniform", damping=1e-6)


class TestGptq(QuantizerContract):
    @pytest.fixture(params=[Gptq(), Gptq("uniform", [3], activation_order=False)], ids=str)
    def quantizer(self, request: pytest.FixtureRequest) -> Quantizer:
        assert isinstance(request.param, Gptq)
        return request.param


def correlated(groups: int, width: int, count: int = 400) -> Tensor:
    """Input patches (groups, n, d) that share a few causes, as those of real layers do."""
    random = torch.Generator().manual_seed(0)
    mixing = torch.randn(groups, width, width, generator=random) * torch.logspace(0, -1.5, width)[:, None]
    return (torch.randn(groups, count, width, generator=random) @ mixing).relu() + 0.1


def problem(rows: int, width: int) -> tuple[Tensor, LayerStats]:
    weight = torch.randn(rows, width, generator=torch.Generator().manual_seed(1))
    return weight, make_stats(weight, make_layer((rows, width), "linear"), inputs=correlated(1, width))


def output_error(found: QuantizedTensor | Tensor, weight: Tensor, stats: LayerStats) -> NDArray[np.float64]:
    """Mean squared change of each output on the inputs that the moments are of."""
    values = found.dequantize() if isinstance(found, QuantizedTensor) else found
    change = (values - weight).double()
    return np.einsum("cd,de,ce->c", change, stats.input_second_moment[0].double(), change)


# --- how small the error is ---


def test_few_weights_are_rounded_nearly_as_well_as_possible() -> None:
    weight, stats = problem(12, 4)
    found = output_error(PLAIN.quantize(weight, 3, stats), weight, stats)
    choices = np.array(list(product(range(-4, 4), repeat=4)), np.float64)  # (4096, 4)
    moments = stats.input_second_moment[0].double().numpy()
    best = []
    for row in weight.double().numpy():
        felt = choices @ moments
        scale = np.divide(felt @ row, (felt * choices).sum(1), where=choices.any(1), out=np.ones(len(choices)))
        change = row - np.maximum(scale, 1e-9)[:, None] * choices
        best.append(((change @ moments) * change).sum(1).min())
    assert (found >= np.array(best) * (1 - 1e-3)).all()
    assert found.sum() < 2 * sum(best)
    assert found.sum() < 0.4 * output_error(Int4(bits=3).quantize(weight, 3, stats), weight, stats).sum()


def by_the_paper(row: NDArray[np.float64], moments: NDArray[np.float64], scale: float, bits: int) -> NDArray[np.float64]:
    """Columns in order; after each, what is left is updated and the inverse loses a row (Frantar et al. 2022, section 3.3)."""
    inverse, left, values = np.linalg.inv(moments), row.copy(), np.zeros_like(row)
    for column in range(len(row)):
        values[column] = np.clip(np.rint(left[column] / scale), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * scale
        left -= (left[column] - values[column]) / inverse[column, column] * inverse[column]
        inverse -= np.outer(inverse[:, column], inverse[column]) / inverse[column, column]
        inverse[column, column] = 1.0
    return values


def test_it_is_never_worse_than_the_algorithm_of_the_paper() -> None:
    weight, stats = problem(8, 24)
    moments = regularized(stats, 0.01)[0].double().numpy()
    found = Gptq("uniform", activation_order=False).quantize(weight, 4, stats).dequantize().double().numpy()
    for row, values in zip(weight.double().numpy(), found, strict=True):
        covering = max(row.max() / 7, -row.min() / 8)
        theirs = [row - by_the_paper(row, moments, covering * share, 4) for share in (1.0, 0.9, 0.8, 0.7)]
        best = min(float(change @ moments @ change) for change in theirs)
        assert (row - values) @ moments @ (row - values) <= best * (1 + 1e-4)


def test_output_error_is_a_fraction_of_that_of_plain_rounding() -> None:
    weight, stats = problem(16, 64)
    plain, even, learned = (
        output_error(quantizer.quantize(weight, 4, stats), weight, stats).sum()
        for quantizer in (Int4(), Gptq("uniform"), Gptq())
    )
    assert even < 0.4 * plain
    assert learned < 0.8 * even


def test_8_bits_compensate_as_well() -> None:
    weight, stats = problem(16, 64)
    assert output_error(Gptq().quantize(weight, 8, stats), weight, stats).sum() < 0.5 * (
        output_error(Int8().quantize(weight, 8, stats), weight, stats).sum()
    )


def test_columns_in_the_order_of_their_inputs_pay() -> None:
    weight, stats = problem(64, 64)
    errors = [
        output_error(Gptq("uniform", activation_order=order).quantize(weight, 4, stats), weight, stats).sum()
        for order in (True, False)
    ]
    assert errors[0] < 1.02 * errors[1]
    assert errors[0] != errors[1]


# --- what the moments are taken to be ---


class Known:
    """Given moments of a linear layer."""

    def __init__(self, inputs: Tensor, shrinkage: float) -> None:
        self.inputs, self.shrinkage = inputs, shrinkage

    def input_mean(self, layer: Layer) -> Tensor:
        return self.inputs.mean(1)

    def input_second_moment(self, layer: Layer) -> Tensor:
        return self.inputs.transpose(1, 2) @ self.inputs / self.inputs.shape[1]

    def input_shrinkage(self, layer: Layer) -> Tensor:
        return torch.full((len(self.inputs),), self.shrinkage)

    def gradient_samples(self, layer: Layer) -> Tensor:
        raise NotImplementedError

    def gradient_examples(self) -> int:
        raise NotImplementedError


def test_moments_are_shrunk_by_what_is_not_known_of_the_covariance() -> None:
    inputs = correlated(1, 6)
    weight = torch.zeros(2, 6)
    stats = LayerStats(make_layer((2, 6), "linear"), weight, Known(inputs, 0.3))
    array = inputs[0].double().numpy()
    covariance, mean = np.cov(array.T, bias=True), array.mean(0)
    expected = 0.7 * covariance + 0.3 * np.trace(covariance) / 6 * np.eye(6) + np.outer(mean, mean)
    expected = expected / (np.trace(expected) / 6) + 0.01 * np.eye(6)
    np.testing.assert_allclose(regularized(stats, 0.01)[0], expected, rtol=1e-3, atol=1e-5)


def test_inputs_of_which_nothing_is_known_are_not_learned_from() -> None:
    """Few inputs of many: compensating on them makes others worse."""
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(16, 64, generator=random)
    seen, unseen = (torch.randn(1, count, 64, generator=random) for count in (8, 4000))
    layer = make_layer((16, 64), "linear")
    fresh = make_stats(weight, layer, inputs=unseen)
    naive, careful = (
        output_error(Gptq("uniform").quantize(weight, 4, LayerStats(layer, weight, Known(seen, share))), weight, fresh).sum()
        for share in (0.0, 0.9)
    )
    assert careful < 0.6 * naive


def test_inputs_that_are_always_zero_do_no_harm() -> None:
    inputs = correlated(1, 8) * torch.tensor([1.0, 0, 1, 0, 1, 1, 0, 1])
    weight = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    for given in (inputs, torch.zeros_like(inputs)):
        stats = make_stats(weight, make_layer((4, 8), "linear"), inputs=given)
        for quantizer in (Gptq(), Gptq("uniform")):
            found = quantizer.quantize(weight, 4, stats)
            assert found.dequantize().isfinite().all()
            assert (found.dequantize() - weight).abs().max() < 3 * float(found.scale.max()) * (
                127 if found.codebook is not None else 1
            )


# --- kinds of layers ---


@pytest.mark.parametrize("groups", [2, 6])
def test_each_group_is_rounded_for_its_own_inputs(groups: int) -> None:
    weight = torch.randn(6, 6 // groups, 3, 3, generator=torch.Generator().manual_seed(2))
    inputs = correlated(groups, weight[0].numel())
    layer = replace(make_layer(tuple(weight.shape), "depthwise" if groups == 6 else "conv2d"), groups=groups)
    found = Gptq("uniform").quantize(weight, 4, make_stats(weight, layer, inputs=inputs))
    for group, part in enumerate(weight.chunk(groups)):
        alone = make_stats(part, make_layer(tuple(part.shape)), inputs=inputs[group : group + 1])
        expected = Gptq("uniform").quantize(part, 4, alone)
        channels = slice(group * len(part), (group + 1) * len(part))
        assert torch.equal(found.codes[channels], expected.codes)
        torch.testing.assert_close(found.scale[channels], expected.scale)


def test_a_transposed_matrix_is_rounded_as_the_matrix_is() -> None:
    weight, stats = problem(5, 12)
    turned = make_stats(weight.T, make_layer((12, 5), "linear", channel_axis=1), inputs=correlated(1, 12))
    one, other = Gptq().quantize(weight, 4, stats), Gptq().quantize(weight.T, 4, turned)
    assert torch.equal(one.codes, other.codes.T)
    torch.testing.assert_close(one.scale, other.scale)
    assert other.axis == 1


@pytest.mark.parametrize("name", ["inner.0", "depthwise.0", "pointwise", "head"])
def test_outputs_of_a_real_layer_change_less(tiny: Tiny, name: str) -> None:
    """On images that the moments have not seen."""
    layer = tiny.graph.layers[name]
    stats = tiny.calibration.stats(layer)
    seen: list[Tensor] = []
    hook = tiny.task.model.get_submodule(name).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        tiny.task.model(torch.from_numpy(tiny.task.sets["search"].inputs[:128]))
    hook.remove()

    def outputs(weight: Tensor) -> Tensor:
        if layer.kind == "linear":
            return functional.linear(seen[0], weight)
        return functional.conv2d(seen[0], weight, None, layer.strides, layer.pads[:2], layer.dilations, layer.groups)  # type: ignore[arg-type]

    errors = {}
    for label, quantizer in (("plain", Int4()), ("even", Gptq("uniform")), ("learned", Gptq())):
        change = outputs(quantizer.quantize(stats.weight, 4, stats).dequantize()) - outputs(stats.weight)
        errors[label] = float(change.square().mean())
    assert errors["even"] < 0.7 * errors["plain"]
    assert errors["learned"] < errors["even"]


def test_an_embedding_is_not_offered() -> None:
    assert not Gptq().bit_widths(make_layer((10, 4), "embedding"))
    assert Gptq().bit_widths(make_layer((10, 4), "linear")) == [8, 4]


# --- masks and codebooks ---


@pytest.mark.parametrize("quantizer", [Gptq(), Gptq("uniform")], ids=str)
@pytest.mark.parametrize("bits", [8, 4])
def test_what_removed_weights_gave_is_made_up_for(quantizer: Gptq, bits: int) -> None:
    weight, stats = problem(16, 32)
    mask = torch.rand(weight.shape, generator=torch.Generator().manual_seed(3)) > 0.3
    found = quantizer.quantize(weight, bits, stats, mask)
    assert not found.dequantize()[~mask].any()
    assert output_error(found, weight, stats).sum() < 0.3 * output_error(weight * mask, weight, stats).sum()


def test_a_codebook_is_for_4_bits_and_fewer() -> None:
    weight, stats = problem(4, 40)
    books = {bits: Gptq().quantize(weight, bits, stats).codebook for bits in (2, 4, 5, 8)}
    assert books[5] is None
    assert books[8] is None
    assert books[2] is not None
    assert books[4] is not None
    assert len(books[4]) > len(books[2]) >= 2
    assert int(books[4].int().abs().max()) > 100  # the byte's range is used
    assert Gptq("uniform").quantize(weight, 4, stats).codebook is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"cells": "round"}, "cells='round'"), ({"bits": [4, 4]}, "bits"), ({"damping": 0.0}, "damping=0")],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Gptq(**settings)  # type: ignore[arg-type]
