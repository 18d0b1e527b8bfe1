"""Searches as processes that need no seconds to import: each is forked from one that has imported everything.

`python -m tests.faults.nursery` reads one JSON object a line, `{"folder", "arguments", "marker", "limits", "before"}`, and
answers with the process id; when a search has ended it writes `{"ended": id, "status": status}`.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.command import SMALL as QUICK

ROOT = Path(__file__).parents[2]

MARKER = "AUTOCOMPRESS_FAULTS"
"""Variable by whose value all processes of one search are known, whatever session or group they are in."""

STACK = "stack"
"""Name of the file that a search writes its stack to on SIGUSR1, beside its log."""

SMALL = (*QUICK, "hydra.run.dir=out")

PR_SET_PDEATHSIG = 1


@dataclass
class Started:
    """A search that runs, or has run."""

    folder: Path
    pid: int
    marker: str
    status: int | None = None
    begun: float = field(default_factory=time.monotonic)

    @property
    def log(self) -> str:
        """What it has said, on both streams."""
        path = self.folder / f"log-{self.marker}"
        return path.read_text() if path.exists() else ""

    def send(self, sign: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, sign)

    def stack(self, seconds: float = 0.1) -> str:
        """Where it is, the innermost call first; empty: it does not say so, or has ended."""
        path = self.folder / f"{STACK}-{self.marker}"
        if not path.exists() or self.status is not None:
            return ""
        before, end = path.stat().st_size, time.monotonic() + seconds
        self.send(signal.SIGUSR1)
        while time.monotonic() < end and path.stat().st_size == before:
            time.sleep(0.001)
        return path.read_text()[before:]

    def processes(self) -> list[psutil.Process]:
        """Those of it that live: itself and all that it started."""
        return [process for process in psutil.process_iter() if self._has(process)]

    def _has(self, process: psutil.Process) -> bool:
        try:
            own = process.pid == self.pid or process.environ().get(MARKER) == self.marker
            return own and process.status() != psutil.STATUS_ZOMBIE
        except (psutil.Error, OSError):
            return False

    def orphans(self, seconds: float = 10.0) -> list[str]:
        """Its processes that live on although it has ended; they have a while to notice."""
        end = time.monotonic() + seconds
        while (left := self.processes()) and time.monotonic() < end:
            time.sleep(0.05)
        return [" ".join(process.cmdline()) for process in left]


class Nursery:
    """Forks searches."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process, self._started = process, dict[int, Started]()

    def start(self, folder: Path, *arguments: str, limits: dict[str, int] | None = None, before: str = "") -> Started:
        """Start the command line in a folder.

        Args:
            limits: of `resource`, such as `RLIMIT_FSIZE`.
            before: Python that runs in the process first.
        """
        marker = uuid.uuid4().hex
        wanted = {"folder": str(folder), "arguments": arguments, "marker": marker, "limits": limits or {}, "before": before}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(wanted).encode() + b"\n")
        while "pid" not in (answer := self._answer()):
            self._note(answer)
        started = self._started[answer["pid"]] = Started(folder, answer["pid"], marker)
        return started

    def poll(self, started: Started, seconds: float = 0.0) -> int | None:
        """Its exit status, negative for a signal, as soon as it has ended, at the latest after some seconds."""
        end = time.monotonic() + seconds
        while started.status is None:
            wait = max(0.0, end - time.monotonic())
            assert self._process.stdout is not None
            if not select.select([self._process.stdout], [], [], wait)[0]:
                return None
            self._note(self._answer())
        return started.status

    def run(self, folder: Path, *arguments: str, seconds: float = 240.0, **how: Any) -> Started:
        """Run the command line to its end.

        Raises:
            TimeoutError: it takes longer; its stack is in the message.
        """
        started = self.start(folder, *arguments, **how)
        self.wait(started, seconds)
        return started

    def wait(self, started: Started, seconds: float = 240.0) -> int:
        """Its exit status.

        Raises:
            TimeoutError: it takes longer; it is killed, and its stack is in the message.
        """
        status = self.poll(started, seconds)
        if status is None:
            stack = started.stack(1.0)
            started.send(signal.SIGKILL)
            raise TimeoutError(f"not over after {seconds} s: {stack}\n{started.log}")
        return status

    def _answer(self) -> dict[str, int]:
        assert self._process.stdout is not None
        answer: dict[str, int] = json.loads(self._process.stdout.readline())
        return answer

    def _note(self, answer: dict[str, int]) -> None:
        self._started.pop(answer["ended"]).status = answer["status"]


