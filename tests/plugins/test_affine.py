from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from autocompress_plugins.affine import Affine, Int4, Int8
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from torch import Tensor

from autocompress import QuantizedTensor, Quantizer
from autocompress.errors import ConfigError
from autocompress.testing import QuantizerContract, make_layer, make_stats

VARIANTS = [
    Int8(),
    Int8(bits=6, symmetric=False, per_channel=False),
    Int4(),
    Int4(bits=2, narrow=True, mse=False),
    Int4(symmetric=False),
]


class TestAffine(QuantizerContract):
    @pytest.fixture(params=VARIANTS, ids=str)
    def quantizer(self, request: pytest.FixtureRequest) -> Quantizer:
        assert isinstance(request.param, Affine)
        return request.param


@pytest.fixture
def weight() -> Tensor:
    return torch.randn(16, 8, 3, 3, generator=torch.Generator().manual_seed(3)) * torch.logspace(-2, 1, 16).reshape(-1, 1, 1, 1)


def quantized(quantizer: Affine, weight: Tensor, mask: Tensor | None = None) -> QuantizedTensor:
    layer = make_layer(tuple(weight.shape))
    return quantizer.quantize(weight, quantizer.bits, make_stats(weight, layer), mask)


def squared_error(quantizer: Affine, weight: Tensor) -> float:
    return float((quantized(quantizer, weight).dequantize() - weight).square().sum())


def test_symmetric_codes_follow_the_formula(weight: Tensor) -> None:
    found = quantized(Int8(narrow=True), weight)
    for channel, row in enumerate(weight.numpy()):
        scale = np.float32(np.abs(row).max()) / np.float32(127)
        assert found.scale[channel].item() == scale
        np.testing.assert_array_equal(found.codes[channel].numpy(), np.rint(row / scale))
    assert not found.zero_point.any()


def test_full_range_gives_a_negative_extreme_the_extra_code() -> None:
    found = quantized(Int4(mse=False), torch.tensor([[-8.0, 3.0], [-3.0, 7.0]]))
    assert found.scale.tolist() == [1.0, 1.0]
    assert found.codes.tolist() == [[-8, 3], [-3, 7]]


def test_asymmetric_codes_follow_the_formula() -> None:
    found = quantized(Int8(symmetric=False), torch.tensor([[0.0, 2.55], [-2.55, 0.0], [-1.0, 1.55]]))
    np.testing.assert_allclose(found.scale, np.full(3, 0.01), rtol=1e-6)
    assert found.zero_point.tolist() == [-128, 127, -28]
    assert found.codes.tolist() == [[-128, 127], [-128, 127], [-128, 127]]


@pytest.mark.parametrize("quantizer", VARIANTS, ids=str)
def test_agrees_with_torch_fake_quantize(quantizer: Affine, weight: Tensor) -> None:
    found = quantized(quantizer, weight)
    count = len(weight)
    low, high = -(2 ** (found.bits - 1)) + quantizer.narrow, 2 ** (found.bits - 1) - 1
    scale, zero_point = found.scale.expand(count).contiguous(), found.zero_point.int().expand(count).contiguous()
    fake = torch.fake_quantize_per_channel_affine(weight, scale, zero_point, 0, low, high)
    # torch multiplies by 1 / scale, so that a weight halfway between two codes may fall to the other side
    differs = (fake - found.dequantize()).abs() > 1e-6 * scale.reshape(-1, 1, 1, 1)
    assert differs.float().mean() < 0.002


@pytest.mark.parametrize("quantizer", [Int8(), Int8(symmetric=False), Int4()], ids=str)
def test_onnx_decodes_the_same_values(quantizer: Affine, weight: Tensor) -> None:
    found = quantized(quantizer, weight)
    np.testing.assert_array_equal(dequantized_by_onnx(found), found.dequantize().numpy())


