"""Dataclasses as plain values for JSON and YAML, and back by their type hints; what does not fit them is refused."""

from __future__ import annotations

import reprlib
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import numpy as np

T = TypeVar("T")
_Reader = Callable[[Any, Path], Any]

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxother = 1, 60
"""A file can be a few bytes that stand for billions of values."""


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


def from_plain(kind: Any, value: Any, root: Path = Path()) -> Any:
    """Inverse of `to_plain`: a value of the type `kind`; fields that are missing keep their defaults.

    Raises:
        ValueError: it does not fit the type; says where in it and what was expected.
    """
    return _reader(kind)(value, root)


def from_fields(kind: type[T], values: Any, root: Path = Path()) -> T:
    """The same for the fields of a dataclass, also of one that has a `from_dict` of its own."""
    return cast(T, _dataclass(cast(Any, kind))(values, root))


@cache
def _reader(kind: Any) -> _Reader:
    """Made once for each type: a study has a thousand records, each with a row for each layer."""
    origin, parts = get_origin(kind), get_args(kind)
    if kind is Any:
        return lambda value, root: value
    if origin is Literal:
        return lambda value, root: value if value in parts else _refuse(value, f"one of {', '.join(map(str, parts))}")
    if origin is not None:
        return _composed(origin, parts)
    if hasattr(kind, "from_dict"):
        return lambda value, root: kind.from_dict(value)
    return _dataclass(cast(Any, kind)) if is_dataclass(kind) else _scalar(kind)


def _refuse(value: Any, expected: str) -> Any:
    raise ValueError(f"{_SHORT.repr(value)}; expected {expected}")


def _scalar(kind: Any) -> _Reader:
    """Of a number, a text or a path. A truth value is no number, and a whole number is also a float."""
    if kind in (str, Path):
        return lambda value, root: _text(value) if kind is str else root / _text(value)
    allowed = (int, float) if kind is float else (kind,)

    def read(value: Any, root: Path) -> Any:
        fits = isinstance(value, allowed) and (kind is bool or not isinstance(value, bool))
        return value if fits else _refuse(value, kind.__name__)

    return read


@cache
def _dataclass(kind: Any) -> _Reader:
    hints = get_type_hints(kind)
    readers = {field.name: _reader(hints[field.name]) for field in fields(kind) if field.init}
    needed = [field.name for field in fields(kind) if field.default is MISSING and field.default_factory is MISSING]

    def read(values: Any, root: Path) -> Any:
        given = _mapping(values)
        for name in needed:
            if name not in given:
                raise ValueError(f"no {name}; expected the fields {', '.join(readers)}")
        return kind(**{name: _part(name, _known(readers, name), one, root) for name, one in given.items()})

    return read


def _known(readers: Mapping[str, _Reader], name: Any) -> _Reader:
    return readers[name] if name in readers else cast(_Reader, _refuse(name, f"one of the fields {', '.join(readers)}"))


def _text(value: Any) -> str:
    """YAML takes words like 0, 1.10, on or 2:4 for a number, a truth value or a time of day."""
    return value if isinstance(value, str) else str(_refuse(value, "text: YAML needs quotes around what looks like a number"))


def _part(name: Any, read: _Reader, value: Any, root: Path) -> Any:
    """One value of several; what is wrong in it is told with its name."""
    try:
        return read(value, root)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _mapping(value: Any) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else cast(Mapping[Any, Any], _refuse(value, "a mapping"))


def _sequence(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else cast(Sequence[Any], _refuse(value, "a list"))


def _composed(origin: Any, parts: Sequence[Any]) -> _Reader:
    """Of a type with parts: an optional one, a mapping, a tuple or a sequence."""
    if origin in (Union, types.UnionType):
        present = _reader(parts[0])
        return lambda value, root: None if value is None else present(value, root)
    if origin is Mapping:
        key, entry = parts[0], _reader(parts[1])  # JSON writes every key as text
        return lambda value, root: {key(_text(name)): _part(name, entry, one, root) for name, one in _mapping(value).items()}
    if origin is tuple and parts[-1] is not Ellipsis:
        return _tuple([_reader(part) for part in parts])
    each = _reader(parts[0])
    return lambda value, root: tuple(_part(place, each, one, root) for place, one in enumerate(_sequence(value)))


def _tuple(readers: Sequence[_Reader]) -> _Reader:
    def read(value: Any, root: Path) -> Any:
        if len(_sequence(value)) != len(readers):
            _refuse(value, f"{len(readers)} values")
        return tuple(_part(place, reader, one, root) for place, (reader, one) in enumerate(zip(readers, value, strict=True)))

    return read
