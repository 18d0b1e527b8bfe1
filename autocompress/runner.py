"""The process that runs model files: times them, and computes their outputs.

Self-contained: standard library and numpy only; the runtime comes through a session module given by its path. A crash of the
runtime ends this process and costs one trial; the same file can be executed on another device.

Protocol: one JSON object a line. Request `{"do": name, ...arguments}`; answer `{"ok": value}` or `{"error": text}`.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import platform
import random
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

Run = Callable[[Sequence[Any]], list[Any]]

WARM_UP_SECONDS = 0.1
WARM_UP_CALLS = 5
BLOCK_SECONDS = 0.01
MIN_ROUNDS = 11
RESAMPLES = 400


def load_module(path: str) -> Any:
    """Import a session module from its file."""
    spec = importlib.util.spec_from_file_location("autocompress_session", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
        return {"device": device_name(), "runtime": self._session.version()}

    def outputs(
        self, path: str, inputs: str, save: str, start: int, stop: int, batch: int, threads: int, optimize: bool
    ) -> int:
        """Run examples start .. stop of an array file, save the first output; returns the number of examples."""
        run = self._session.load(path, threads, optimize, **self._options)
        examples = np.load(inputs, mmap_mode="r")
        chunks = [np.ascontiguousarray(examples[at : min(at + batch, stop)]) for at in range(start, stop, batch)]
        np.save(save, np.concatenate([run([chunk])[0] for chunk in chunks]))
        return stop - start

    def integer_nodes(self, path: str, inputs: str) -> list[str]:
        """Names of the nodes that the optimized graph computes in integers."""
        example = np.ascontiguousarray(np.load(inputs, mmap_mode="r")[:1])
        names: list[str] = self._session.integer_nodes(path, [example], **self._options)
        return names

    def latencies(
        self,
        reference: str,
        candidates: Sequence[str],
        inputs: str,
        threads: int,
        seconds: float,
        precision: float,
        limit: float | None,
    ) -> list[dict[str, Any]]:
        """Time files against the reference in interleaved rounds on the first example."""
        example = [np.ascontiguousarray(np.load(inputs, mmap_mode="r")[:1])]
        cores = _pin(threads)
        try:
            runs = [self._session.load(path, threads, True, **self._options) for path in (reference, *candidates)]
            return interleave(runs, example, seconds, precision, limit)
        finally:
            _unpin(cores)


def interleave(
    runs: Sequence[Run], inputs: Sequence[Any], seconds: float, precision: float, limit: float | None = None
) -> list[dict[str, Any]]:
    """Time [reference, *candidates] in rounds of random order until every ratio is known well enough or the time is over.

    Within a round all see the same machine, so the ratio of a candidate's median in the round to the reference's cancels drift
    and neighbours. The ratio reported is the median over rounds, its 95 % interval a percentile bootstrap (Efron 1979).

    Args:
        seconds: for one candidate; several get as many rounds each.
        precision: half-width of the interval, relative, at which a ratio is known well enough.
        limit: a ratio whose whole interval lies above it is known well enough too.

    Returns:
        The figures of each candidate, in their order.
    """
    calls = [_warm_up(run, inputs) for run in runs]
    samples: list[list[float]] = [[] for _ in runs]
    ratios: list[list[float]] = [[] for _ in runs[1:]]
    shuffle = random.Random(0)
    end = time.perf_counter() + seconds * len(runs) / 2
    gc.disable()
    try:
        while not _is_over(ratios, end, precision, limit):
            medians = [0.0 for _ in runs]
            for index in shuffle.sample(range(len(runs)), len(runs)):
                block = _block(runs[index], inputs, calls[index])
                samples[index].extend(block)
                medians[index] = float(np.median(block))
            for found, median in zip(ratios, medians[1:], strict=True):
                found.append(median / medians[0])
    finally:
        gc.enable()
    return [_figures(times, samples[0], found) for times, found in zip(samples[1:], ratios, strict=True)]


def _is_over(ratios: Sequence[Sequence[float]], end: float, precision: float, limit: float | None) -> bool:
    if len(ratios[0]) < MIN_ROUNDS:
        return False
    return time.perf_counter() >= end or all(_is_known(found, precision, limit) for found in ratios)


def _is_known(ratios: Sequence[float], precision: float, limit: float | None) -> bool:
    low, high = _interval(ratios)
    return (high - low) / (2 * float(np.median(ratios))) <= precision or (limit is not None and low > limit)


def _figures(times: Sequence[float], reference: Sequence[float], ratios: Sequence[float]) -> dict[str, Any]:
    low, high = _interval(ratios)
    return {
        "median_ms": float(np.median(times)),
        "p95_ms": float(np.percentile(times, 95)),
        "reference_median_ms": float(np.median(reference)),
        "ratio": float(np.median(ratios)),
        "ratio_low": low,
        "ratio_high": high,
        "rounds": len(ratios),
        "device": device_name(),
    }


def _warm_up(run: Run, inputs: Sequence[Any]) -> int:
    """Run until caches and clocks have settled; returns the calls that fill one block."""
    start, calls = time.perf_counter(), 0
    while calls < WARM_UP_CALLS or time.perf_counter() - start < WARM_UP_SECONDS:
        run(inputs)
        calls += 1
    return max(1, round(BLOCK_SECONDS * calls / (time.perf_counter() - start)))


def _block(run: Run, inputs: Sequence[Any], calls: int) -> list[float]:
    times = []
    for _ in range(calls):
        start = time.perf_counter_ns()
        run(inputs)
        times.append((time.perf_counter_ns() - start) / 1e6)
    return times


def _interval(ratios: Sequence[float]) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the median."""
    values = np.asarray(ratios)
    draws = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.percentile(np.median(values[draws], axis=1), [2.5, 97.5])
    return float(low), float(high)


def _pin(threads: int) -> set[int] | None:
    """Keep this process on as many cores as it times with; returns the cores it had."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(cores)[-threads:])
    return cores


def _unpin(cores: set[int] | None) -> None:
    if cores is not None:
        os.sched_setaffinity(0, cores)


def device_name() -> str:
    """Processor model and machine type, for people."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{model or 'CPU'} ({platform.machine()})"


def serve(runner: Runner, requests: IO[str], answers: IO[str]) -> None:
    """Answer requests until the other side closes the pipe."""
    for line in requests:
        request = json.loads(line)
        try:
            answer = {"ok": getattr(runner, request.pop("do"))(**request)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def main() -> None:
    """Serve on standard input and output; what the runtime prints goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(Runner(load_module(sys.argv[1]), json.loads(sys.argv[2])), sys.stdin, answers)


if __name__ == "__main__":
    main()
