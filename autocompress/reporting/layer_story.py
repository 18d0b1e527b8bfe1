"""What was done to each layer of the winner, and what speaks for it: what the same costs and saves alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autocompress.policy import FLOAT_BITS, LayerPolicy
from autocompress.record import LayerRow, SearchResult
from autocompress.reporting.figures import winner_layers
from autocompress.reporting.sensitivity import option_label

FP32_BYTES = 4


@dataclass(frozen=True)
class LayerStory:
    """One layer.

    Attributes:
        done: in words: how it is stored and computed, and what was removed.
        stored_bytes, float_bytes: of the weight, in the file and in FP32.
        why: what this does alone, by the sensitivity tables; empty where they were not measured.
    """

    layer: str
    kind: str
    done: str
    stored_bytes: int
    float_bytes: int
    why: str


def layer_stories(result: SearchResult, tables: Mapping[str, Any]) -> list[LayerStory]:
    """The layers as the file has them.

    Args:
        tables: content of sensitivity.json; empty: there is none.
    """
    known = {entry["layer"]: (rank, entry) for rank, entry in enumerate(tables.get("layers", []), 1)}
    return [
        LayerStory(
            row.layer,
            row.kind,
            _done(row),
            row.stored_bytes,
            FP32_BYTES * row.parameters,
            _why(result.policy.layers.get(row.layer, LayerPolicy()), *known[row.layer], len(known))
            if row.layer in known
            else "",
        )
        for row in winner_layers(result)
    ]


def _done(row: LayerRow) -> str:
    how = (row.encoding or row.quantizer).replace("int", "INT")
    parts = [
        f"{how} by {row.quantizer}" if row.quantizer and row.bits < FLOAT_BITS else "FP32",
        f"computed {row.activation}" if row.activation else "",
        f"{row.sparsity:.0%} zero by {row.pruner}{f' ({row.structure})' if row.structure else ''}" if row.sparsity else "",
        f"input range by {row.observer}" if row.observer else "",
    ]
    return ", ".join(part for part in parts if part)


def _why(chosen: LayerPolicy, rank: int, entry: Mapping[str, Any], layers: int) -> str:
    """Figures of the chosen option, or, where none was chosen, of the mildest that was not."""
    options = {option["option"]: option for option in entry["options"]}
    label = option_label(chosen)
    place = f"sensitivity {rank} of {layers}"
    if label in options:
        return f"{place}; alone this {_effect(options[label])}"
    mildest = options[entry["mildest"]]
    return f"{place}; the mildest change, {entry['mildest']}, alone {_effect(mildest)}" if chosen == LayerPolicy() else place


def _effect(option: Mapping[str, Any]) -> str:
    if option["divergence"] is None:
        return "does not run"
    milliseconds = option.get("saved_ms")
    saved = [f"{option['saved_bytes']:,} bytes", *([] if milliseconds is None else [f"{milliseconds:.3f} ms"])]
    return f"changes the outputs by {option['divergence']:.1e} and saves {', '.join(saved)}"


def other_decisions(result: SearchResult) -> Iterator[str]:
    """What the policy says of channels and of operators between layers."""
    for group, decision in result.policy.channels.items():
        if decision.sparsity > 0:
            yield f"{decision.sparsity:.0%} of the channels of {group} and what is tied to them are removed ({decision.pruner})"
    for precision in dict.fromkeys(result.policy.ops.values()):
        names = [name for name, found in result.policy.ops.items() if found == precision]
        yield f"{len(names)} operators between layers are left {precision}: {_listed(names)}"


def _listed(names: Sequence[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
