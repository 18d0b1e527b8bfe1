"""Inputs from other inputs: of any bytes, of nested values as JSON, of lines of words."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 8, 32, 64, 2**31, 2**63, 10**30, 0.0, -0.0, 0.5, 1.5, -1e-9, 5e-324, 1e308),
    *(float("nan"), float("inf"), float("-inf"), "", " ", "nan", "1e-05", "true", "null", "2:4", "4:2", "0:0", "\0", "é\ud800"),
    *("a" * 300, "../../x", "/dev/zero", "unstructured", "float", "static", [], [None], [[[[[[]]]]]], {}, {"": {}}, {"a": 1}),
)
TOKENS = tuple(
    token.encode()
    for token in (
        "[",
        "]",
        "{",
        "}",
        ":",
        ",",
        '"',
        "'",
        "*a",
        "&a ",
        "!!int ",
        "!!binary ",
        "? ",
        "- ",
        "\n",
        "\t",
        "\0",
        "NaN",
    )
)

Mutation = Callable[[bytes, Random], bytes]


def mutated_bytes(data: bytes, random: Random) -> bytes:
    """One to four small changes at random places."""
    changed = bytearray(data)
    for _ in range(random.randint(1, 4)):
        start = random.randrange(len(changed) + 1)
        stop = min(len(changed), start + random.choice((0, 1, 1, 2, 4, 16)))
        changed[start:stop] = random.choice(
            (b"", random.randbytes(random.choice((1, 1, 2, 4))), random.choice(TOKENS), bytes(changed[start:stop]) * 2)
        )
    return bytes(changed)


def mutated_json(data: bytes, random: Random) -> bytes:
    """One to three values or names replaced, left out or doubled; now and then only bytes are changed."""
    if random.random() < 0.15:
        return mutated_bytes(data, random)
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        return mutated_bytes(data, random)
    for _ in range(random.randint(1, 3)):
        values = mutated_value(values, random)
    return json.dumps(values).encode()


def mutated_value(value: Any, random: Random) -> Any:
    """The same with a change somewhere within."""
    if not isinstance(value, (dict, list)) or not value or random.random() < 0.05:
        return random.choice(ODD_VALUES)
    if isinstance(value, list):
        return _mutated_list(value, random)
    name, how = random.choice(list(value)), random.random()
    if how < 0.1:
        return {key: one for key, one in value.items() if key != name}
    if how < 0.2:
        return {**value, random.choice((str(random.choice(ODD_VALUES))[:40], random.choice(list(value)))): value[name]}
    return {**value, name: mutated_value(value[name], random)}


def _mutated_list(value: list[Any], random: Random) -> list[Any]:
    place = random.randrange(len(value))
    middle = random.choice(
        ([], [value[place]] * 2, [mutated_value(value[place], random)], [mutated_value(value[place], random)])
    )
    return [*value[:place], *middle, *value[place + 1 :]]


def mutated_lines(keys: Sequence[str], values: Sequence[str]) -> Mutation:
    """Of lines KEY=VALUE after a first line: some are left out, and others added, of known words."""

    def mutate(data: bytes, random: Random) -> bytes:
        if random.random() < 0.2:
            return mutated_bytes(data, random)
        first, *lines = data.decode(errors="replace").split("\n")
        if lines and random.random() < 0.5:
            del lines[random.randrange(len(lines))]
        sign, key = random.choice(("", "", "", "", "+", "++", "~")), random.choice(keys)
        lines.append(f"{sign}{key}={random.choice(values)}" if random.random() < 0.95 else f"{sign}{key}")
        return "\n".join([first, *lines[-6:]]).encode()

    return mutate
