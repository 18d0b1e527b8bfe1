"""English sentences on ten topics that ship with the repository, as token ids."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from autocompress_plugins.minilm.package import tokenize

Part = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Token ids of shape (N, length), and numbers of topics of shape (N,)."""


def sentences(length: int = 64) -> tuple[None, Part]:
    """All sentences, in one part: calibration, training, search and report are drawn from it without overlap.

    Raises:
        ModelError: the packages with the tokenizer are not installed.
    """
    topics, texts = read_sentences()
    numbers = np.unique(topics, return_inverse=True)[1].astype(np.int64)
    return None, (tokenize(texts, length), numbers)


def read_sentences() -> tuple[list[str], list[str]]:
    """Topic and text of each sentence."""
    lines = (files(__package__) / "sentences.tsv").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("\t", 1) for line in lines]
    return [topic for topic, _ in pairs], [text for _, text in pairs]
