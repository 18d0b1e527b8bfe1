"""Attention written out: `nn.MultiheadAttention` keeps three projections in one bare parameter, which is no layer's weight."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class Attention(nn.Module):
    """Computes what an `nn.MultiheadAttention` does, each projection a linear layer of its own.

    (Vaswani et al. 2017, arXiv 1706.03762, section 3.2.)
    """

    in_proj_bias = None  # tells nn.TransformerEncoderLayer to call this module and not a fused kernel
    _qkv_same_embed_dim = False

    def __init__(self, original: nn.MultiheadAttention) -> None:
        super().__init__()
        assert original.in_proj_weight is not None
        self.num_heads, self.batch_first, self.dropout = original.num_heads, original.batch_first, original.dropout
        weights = original.in_proj_weight.detach().chunk(3)
        biases = original.in_proj_bias.detach().chunk(3) if original.in_proj_bias is not None else (None, None, None)
        self.q_proj, self.k_proj, self.v_proj = (_linear(*parts) for parts in zip(weights, biases, strict=True))
        self.out_proj = _linear(original.out_proj.weight.detach(), original.out_proj.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Arguments and results of `nn.MultiheadAttention.forward`."""
        flipped = not self.batch_first and query.dim() == 3
        parts = [part.transpose(0, 1) if flipped else part for part in (query, key, value)]
        projected = zip((self.q_proj, self.k_proj, self.v_proj), parts, strict=True)
        q, k, v = (self._heads(layer(part)) for layer, part in projected)  # (..., heads, length, width) each
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        for mask in (self._spread(attn_mask, scores), None if key_padding_mask is None else key_padding_mask[:, None, None]):
            if mask is not None:
                scores = scores.masked_fill(mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        weights = functional.dropout(scores.softmax(-1), self.dropout, self.training)
        mixed = self.out_proj((weights @ v).transpose(-3, -2).flatten(-2))
        found = weights.mean(-3) if average_attn_weights else weights
        return mixed.transpose(0, 1) if flipped else mixed, found if need_weights else None

    def _heads(self, projected: Tensor) -> Tensor:
        width = projected.shape[-1] // self.num_heads
        return projected.reshape(*projected.shape[:-1], self.num_heads, width).transpose(-3, -2)

    def _spread(self, mask: Tensor | None, scores: Tensor) -> Tensor | None:
        """A mask with an entry for each head of each example, (N * heads, L, S), in the shape of the scores."""
        return mask.reshape(scores.shape) if mask is not None and mask.dim() == 3 else mask


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight = nn.Parameter(weight.clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    return layer


def _can_be_written_out(module: nn.Module) -> bool:
    """Whether it has none of the options that hardly any model uses: other widths of keys and values, constant keys."""
    if not isinstance(module, nn.MultiheadAttention):
        return False
    return module._qkv_same_embed_dim and module.bias_k is None and not module.add_zero_attn


def write_out_attention(model: nn.Module) -> nn.Module:
    """The model itself when it has no such module, else a copy in which each computes the same with linear layers."""
    if not any(_can_be_written_out(module) for module in model.modules()):
        return model
    written = copy.deepcopy(model)
    for name, module in list(written.named_modules()):
        if _can_be_written_out(module):
            replaced = Attention(module).train(module.training)
            if not name:
                return replaced
            written.set_submodule(name, replaced)
    return written
