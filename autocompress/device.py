"""Talks to the process that runs model files."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median_low
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress import runner
from autocompress.budget import NO_LIMITS, Budget, Energy, Footprint, Latency
from autocompress.components import Target
from autocompress.errors import ConfigError, RuntimeCrashError


@dataclass
class TimingSettings:
    """How latency is measured (`autocompress.timing`).

    Attributes:
        seconds: so many for one file beside the reference, each further file adds half; five openings of the files are timed at
            least. A close decision about the budget, or a machine whose speed wanders, takes up to three times as long.
        precision: stop when the half-width of the ratio's 95 % interval is within this share of it.
        batch: examples of one inference.
        lease_log: file on the device to which the start and end of each measurement are appended; empty: none.
    """

    seconds: float = 1.5
    precision: float = 0.01
    batch: int = 1
    lease_log: str = ""

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ConfigError(f"timing.batch={self.batch}: expected at least 1")


class Device:
    """A target's runtime in a process of its own, restarted after a crash."""

    def __init__(self, target: Target, threads: int) -> None:
        self._target, self._threads = target, threads
        self._process: subprocess.Popen[str] | None = None

    def describe(self) -> dict[str, str]:
        """Names of the `device` and the `runtime`."""
        description: dict[str, str] = self._ask("describe")
        return description

    def outputs(self, path: Path, inputs: Path, start: int, stop: int, batch: int, optimize: bool = True) -> NDArray[Any]:
        """First output of a file for examples start .. stop of an array file."""
        with tempfile.NamedTemporaryFile(suffix=".npy", dir=inputs.parent) as file:
            request = {"path": str(path), "inputs": str(inputs), "save": file.name, "threads": self._threads}
            self._ask("outputs", **request, start=start, stop=stop, batch=batch, optimize=optimize)
            array: NDArray[Any] = np.load(file.name)
            return array

    def integer_nodes(self, path: Path, inputs: Path) -> frozenset[str]:
        """Names of the nodes that the optimized graph computes in integers."""
        return frozenset(self._ask("integer_nodes", path=str(path), inputs=str(inputs)))

    def environment(self) -> dict[str, Any]:
        """What latencies depend on besides the files: `autocompress.fingerprint`."""
        found: dict[str, Any] = self._ask("environment", threads=self._target.threads)
        return found

    def latency(
        self, reference: Path, candidate: Path, inputs: Path, timing: TimingSettings, budget: Budget = NO_LIMITS
    ) -> Latency:
        """Time one file: `latencies` of one candidate."""
        return self.latencies(reference, [candidate], inputs, timing, budget)[0]

    def latencies(
        self, reference: Path, candidates: Sequence[Path], inputs: Path, timing: TimingSettings, budget: Budget = NO_LIMITS
    ) -> list[Latency]:
        """Time files against the reference in the same interleaved rounds, with the target's threads.

        Args:
            budget: its percentile is what is timed. Timing stops early for a file that is above a limit for sure, and goes on
                while one cannot be told.

        Returns:
            One for each candidate, in their order.
        """
        paths = {"reference": str(reference), "candidates": [str(path) for path in candidates], "inputs": str(inputs)}
        effort = {
            "seconds": timing.seconds,
            "precision": timing.precision,
            "percentile": budget.latency_percentile,
            "ratio_limit": budget.latency_ratio,
            "ms_limit": budget.latency_ms,
        }
        how = {"threads": self._target.threads, "batch": timing.batch, "effort": effort, "lease_log": timing.lease_log}
        return [Latency(**figures) for figures in self._ask("latencies", **paths, **how)]

    def footprint(self, path: Path, inputs: Path, processes: int) -> Footprint:
        """What a file costs a process that loads it and runs it once: each figure's median over fresh processes."""
        found = [self._loaded_afresh(path, inputs) for _ in range(processes)]
        medians = {name: median_low(figures[name] for figures in found) for name in found[0] if found[0][name] is not None}
        return Footprint(**{"memory_bytes": None, "process_bytes": None, **medians})

    def _loaded_afresh(self, path: Path, inputs: Path) -> dict[str, Any]:
        with open_device(self._target, self._threads) as fresh:
            request = {"path": str(path), "inputs": str(inputs), "threads": self._target.threads}
            figures: dict[str, Any] = fresh._ask("footprint", **request)
            return figures

    def energy(self, path: Path, inputs: Path) -> Energy:
        """Energy of one inference, with the target's threads."""
        return Energy(**self._ask("energy", path=str(path), inputs=str(inputs), threads=self._target.threads))

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _ask(self, do: str, **arguments: Any) -> Any:
        line = self._exchange(json.dumps({"do": do, **arguments}))
        if not line:
            raise RuntimeCrashError(
                f"target {self._target.name}: the runtime's process ended ({self._end()}) while asked to {do}"
            )
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeCrashError(f"target {self._target.name}: {do}: {' '.join(answer['error'].split())}")
        return answer["ok"]

    def _exchange(self, request: str) -> str:
        """One request, one answer; empty when the process ended. An interrupted request must not leave its answer behind."""
        process = self._running()
        assert process.stdin is not None and process.stdout is not None
        try:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(request + "\n")
                process.stdin.flush()
            return process.stdout.readline()
        except BaseException:
            self.close()
            raise

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            self._process = self._start()
        return self._process

    def _start(self) -> subprocess.Popen[str]:
        options = json.dumps(self._target.options())
        command = [sys.executable, "-P", runner.__file__, str(self._target.session_file), options]
        # A session of its own: Ctrl-C reaches the search, which then ends this process in order.
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)

    def _end(self) -> str:
        assert self._process is not None
        status = self._process.wait()
        self.close()
        return f"signal {-status}" if status < 0 else f"status {status}"


@contextlib.contextmanager
def open_device(target: Target, threads: int) -> Iterator[Device]:
    """A device that is closed at the end.

    Args:
        threads: threads for computing outputs; latency uses the target's own.
    """
    device = Device(target, threads)
    try:
        yield device
    finally:
        device.close()
