"""Attention as linear layers computes what torch's fused module does, wherever that stands."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from autocompress.network.attention import Attention, write_out_attention

WIDTH, HEADS = 12, 3
LENGTHS = (5, 7)
"""Of queries and keys."""


def tensors(batch_first: bool, batched: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(4, LENGTHS[index > 0], WIDTH, generator=random) for index in range(3))
    if not batched:
        return query[0], key[0], value[0]
    return (query, key, value) if batch_first else (query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1))


def seeded(**options: Any) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(WIDTH, HEADS, **options)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    return module.eval()


def masks() -> dict[str, dict[str, Tensor]]:
    random = torch.Generator().manual_seed(1)
    banned = torch.rand(LENGTHS, generator=random) < 0.4
    banned[:, 0] = False
    padded = torch.zeros(4, LENGTHS[1], dtype=torch.bool)
    padded[1, 4:] = True
    return {
        "none": {},
        "banned": {"attn_mask": banned},
        "added": {"attn_mask": torch.randn(LENGTHS, generator=random)},
        "each_head": {"attn_mask": torch.randn(4 * HEADS, *LENGTHS, generator=random)},
        "padded": {"key_padding_mask": padded},
        "both": {"attn_mask": banned, "key_padding_mask": padded},
    }


@pytest.mark.parametrize("mask", masks())
@pytest.mark.parametrize("batch_first", [True, False])
def test_computes_the_same(batch_first: bool, mask: str) -> None:
    module, inputs = seeded(batch_first=batch_first), tensors(batch_first)
    for average in (True, False):
        expected = module(*inputs, average_attn_weights=average, **masks()[mask])
        found = Attention(module)(*inputs, average_attn_weights=average, **masks()[mask])
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_without_biases_batch_or_weights() -> None:
    module, inputs = seeded(bias=False), tensors(False, batched=False)
    found, weights = Attention(module)(*inputs, need_weights=False)
    assert weights is None
    torch.testing.assert_close(found, module(*inputs)[0], rtol=1e-4, atol=1e-5)


def test_in_a_vision_transformer_and_in_an_encoder_of_torch() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 16, batch_first=True)
    options = {"num_layers": 2, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 16, "num_classes": 5}
    nets = [nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval(), VisionTransformer(32, 16, **options).eval()]
    nn.init.normal_(nets[1].get_parameter("heads.head.weight"))
    for net, example in zip(nets, (tensors(True)[0], torch.randn(4, 3, 32, 32)), strict=True):
        written = write_out_attention(net)
        assert not any(isinstance(part, nn.MultiheadAttention) for part in written.modules())
        assert sum(isinstance(part, Attention) for part in written.modules()) == 2
        assert any(isinstance(part, nn.MultiheadAttention) for part in net.modules())  # the user's own stays
        with torch.no_grad():
            torch.testing.assert_close(written(example), net(example), rtol=1e-4, atol=1e-5)


def test_training_drops_weights_and_eval_does_not() -> None:
    written, inputs = Attention(seeded(dropout=0.5)), tensors(False)
    torch.testing.assert_close(written.eval()(*inputs)[0], written(*inputs)[0])
    assert not torch.equal(written.train()(*inputs)[0], written(*inputs)[0])


def test_other_models_are_returned_as_they_are() -> None:
    for model in (nn.Linear(2, 2), seeded(kdim=6, vdim=6), seeded(add_bias_kv=True), seeded(add_zero_attn=True)):
        assert write_out_attention(model) is model
