"""A small sentence encoder, its data and its models, as `module:function` factories. Its weights come from a package."""

from __future__ import annotations

from autocompress_plugins.minilm.encoder import minilm, minilm_topics
from autocompress_plugins.minilm.sentences import sentences

__all__ = ["minilm", "minilm_topics", "sentences"]
