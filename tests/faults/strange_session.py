"""A session module that computes with another one, and breaks as it is told, until a marker file is gone."""

import importlib.util
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np


def _inner(path: str) -> Any:
    spec = importlib.util.spec_from_file_location("inner_session", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _grown() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, resource.RLIM_INFINITY))
    np.ones(1 << 36)


def _chatter() -> None:
    sys.stdout.write("hello\n")
    os.write(1, b'{"ok": 7}\n')


FAULTS = {
    "abort": os.abort,
    "exit": lambda: sys.exit(3),
    "hang": lambda: time.sleep(1e6),
    "memory": _grown,
    "chatter": _chatter,
}


def load(path: str, threads: int, optimize: bool, inner: str, marker: str, fault: str, **options: Any) -> Any:
    run = _inner(inner).load(path, threads, optimize, **options)
    if not Path(marker).exists():
        return run

    def strange(inputs: Any) -> Any:
        FAULTS.get(fault, lambda: None)()
        outputs = run(inputs)
        return {"nan": [np.full_like(outputs[0], np.nan)], "rows": [outputs[0][:-1]]}.get(fault, outputs)

    return strange


def integer_nodes(path: str, inputs: Any, inner: str, marker: str, fault: str, **options: Any) -> Any:
    return _inner(inner).integer_nodes(path, inputs, **options)


def version() -> str:
    return "strange 1"
