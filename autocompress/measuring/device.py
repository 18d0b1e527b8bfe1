"""Talks to the process that runs model files."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median_low
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.bounds import check_positive
from autocompress.budget import NO_LIMITS, Budget, Energy, Footprint, Latency
from autocompress.components import Target
from autocompress.errors import ConfigError, ConnectionLostError, RuntimeCrashError
from autocompress.guarding.disk import UNWRITABLE, unwritable
from autocompress.measuring import runner
from autocompress.measuring.persistence import persist
from autocompress.transport import Transport

PATIENCE_SECONDS = 600.0
"""How long a lost connection is tried again by default: a machine that starts anew is back by then."""


FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals that no crash of a runtime gives."""


class _KilledError(RuntimeCrashError):
    """The runtime's process was ended by something else."""


@dataclass
class TimingSettings:
    """How latency is measured (`autocompress.measuring.timing`).

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
        check_positive("timing", self, "seconds")
        check_positive("timing", self, "precision", zero=True)


class Device:
    """A target's runtime in a process of its own, restarted after a crash.

    Args:
        threads: threads for computing outputs on this machine; elsewhere as many as that machine has cores.
        transport: the way to another machine than the target's own.
        patience: seconds for which a lost connection is tried again; None: for ever.
    """

    def __init__(
        self, target: Target, threads: int, transport: Transport | None = None, patience: float | None = PATIENCE_SECONDS
    ) -> None:
        self._transport = transport or target.transport()
        self._target, self._threads, self._patience = target, threads if self._transport.here else 0, patience
        self._process: subprocess.Popen[str] | None = None

    @property
    def is_here(self) -> bool:
        """Whether it is this machine."""
        return self._transport.here

    def describe(self) -> dict[str, str]:
        """Names of the `device` and the `runtime`."""
        description: dict[str, str] = self._ask("describe")
        return description

    def outputs(self, path: Path, inputs: Path, start: int, stop: int, batch: int, optimize: bool = True) -> NDArray[Any]:
        """First output of a file for examples start .. stop of an array file."""
        with tempfile.NamedTemporaryFile(suffix=".npy", dir=inputs.parent) as file:
            examples: dict[str, Any] = {"inputs": inputs, "start": start, "stop": stop, "batch": batch}
            self._ask("outputs", Path(file.name), path=path, **examples, threads=self._threads, optimize=optimize)
            array: NDArray[Any] = np.load(file.name)
            return array

    def integer_nodes(self, path: Path, inputs: Path) -> frozenset[str]:
        """Names of the nodes that the optimized graph computes in integers."""
        return frozenset(self._ask("integer_nodes", path=path, inputs=inputs))

    def environment(self) -> dict[str, Any]:
        """What latencies depend on besides the files: `autocompress.measuring.fingerprint`."""
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
        files: dict[str, Any] = {"reference": reference, "candidates": list(candidates), "inputs": inputs}
        effort: dict[str, Any] = {
            "seconds": timing.seconds,
            "precision": timing.precision,
            "percentile": budget.latency_percentile,
            "ratio_limit": budget.latency_ratio,
            "ms_limit": budget.latency_ms,
        }
        how: dict[str, Any] = {
            "threads": self._target.threads,
            "batch": timing.batch,
            "effort": effort,
            "lease_log": timing.lease_log,
        }
        return [Latency(**figures) for figures in self._ask("latencies", **files, **how)]

    def footprint(self, path: Path, inputs: Path, processes: int) -> Footprint:
        """What a file costs a process that loads it and runs it once: each figure's median over fresh processes."""
        found = [self._loaded_afresh(path, inputs) for _ in range(processes)]
        medians = {name: median_low(figures[name] for figures in found) for name in found[0] if found[0][name] is not None}
        return Footprint(**{"memory_bytes": None, "process_bytes": None, **medians})

    def _loaded_afresh(self, path: Path, inputs: Path) -> dict[str, Any]:
        """In a process of its own, over the same connection."""
        fresh = Device(self._target, self._threads, self._transport, self._patience)
        try:
            figures: dict[str, Any] = fresh._ask("footprint", path=path, inputs=inputs, threads=self._target.threads)
            return figures
        finally:
            fresh._stop()

    def energy(self, path: Path, inputs: Path) -> Energy:
        """Energy of one inference, with the target's threads."""
        return Energy(**self._ask("energy", path=path, inputs=inputs, threads=self._target.threads))

    def close(self) -> None:
        """End the process, and the connection to it."""
        self._stop()
        self._transport.close()

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            for stream in (self._process.stdin, self._process.stdout):
                assert stream is not None
                with contextlib.suppress(OSError):  # half a request for a process that has ended
                    stream.close()  # not read to its end: another process may hold the other side
            self._process.wait()
            self._process = None

    def _ask(self, do: str, save: Path | None = None, **arguments: Any) -> Any:
        """The answer to one request, made again while the machine is away.

        Args:
            save: the local file that shall hold what the request saves.
            arguments: JSON values; paths and lists of paths are local ones.
        """
        try:
            return persist(lambda: self._attempt(do, save, arguments), self._patience)
        except _KilledError:  # somebody did that, or the machine had no memory left: once more tells which
            return persist(lambda: self._attempt(do, save, arguments), self._patience)

    def _attempt(self, do: str, save: Path | None, arguments: Mapping[str, Any]) -> Any:
        try:
            return self._answer(do, save, arguments)
        except ConnectionLostError:
            self.close()  # who knows what is left on the other side
            raise

    def _answer(self, do: str, save: Path | None, arguments: Mapping[str, Any]) -> Any:
        there = {name: self._sent(value) for name, value in arguments.items()}
        if save is not None:
            there["save"] = self._transport.place(save)
        line = self._exchange(json.dumps({"do": do, **there}))
        if not line.endswith("\n"):
            raise self._end(do)
        answer = json.loads(line)
        if "error" in answer:
            if save is not None and answer["errno"] in UNWRITABLE:
                raise unwritable(answer["errno"], save)
            raise RuntimeCrashError(f"target {self._target.name}: {do}: {' '.join(answer['error'].split())}")
        if save is not None:
            self._transport.fetch(save)
        return answer["ok"]

    def _sent(self, value: Any) -> Any:
        """The value with paths of this machine replaced by paths there."""
        if isinstance(value, list):
            return [self._sent(entry) for entry in value]
        return self._transport.send(value) if isinstance(value, Path) else value

    def _exchange(self, request: str) -> str:
        """One request, one answer in a line; less when the process ended. An interrupted request must not leave one behind."""
        process = self._running()
        assert process.stdin is not None and process.stdout is not None
        try:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(request + "\n")
                process.stdin.flush()
            return process.stdout.readline()
        except BaseException:
            self._stop()
            raise

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            options = json.dumps(self._target.options())
            self._process = self._transport.start(
                Path(runner.__file__), [self._target.session_file, options, *runner.COMPANION_FILES]
            )
        return self._process

    def _end(self, do: str) -> RuntimeCrashError | ConnectionLostError:
        """Why a request was not answered."""
        assert self._process is not None
        status = self._process.wait()
        self._stop()
        if self._transport.is_lost(status):
            return ConnectionLostError(f"target {self._target.name}: the connection was lost while asked to {do}")
        how = f"signal {-status}" if status < 0 else f"status {status}"
        kind = _KilledError if -status in FROM_OUTSIDE else RuntimeCrashError
        return kind(f"target {self._target.name}: the runtime's process ended ({how}) while asked to {do}")


@contextlib.contextmanager
def open_device(
    target: Target, threads: int, transport: Transport | None = None, patience: float | None = PATIENCE_SECONDS
) -> Iterator[Device]:
    """A device that is closed at the end; latency uses the target's own threads. For the arguments see `Device`."""
    device = Device(target, threads, transport, patience)
    try:
        yield device
    finally:
        device.close()
