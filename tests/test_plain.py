"""What is read back fits its types, or is refused with the place where it does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from autocompress.plain import from_plain, to_plain


@dataclass(frozen=True)
class Part:
    share: float
    count: int = 1


@dataclass(frozen=True)
class Whole:
    name: str
    kind: Literal["a", "b"]
    part: Part | None = None
    parts: Sequence[Part] = ()
    pair: tuple[float, float] = (0.0, 1.0)
    numbers: Mapping[int, float] = field(default_factory=dict)
    file: Path | None = None
    anything: Any = None


WHOLE = Whole("x", "b", Part(0.5), (Part(1, 2),), (1.5, 2.0), {3: 0.5}, Path("/root/file"), {"any": [1]})


def test_what_is_written_is_read() -> None:
    plain = to_plain(WHOLE, Path("/root"))
    assert plain["file"] == "file"
    assert from_plain(Whole, plain, Path("/root")) == WHOLE
    assert from_plain(Whole, {"name": "x", "kind": "a"}) == Whole("x", "a")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": 3}, "name: 3; expected text"),
        ({"kind": "c"}, "kind: 'c'; expected one of a, b"),
        ({"part": {"share": "half"}}, "part: share: 'half'; expected float"),
        ({"part": {"share": True}}, "part: share: True; expected float"),
        ({"part": {}}, "part: no share; expected the fields share, count"),
        ({"part": []}, r"part: \[\]; expected a mapping"),
        ({"parts": [{"share": 1}, {"share": 1, "count": 1.5}]}, "parts: 1: count: 1.5; expected int"),
        ({"parts": "ab"}, "parts: 'ab'; expected a list"),
        ({"pair": [1]}, r"pair: \[1\]; expected 2 values"),
        ({"numbers": {"x": 1}}, "invalid literal for int"),
        ({"numbers": {1: 1}}, "numbers: 1; expected text"),
        ({"file": 3}, "file: 3; expected text"),
        ({"unknown": 3}, "'unknown'; expected one of the fields name, kind"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        from_plain(Whole, {**to_plain(WHOLE, Path("/root")), **changes})


def test_a_few_bytes_that_stand_for_billions_of_values_are_told_in_one_short_line() -> None:
    bomb: list[Any] = ["x"]
    for _ in range(60):
        bomb = [bomb] * 8
    with pytest.raises(ValueError, match="expected text") as error:
        from_plain(Whole, {"name": bomb, "kind": "a"})
    assert len(str(error.value)) < 300