@contextmanager
def nursery() -> Iterator[Nursery]:
    """A nursery that ends with its searches."""
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    paths = os.pathsep.join([str(ROOT / "tests"), str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-m", "tests.faults.nursery"],
        stdin=pipe,
        stdout=pipe,
        stderr=subprocess.DEVNULL,
        bufsize=0,  # `select` must see every answer
        cwd=ROOT,
        env={**os.environ, **one, "PYTHONPATH": paths},
    ) as process:
        try:
            yield Nursery(process)
        finally:
            process.kill()


def serve() -> None:
    """Fork what is asked for, tell of what has ended."""
    _import_everything()
    gc.freeze()  # no search copies what all share
    signal.signal(signal.SIGCHLD, lambda *_: None)
    woken, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker)
    requests, rest = sys.stdin.fileno(), b""
    while True:
        ready, _, _ = select.select([requests, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            _tell_ended()
        if requests in ready:
            read = os.read(requests, 1 << 16)
            if not read:
                return
            *lines, rest = (rest + read).split(b"\n")
            for line in lines:
                _say({"pid": _fork(json.loads(line))})


def _import_everything() -> None:
    import matplotlib.pyplot  # noqa: F401
    import mlflow.onnx
    import mlflow.store.tracking.sqlalchemy_store
    import mlflow.utils.requirements_utils
    import onnxruntime  # noqa: F401  (what a search imports late)
    import onnxscript  # noqa: F401
    import plotly.graph_objects  # noqa: F401
    import sklearn.datasets  # noqa: F401
    import torch._dynamo
    import torch.export

    import autocompress.verbs
    from autocompress.registry import load_registry
    from tests.small_net import small_net

    load_registry()
    with tempfile.TemporaryDirectory() as folder:  # what the first export and the first tracking of a process do once
        autocompress.network.exporting.export(small_net(), torch.zeros(1, 1, 8, 8), Path(folder, "warm.onnx"))
        mlflow.MlflowClient(f"sqlite:///{folder}/warm.db").search_experiments()
    mlflow.utils.requirements_utils._init_modules_to_packages_map()


def _say(answer: dict[str, int]) -> None:
    os.write(1, json.dumps(answer).encode() + b"\n")


def _tell_ended() -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        _say({"ended": pid, "status": os.waitstatus_to_exitcode(status)})


def _fork(wanted: dict[str, Any]) -> int:
    """As a shell starts a command in the foreground: a session of its own, and nothing to read."""
    pid = os.fork()
    if pid:
        return pid
    try:
        _become(wanted)
    except SystemExit as end:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code if isinstance(end.code, int) else int(end.code is not None))
    except BaseException:
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
    os._exit(1)


def _become(wanted: dict[str, Any]) -> None:
    import atexit
    import threading

    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.setsid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.chdir(wanted["folder"])
    os.environ[MARKER] = wanted["marker"]
    log = os.open(f"log-{wanted['marker']}", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
    for stream, file in ((0, os.open(os.devnull, os.O_RDONLY)), (1, log), (2, log)):
        os.dup2(file, stream)
    stack = os.open(f"{STACK}-{wanted['marker']}", os.O_CREAT | os.O_WRONLY, 0o644)
    faulthandler.register(signal.SIGUSR1, stack, all_threads=False)
    for name, limit in wanted["limits"].items():
        resource.setrlimit(getattr(resource, name), (limit, limit))
    exec(wanted["before"], {})
    from autocompress.cli import main

    try:
        main(wanted["arguments"])
    finally:
        threading._shutdown()
        atexit._run_exitfuncs()


if __name__ == "__main__":
    serve()
