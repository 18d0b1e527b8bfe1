"""The encoder all-MiniLM-L6-v2 in plain PyTorch: token ids in, one vector for each sentence out."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from autocompress.errors import ModelError
from autocompress_plugins.minilm.package import PADDING, read_weights

MASKED = -1e4
"""Added to the attention scores of padding: its weight after the softmax is 0 in float32."""

HEADS = 12
EPSILON = 1e-12
"""Of the layer norms, as the weights were trained."""


class Attention(nn.Module):
    """Scaled dot-product attention of a sequence to itself (Vaswani et al. 2017, arXiv 1706.03762, equation 1)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.output = nn.Linear(width, width)
        self.heads = heads

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map (N, length, width) to the same; `mask` is added to the scores, shape (N, 1, 1, length)."""
        query, key, value = (self._split(part(x)) for part in (self.query, self.key, self.value))
        scores = query @ key.transpose(2, 3) / math.sqrt(query.shape[3])
        mixed = torch.softmax(scores + mask, dim=3) @ value  # (N, heads, length, width / heads)
        outputs: Tensor = self.output(mixed.transpose(1, 2).reshape(x.shape))
        return outputs

    def _split(self, x: Tensor) -> Tensor:
        """(N, heads, length, width / heads)."""
        return x.reshape(x.shape[0], x.shape[1], self.heads, x.shape[2] // self.heads).transpose(1, 2)


class Block(nn.Module):
    """Attention, then two linear layers with GELU between them, each added to its input and normalised."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.attention, self.attention_norm = Attention(width, heads), nn.LayerNorm(width, eps=EPSILON)
        self.up, self.down, self.norm = nn.Linear(width, inner), nn.Linear(inner, width), nn.LayerNorm(width, eps=EPSILON)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map (N, length, width) to the same."""
        x = self.attention_norm(x + self.attention(x, mask))
        outputs: Tensor = self.norm(x + self.down(functional.gelu(self.up(x))))
        return outputs


class Encoder(nn.Module):
    """BERT (Devlin et al. 2018, arXiv 1810.04805) with the mean over tokens as the sentence's vector, of length 1.

    The mask is computed from the ids, so that there is one input; the type of all tokens is the same and part of `positions`.
    """

    def __init__(self, vocabulary: int, length: int, width: int, heads: int, inner: int, depth: int) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(vocabulary, width), nn.Parameter(torch.zeros(length, width))
        self.norm = nn.LayerNorm(width, eps=EPSILON)
        self.blocks = nn.ModuleList(Block(width, heads, inner) for _ in range(depth))

    def forward(self, ids: Tensor) -> Tensor:
        """Map token ids (N, length), int64 with 0 for padding, to unit vectors (N, width)."""
        present = (ids != PADDING).float()
        mask = ((1.0 - present) * MASKED)[:, None, None, :]
        x = self.norm(self.words(ids) + self.positions)
        for block in self.blocks:
            x = block(x, mask)
        total = (x * present[:, :, None]).sum(dim=1)
        return functional.normalize(total, dim=1)  # the mean points where the sum does


class TopicClassifier(nn.Module):
    """A linear layer on a frozen encoder."""

    def __init__(self, encoder: Encoder, width: int, classes: int) -> None:
        super().__init__()
        self.encoder, self.head = encoder.requires_grad_(False), nn.Linear(width, classes)

    def forward(self, ids: Tensor) -> Tensor:
        """Map token ids (N, length) to logits (N, classes); the entries of a unit vector are small, so they are scaled up."""
        vectors = self.encoder(ids)
        outputs: Tensor = self.head(vectors * math.sqrt(vectors.shape[1]))
        return outputs


def minilm(length: int = 64) -> nn.Module:
    """all-MiniLM-L6-v2 for sentences of `length` tokens: 6 blocks, 384 wide, 22.4 million parameters.

    Raises:
        ModelError: the package with its weights is not installed, or has other weights; or `length` is not 1 to 512.
    """
    return _encoder(length)


def minilm_topics(length: int = 64, classes: int = 10) -> nn.Module:
    """The same encoder, frozen, with a new linear layer that is trained to tell topics apart.

    Raises:
        ModelError: as `minilm`.
    """
    encoder = _encoder(length)
    return TopicClassifier(encoder, encoder.positions.shape[1], classes)


def _encoder(length: int) -> Encoder:
    weights = read_weights(length)
    vocabulary, width = weights["words.weight"].shape
    depth = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
    encoder = Encoder(vocabulary, length, width, HEADS, len(weights["blocks.0.up.weight"]), depth)
    try:
        encoder.load_state_dict(weights)
    except RuntimeError as error:
        raise ModelError(f"model minilm: the package's weights are not those of this encoder: {error}") from None
    return encoder.eval()
