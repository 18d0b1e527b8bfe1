"""Dataclasses as plain values for JSON, and back by their type hints."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np


def to_plain(value: object, root: Path) -> Any:
    """Numbers, strings, lists and dictionaries; paths below `root` become relative to it."""
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if is_dataclass(value):
        return {field.name: to_plain(getattr(value, field.name), root) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(one, root) for key, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [to_plain(one, root) for one in value]
    if isinstance(value, Path):
        return str(value.relative_to(root) if value.is_relative_to(root) else value)
    return value.item() if isinstance(value, np.generic) else value


def from_plain(kind: Any, value: Any, root: Path) -> Any:
    """Inverse of `to_plain`: a value of the type `kind`; fields that are missing keep their defaults."""
    if value is None or kind is Any or get_origin(kind) is Literal:
        return value
    if get_origin(kind) is not None:
        return _composed(get_origin(kind), get_args(kind), value, root)
    if hasattr(kind, "from_dict"):
        return kind.from_dict(value)
    if is_dataclass(kind):
        return _dataclass(kind, value, root)
    return root / value if kind is Path else value


def _dataclass(kind: Any, values: Mapping[str, Any], root: Path) -> Any:
    hints = get_type_hints(kind)
    return kind(**{name: from_plain(hints[name], one, root) for name, one in values.items()})


def _composed(origin: Any, parts: Sequence[Any], value: Any, root: Path) -> Any:
    """Of a type with parts: an optional one, a mapping, a tuple or a sequence."""
    if origin in (Union, types.UnionType):
        return from_plain(parts[0], value, root)
    if origin is Mapping:
        return {parts[0](key): from_plain(parts[1], one, root) for key, one in value.items()}
    if origin is tuple and parts[-1] is not Ellipsis:
        return tuple(from_plain(part, one, root) for part, one in zip(parts, value, strict=True))
    kind = tuple if origin is tuple else list
    return kind(from_plain(parts[0], one, root) for one in value)
