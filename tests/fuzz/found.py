"""Inputs that once got through to a traceback, a wrong figure or no end, by reader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tests.fuzz.labels import idx

FOUND: Mapping[str, Sequence[bytes]] = {
    "policy_json": [b'{"version": 1, "layers": {"a": {"bits": 1e999}}}', b"[" * 4000, b'{"version": 1, "ops": {"a": {}}}'],
    "policy_yaml": [b"!!bool x", b"version: !!int ''", b"version: 1\nlayers: {0: {}, a: {}}", b"version: 1\nops: &a {b: *a}"],
    "budget": [b'{"latency_percentile": [null]}', b'{"size_bytes": "1"}', b'{"size_bytes": 1' + b"0" * 400 + b"}"],
    "overrides": [
        b"base\npruner=[null]",
        b"base\n~sampler=2.5",
        b"job\n+pruner=9",
        b"base\n+data.download=digits",
        b"base\n++observer.moving_average.momentum=word",
        b"job\n++quantizer.gptq.damping=${budget}",
        b"j\n++search=${objective}",
        b"base\n++search.seeds=${objective}",
        b"base\n++quantizer.int8=${budget}",
    ],
    "plugins": [b'{"metadata": "\\u00e9\\ud800"}', b'{"metadata": "", "members": {"autocompress_pruners": "null"}}'],
    "record": [b"[]", b'{"policy": 1}'],
    "study": [b"[]", b"{}", b'{"context": {}, "result": null}'],
    "probe": [b"[]", b'{"key": "k", "rows": [[]]}'],
    "sensitivity": [b"[]", b'{"layers": [1]}'],
    "journal": [b"[]\n3\n{}\n", b'{"key": []}\n', b"\xff\n"],
    "state": [b'\x42\0\0\0\0\0\0\0{"__metadata__": {"axes": "true", "ranges": "null"}}' + b" " * 14],
    "labels": [b"\1" + idx(), b"\1" + idx(2, 2), b"\1" + idx(4, kind=13), b"\1" + idx(4)[:4] + b"\xff" * 4],
    "zips": [
        b"PK\x05\x06" + b"\0" * 18,
        b"PK\x03\x04\x14\0\0\0\0\0\0\0!\0"
        + b"\0" * 16
        + b"PK\x01\x02\x14\x03\x14\0\0\0\0\0\0\0!\0"
        + b"\0" * 30
        + b"PK\x05\x06\0\0\0\0\1\0\1\0.\0\0\0\x1e\0\0\0\0\0",
    ],
}