def dequantized_by_onnx(found: QuantizedTensor) -> NDArray[np.float32]:
    stored = onnx.TensorProto.INT4 if found.bits == 4 else onnx.TensorProto.INT8
    parts = {"codes": (stored, found.codes), "scale": (onnx.TensorProto.FLOAT, found.scale), "zero": (stored, found.zero_point)}
    tensors = [onnx.helper.make_tensor(name, kind, part.shape, part.flatten().tolist()) for name, (kind, part) in parts.items()]
    node = onnx.helper.make_node("DequantizeLinear", list(parts), ["y"], axis=found.axis)
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, found.codes.shape)
    graph = onnx.helper.make_graph([node], "g", [], [output], tensors)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)])
    (decoded,) = ReferenceEvaluator(model).run(None, {})
    assert isinstance(decoded, np.ndarray)
    return decoded


@pytest.mark.parametrize("quantizer", [Int8(), Int8(narrow=True), Int4(mse=False)], ids=str)
def test_covering_scales_clip_nothing(quantizer: Affine, weight: Tensor) -> None:
    found = quantized(quantizer, weight)
    error = (found.dequantize() - weight).abs().flatten(1).amax(1)
    assert (error <= found.scale * 0.5001).all()


@pytest.mark.parametrize("shape", [(8, 64, 3, 3), (32, 3, 3, 3), (32, 1, 3, 3)])
def test_least_squares_scale_is_as_good_as_brute_force(shape: tuple[int, ...]) -> None:
    weight = torch.from_numpy(np.random.default_rng(5).laplace(size=shape).astype(np.float32))
    assert squared_error(Int4(narrow=True), weight) <= 1.005 * brute_force(weight.flatten(1).double().numpy())


def brute_force(rows: NDArray[np.float64]) -> float:
    """Least error of 4-bit narrow codes over 500 scales for each row."""
    covering = np.abs(rows).max(axis=1, keepdims=True) / 7
    scales = [covering * factor for factor in np.linspace(0.3, 1, 500)]
    errors = [((np.clip(np.rint(rows / scale), -7, 7) * scale - rows) ** 2).sum(axis=1) for scale in scales]
    return float(np.min(errors, axis=0).sum())


def test_options_trade_error_as_documented(weight: Tensor) -> None:
    assert squared_error(Int4(), weight) < 0.9 * squared_error(Int4(mse=False), weight)
    assert squared_error(Int4(), weight) < squared_error(Int4(narrow=True), weight)
    assert squared_error(Int4(), weight) < 0.5 * squared_error(Int4(per_channel=False), weight)
    assert squared_error(Int8(symmetric=False), weight.abs()) < 0.3 * squared_error(Int8(), weight.abs())
    assert squared_error(Int8(), weight) < 0.01 * squared_error(Int4(), weight)


def test_narrow_never_uses_the_most_negative_code(weight: Tensor) -> None:
    assert quantized(Int4(narrow=True), weight).codes.min() == -7
    assert quantized(Int4(), weight).codes.min() == -8


def test_mask_decides_the_scale_too() -> None:
    weight = torch.tensor([[1.0, 100.0]])
    found = quantized(Int8(), weight, torch.tensor([[True, False]]))
    assert found.codes.tolist() == [[127, 0]]


def test_channel_without_weights_takes_the_mean_scale() -> None:
    found = quantized(Int8(), torch.tensor([[127.0, 0.0], [0.0, 0.0], [3 * 127.0, 1.0]]))
    assert found.scale.tolist() == pytest.approx([1, 4 / 3, 3])


def test_per_tensor_has_one_scale(weight: Tensor) -> None:
    found = quantized(Int8(per_channel=False), weight)
    assert found.scale.shape == found.zero_point.shape == ()


@pytest.mark.parametrize("bits", [0, 1, 9, 16])
def test_refuses_widths_that_int8_cannot_store(bits: int) -> None:
    with pytest.raises(ConfigError, match=r"quantizer\.int4.*2 to 8"):
        Int4(bits=bits)
    with pytest.raises(ConfigError, match=r"quantizer\.int8.*2 to 8"):
        Int8().quantize(torch.ones(1, 1), bits, make_stats(torch.ones(1, 1), make_layer((1, 1), "linear")))
