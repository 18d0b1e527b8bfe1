"""The sensitivity tables on a terminal: a row for each layer, the most sensitive first, a column for each option."""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence

from autocompress.reporting.sensitivity import LayerSensitivity, Sensitivity

WIDTH = 100
CELL = 7
"""Two significant digits: `1.2e-05`."""

NAME = (12, 30)
"""Shortest and longest that the column of names may become."""


def sensitivity_table(found: Sensitivity, width: int = WIDTH) -> str:
    """The table in lines of at most `width` characters; options that do not fit follow below."""
    blocks = [_block(found, labels, name) for labels, name in _blocks(found, width)]
    return "\n\n".join([*("\n".join(block) for block in blocks), "\n".join(_notes(found, width))])


def _blocks(found: Sensitivity, width: int) -> Iterator[tuple[list[str], int]]:
    """As many options as fit beside each other, and how wide the names may be."""
    labels, longest = found.labels, max(len(layer.name) for layer in found.layers) + 2
    while labels:
        for count in range(len(labels), 0, -1):
            name = min(longest, NAME[1], width - CELL - 1 - sum(_cell(label) + 1 for label in labels[:count]))
            if name >= min(longest, NAME[0]) or count == 1:
                yield labels[:count], max(name, NAME[0])
                labels = labels[count:]
                break


def _cell(label: str) -> int:
    return max(CELL, *(len(word) for word in label.split()))


def _block(found: Sensitivity, labels: Sequence[str], name: int) -> Iterator[str]:
    """Headings of several lines, a word each, then the layers."""
    headings = [label.split() for label in labels]
    height = max(len(words) for words in headings)
    for line, words in enumerate(zip(*([""] * (height - len(words)) + words for words in headings), strict=True)):
        first = ("layer", "kB") if line == height - 1 else ("", "")
        yield _line(first, words, labels, name)
    for layer in found.layers:
        mark = "* " if layer.name in found.leave_alone else "  "
        first = (mark + _shortened(layer.name, name - 2), f"{layer.size_bytes / 1000:.1f}")
        yield _line(first, _cells(layer, labels), labels, name)


def _line(first: tuple[str, str], cells: Sequence[str], labels: Sequence[str], name: int) -> str:
    written = [cell.rjust(_cell(label)) for cell, label in zip(cells, labels, strict=True)]
    return " ".join([first[0].ljust(name), first[1].rjust(CELL), *written]).rstrip()


def _cells(layer: LayerSensitivity, labels: Sequence[str]) -> list[str]:
    known = {option.label: option.effect.divergence for option in layer.options}
    return [_figure(known[label]) if label in known else "" for label in labels]


def _figure(divergence: float) -> str:
    return f"{divergence:.2g}" if math.isfinite(divergence) else "fails"


def _shortened(name: str, width: int) -> str:
    """The ends of a name, which tell layers apart better than its middle."""
    if len(name) <= width:
        return name
    head = (width - 2) // 3
    return f"{name[:head]}..{name[len(name) - (width - 2 - head) :]}"


def _notes(found: Sensitivity, width: int) -> Iterator[str]:
    unit = "squared error of the outputs, as a share of FP32's power"
    yield f"cells: {unit}, that option alone, mean of {found.examples} calibration examples; kB: the weight in FP32"
    yield "the divergence ranks; points of the metric are coarse on few examples" + _coarseness(found)
    if found.observers:
        yield _observers(found)
    if found.leave_alone:
        yield from textwrap.wrap(f"* {found.rule}; to leave these alone:", width)
        yield found.override
    else:
        yield from textwrap.wrap(f"nothing to leave alone; a layer would be, if {found.rule}", width)


def _observers(found: Sensitivity) -> str:
    best = Counter(min(losses, key=losses.__getitem__) for losses in found.observers.values())
    counts = ", ".join(f"{count} {name}" for name, count in best.most_common())
    return f"with the best observer of each tensor, where they differ: {counts} (what the others lose: sensitivity.json)"


def _coarseness(found: Sensitivity) -> str:
    return (
        f" (one example of {found.examples} is {found.quality.difference(1 / found.examples)})" if found.quality.percent else ""
    )
