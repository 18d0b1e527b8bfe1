"""The process that runs model files: times them, and computes their outputs.

Self-contained: standard library and numpy only; the runtime comes through a session module given by its path. A crash of the
runtime ends this process and costs one trial.

The same script can be executed on another device: `runner.py SESSION_MODULE OPTIONS COMPANION_FILES...`, each a path there.

Protocol: one JSON object a line. Request `{"do": name, ...arguments}`; answer `{"ok": value}` or `{"error": text, "errno":
number or null, "trace": text}`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import select
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import IO, Any

import numpy as np


@cache
def load_module(path: str) -> Any:
    """Import a self-contained module from its file, once: a runtime may not bear to be opened twice in a process."""
    spec = importlib.util.spec_from_file_location(f"autocompress_{Path(path).stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


COMPANIONS = ("energy", "fingerprint", "footprint", "lease", "timing")
COMPANION_FILES = tuple(Path(__file__).with_name(f"{name}.py") for name in COMPANIONS)
"""Self-contained modules that a script of this file is told the places of: they travel with it."""

if __package__:
    from autocompress.measuring import energy, fingerprint, footprint, lease, timing
else:
    energy, fingerprint, footprint, lease, timing = (load_module(path) for path in sys.argv[3:])

Run = Callable[[Sequence[Any]], list[Any]]


def load_session(target: Any, path: Path, threads: int, optimize: bool = True) -> Run:
    """Open a file in this process with a target's session module."""
    run: Run = load_module(str(target.session_file)).load(str(path), threads, optimize, **target.options())
    return run


class Runner:
    """Answers requests about files for one session module."""

    def __init__(self, session: Any, options: dict[str, Any]) -> None:
        self._session, self._options = session, options

    def describe(self) -> dict[str, str]:
        """Device and runtime."""
        return {"device": fingerprint.device_name(), "runtime": self._session.version()}

    def outputs(
        self, path: str, inputs: str, save: str, start: int, stop: int, batch: int, threads: int, optimize: bool
    ) -> int:
        """Run examples start .. stop of an array file, save the first output; returns the number of examples.

        Args:
            threads: 0: as many as there are cores.
        """
        run = self._session.load(path, threads or os.cpu_count(), optimize, **self._options)
        examples = np.load(inputs, mmap_mode="r")
        chunks = [np.ascontiguousarray(examples[at : min(at + batch, stop)]) for at in range(start, stop, batch)]
        save_array(save, np.concatenate([run([chunk])[0] for chunk in chunks]))
        return stop - start

    def integer_nodes(self, path: str, inputs: str) -> list[str]:
        """Names of the nodes that the optimized graph computes in integers."""
        example = np.ascontiguousarray(np.load(inputs, mmap_mode="r")[:1])
        names: list[str] = self._session.integer_nodes(path, [example], **self._options)
        return names

    def environment(self, threads: int) -> dict[str, Any]:
        """What latencies depend on besides the files."""
        found: dict[str, Any] = fingerprint.fingerprint(threads, self._session.version())
        return found

    def latencies(
        self,
        reference: str,
        candidates: Sequence[str],
        inputs: str,
        threads: int,
        batch: int,
        effort: dict[str, Any],
        lease_log: str,
    ) -> list[dict[str, Any]]:
        """Time files against the reference on a batch of the first example, while nobody else measures on this device.

        Args:
            effort: fields of `timing.Effort`.
        """
        example = [np.repeat(np.load(inputs, mmap_mode="r")[:1], batch, axis=0)]
        files = [partial(self._load, path, threads) for path in (reference, *candidates)]
        with lease.lease(lease.lease_path(), lease_log), _pinned(threads):
            found = timing.measure(files, example, timing.Effort(**effort))
        environment = self.environment(threads)
        stamp = {"device": environment["device"], "environment": environment["id"], "load": environment["load"]}
        return [{**figures, **stamp} for figures in found]

    def footprint(self, path: str, inputs: str, threads: int) -> dict[str, Any]:
        """Memory and time that a file and its first inference take from this process, which should have done nothing before."""
        example = [np.ascontiguousarray(np.load(inputs, mmap_mode="r")[:1])]
        with lease.lease(lease.lease_path()), _pinned(threads):
            found: dict[str, Any] = footprint.measure(partial(self._load, path, threads), example)
        return found

    def energy(self, path: str, inputs: str, threads: int) -> dict[str, Any]:
        """Energy of one inference of the first example, where a counter can be read."""
        example = [np.ascontiguousarray(np.load(inputs, mmap_mode="r")[:1])]
        with lease.lease(lease.lease_path()), _pinned(threads):
            found: dict[str, Any] = energy.joules_per_inference(self._load(path, threads), example)
        return found

    def _load(self, path: str, threads: int) -> Run:
        run: Run = self._session.load(path, threads, True, **self._options)
        return run


def save_array(path: str | Path, array: Any) -> None:
    """As `numpy.save`, whose own error does not say that the disk is full."""
    whole = np.ascontiguousarray(array)
    with Path(path).open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(whole))
        file.write(whole.reshape(-1).view(np.uint8).data)


@contextmanager
def _pinned(threads: int) -> Iterator[None]:
    """Keep this process on as many cores as it times with."""
    if not hasattr(os, "sched_getaffinity"):
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(cores)[-threads:])
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def serve(runner: Runner, requests: IO[str], answers: IO[str]) -> None:
    """Answer requests until the other side closes the pipe."""
    for line in requests:
        request = json.loads(line)
        try:
            answer = {"ok": getattr(runner, request.pop("do"))(**request)}
        except Exception as error:
            number = error.errno if isinstance(error, OSError) else None
            answer = {"error": f"{type(error).__name__}: {error}", "errno": number, "trace": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def end_with_reader(answers: int) -> None:
    """End this process once nobody can read its answers any more: what it measures then would only disturb others."""
    reader = select.poll()
    reader.register(answers, 0)  # nothing but an error or the other side's end is reported
    if any(event & (select.POLLERR | select.POLLHUP) for _, event in reader.poll()):
        os._exit(1)


def main() -> None:
    """Serve on standard input and output; what the runtime prints goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    threading.Thread(target=end_with_reader, args=(answers.fileno(),), daemon=True).start()
    serve(Runner(load_module(sys.argv[1]), json.loads(sys.argv[2])), sys.stdin, answers)


if __name__ == "__main__":
    main()
