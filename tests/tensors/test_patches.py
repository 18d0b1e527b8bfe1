from __future__ import annotations

import pytest
import torch
from torch import nn

import autocompress.tensors.patches
from autocompress.network.graph import Layer
from autocompress.tensors.patches import sample_patches
from autocompress.testing import make_layer

GEOMETRIES: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "plain": (nn.Conv2d(4, 6, 3, bias=False), (9, 7)),
    "strided_padded": (nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False), (9, 8)),
    "uneven": (nn.Conv2d(4, 6, (5, 3), stride=(2, 1), padding=(2, 0), dilation=(1, 2), bias=False), (9, 8)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2, padding=1, bias=False), (6, 6)),
    "depthwise": (nn.Conv2d(6, 6, 3, groups=6, stride=2, padding=1, bias=False), (7, 7)),
    "pointwise": (nn.Conv2d(4, 6, 1, bias=False), (5, 5)),
    "conv1d": (nn.Conv1d(4, 6, 3, stride=2, padding=2, dilation=2, bias=False), (17,)),
    "conv3d": (nn.Conv3d(4, 6, (2, 3, 1), stride=(1, 2, 1), padding=(1, 1, 0), bias=False), (4, 5, 3)),
}
"""A convolution, and the sides of its inputs."""


def described(module: nn.Module) -> Layer:
    assert isinstance(module, nn.modules.conv._ConvNd)
    assert not isinstance(module.padding, str)
    layer = make_layer(tuple(module.weight.shape))
    geometry = {"strides": module.stride, "dilations": module.dilation, "pads": (*module.padding, *module.padding)}
    return Layer(**{**vars(layer), **geometry, "groups": module.groups})


@pytest.mark.parametrize("name", GEOMETRIES)
def test_patches_times_weight_are_the_convolution(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autocompress.tensors.patches, "POSITIONS", 10_000)
    module, space = GEOMETRIES[name]
    layer = described(module)
    inputs = torch.randn(5, layer.shape[1] * layer.groups, *space, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = module(inputs).transpose(0, 1).flatten(1)  # (channels, N positions), as are the products below
        rows = module.get_parameter("weight").reshape(layer.groups, layer.channels // layer.groups, -1)
        products = (rows @ sample_patches(inputs, layer).transpose(1, 2)).flatten(0, 1)
    assert products.shape == expected.shape
    torch.testing.assert_close(products.sort(dim=1).values, expected.sort(dim=1).values, rtol=1e-4, atol=1e-5)


TRANSPOSED: dict[str, tuple[nn.ConvTranspose1d | nn.ConvTranspose2d, tuple[int, ...]]] = {
    "plain": (nn.ConvTranspose2d(4, 6, 3, bias=False), (5, 4)),
    "doubling": (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, bias=False), (5, 4)),
    "uneven": (nn.ConvTranspose2d(4, 6, (5, 2), stride=(3, 1), padding=(2, 0), dilation=(1, 2), bias=False), (4, 5)),
    "cropped": (nn.ConvTranspose2d(4, 6, 1, stride=2, padding=1, bias=False), (6, 6)),
    "line": (nn.ConvTranspose1d(4, 6, 4, stride=2, padding=1, bias=False), (7,)),
}


@pytest.mark.parametrize("name", TRANSPOSED)
def test_patches_times_weight_are_the_transposed_convolution(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autocompress.tensors.patches, "POSITIONS", 10_000)
    module, space = TRANSPOSED[name]
    ends = tuple(size - more for size, more in zip(module.padding, module.output_padding, strict=True))  # type: ignore[arg-type]
    geometry = {"strides": module.stride, "dilations": module.dilation, "pads": (*module.padding, *ends)}
    layer = Layer(**{**vars(make_layer(tuple(module.weight.shape), "conv_transpose", channel_axis=1)), **geometry})
    inputs = torch.randn(5, 4, *space, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = module(inputs).transpose(0, 1).flatten(1)
        products = module.weight.movedim(1, 0).flatten(1) @ sample_patches(inputs, layer)[0].T
    assert products.shape == expected.shape
    torch.testing.assert_close(products.sort(dim=1).values, expected.sort(dim=1).values, rtol=1e-4, atol=1e-5)


def test_asymmetric_pads_are_begins_then_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autocompress.tensors.patches, "POSITIONS", 10_000)
    layer = Layer(**{**vars(make_layer((1, 1, 1, 1))), "pads": (1, 0, 2, 3)})
    values = torch.arange(1.0, 7.0).reshape(1, 1, 2, 3)
    patches = sample_patches(values, layer)
    assert patches.shape == (1, (1 + 2 + 2) * (0 + 3 + 3), 1)
    assert patches.flatten().sort().values.tolist() == [0.0] * 24 + [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


def test_large_images_are_sampled_at_the_same_distinct_places_for_all_images() -> None:
    layer = make_layer((1, 1, 1, 1))
    places = torch.arange(20 * 20.0).reshape(1, 1, 20, 20)
    patches = sample_patches(torch.cat([places, places + 1000]), layer).reshape(2, -1)
    assert patches.shape == (2, autocompress.tensors.patches.POSITIONS)
    assert len(set(patches[0].tolist())) == autocompress.tensors.patches.POSITIONS
    assert torch.equal(patches[0] + 1000, patches[1])
    assert patches[0].min() < 100  # from all over the image
    assert patches[0].max() > 300


def test_linear_layers_give_one_patch_for_each_vector() -> None:
    values = torch.randn(3, 5, 4)
    assert torch.equal(sample_patches(values, make_layer((2, 4), "linear")), values.reshape(1, 15, 4))
