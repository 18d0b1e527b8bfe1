"""OpenSSH's client as the way to another machine: one connection, shared by the process that measures and one for files."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from autocompress import Transport
from autocompress.errors import AutocompressError, ConfigError, ConnectionLostError, UnreachableError

OPTIONS = {
    "BatchMode": "yes",  # never ask: a password or a new host key is an error
    "StrictHostKeyChecking": "yes",
    "ControlMaster": "auto",
    "ControlPersist": "60",  # a master whose search was killed ends by itself
    "ConnectTimeout": "10",
    "ServerAliveInterval": "5",
    "ServerAliveCountMax": "3",
    "ClearAllForwardings": "yes",
    "ForwardAgent": "no",  # the other machine measures; it gets nobody's keys, whatever the user's configuration forwards
    "ForwardX11": "no",
    "RemoteCommand": "none",
    "RequestTTY": "no",
}

CONNECTION_FAILED = 255
"""Status of `ssh` when it is not that of the command."""

REFUSALS = {
    "HAS CHANGED": "its host key is not the one in known_hosts: another machine answers, or it was set up anew",
    "host key is known": "its host key is not in known_hosts; connect once by hand and compare the fingerprint",
    "Permission denied": "it refuses the login; expected a key that works without a password",
    "Bad configuration option": "OpenSSH's client does not understand its configuration",
}
"""What `ssh` says when trying again cannot help, and what that means."""

LOSSES = ("Connection closed", "Connection reset", "Broken pipe")
"""What it says, if anything, when a machine that does answer went away: also the first connection is tried again then."""

READY = "autocompress is ready"

RUN = f'echo "{READY}"; "$@"; exit $?'
"""Starts a process. What the login shell printed comes before the first line. The shell stays, so that a signal that ends the
process is told by the status 128 + signal, and not by 255.
"""

STORE = Path(__file__).with_name("store.py")


class SshTransport(Transport):
    """Another machine. A file is called there by the SHA-256 of its content, so that it is sent once, also for later runs.

    Args:
        host: [user@]name, already validated.
        python: the interpreter there.
        folder: where files are kept there.
        config: file with an OpenSSH configuration; empty: the user's own.
    """

    def __init__(self, host: str, python: str, folder: str, config: str) -> None:
        if shutil.which("ssh") is None:
            raise ConfigError("target ssh: no command `ssh`; expected OpenSSH's client on the PATH")
        self._host, self._python, self._folder, self._config = host, python, folder, config
        self._sockets: str | None = None
        self._store: subprocess.Popen[bytes] | None = None
        self._complaints: IO[bytes] | None = None
        self._was_reached = False
        self._names: dict[Path, tuple[tuple[int, ...], str]] = {}
        self._there: set[str] = set()

    def start(self, script: Path, arguments: Sequence[Path | str]) -> subprocess.Popen[str]:
        """The script in the Python there."""
        words = [self.send(word) if isinstance(word, Path) else word for word in (script, *arguments)]
        command = self._command(RUN, self._python, *words, quiet=True)
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, start_new_session=True)
        _await_ready(process)
        return process

    def send(self, path: Path) -> str:
        """Copy the file unless it is there with this very content.

        Raises:
            UnreachableError: it cannot be stored there.
        """
        name = self._name(path)
        if name not in self._there:
            self._drop_outdated()
            if not self._request("has", name):
                self._put(path, name)
            self._there.add(name)
        return f"{self._folder}/{name}"

    def place(self, path: Path) -> str:
        """In the same folder."""
        return f"{self._folder}/{path.name}"

    def fetch(self, path: Path) -> None:
        """Copy the result, make sure that it arrived whole, and remove it there."""
        found = self._request("get", path.name)
        content = self._read(found["size"])
        if hashlib.sha256(content).hexdigest() != found["sha256"]:
            raise ConnectionLostError(f"target ssh: {self._host}: a result did not arrive whole")
        path.write_bytes(content)

    def is_lost(self, status: int) -> bool:
        """Also when the client itself was ended."""
        return status == CONNECTION_FAILED or status < 0

    def close(self) -> None:
        """End the shared connection."""
        self._stop()
        if self._sockets is not None:
            subprocess.run(self._client("-O", "exit", "--", self._host), capture_output=True, check=False)
            shutil.rmtree(self._sockets, ignore_errors=True)
            self._sockets = None

    def _name(self, path: Path) -> str:
        """The content's SHA-256 with the file's suffix, computed again when the file has changed."""
        stat = path.stat()
        state = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        if path not in self._names or self._names[path][0] != state:
            with path.open("rb") as file:
                self._names[path] = (state, hashlib.file_digest(file, "sha256").hexdigest() + path.suffix)
        return self._names[path][1]

    def _put(self, path: Path, name: str) -> None:
        found, digest = self._request("put", name, path), name.removesuffix(path.suffix)
        if found != digest:
            raise ConnectionLostError(
                f"target ssh: {self._host}: {path.name} arrived with SHA-256 {found[:12]}, expected {digest[:12]}"
            )

    def _drop_outdated(self) -> None:
        """Remove files there whose originals are gone or have changed: candidates of earlier trials."""
        self._names = {path: known for path, known in self._names.items() if path.exists()}
        for name in self._there - {name for _, name in self._names.values()}:
            self._request("drop", name)
            self._there.discard(name)

    def _request(self, do: str, name: str, body: Path | None = None) -> Any:
        """What the process for files answers.

        Raises:
            ConnectionLostError: the connection is gone.
            UnreachableError: nobody answers, and nobody did before; or the other side refuses or is refused.
        """
        store = self._opened()
        assert store.stdin is not None and store.stdout is not None
        try:
            size = body.stat().st_size if body else 0
            store.stdin.write(json.dumps({"do": do, "name": name, "size": size}).encode() + b"\n")
            if body:
                with body.open("rb") as file:
                    shutil.copyfileobj(file, store.stdin, 1 << 20)
            store.stdin.flush()
            answer = json.loads(store.stdout.readline())
        except (BrokenPipeError, json.JSONDecodeError):
            raise self._failure(store) from None
        except BaseException:
            self._stop()  # half a request must not be taken for the beginning of the next
            raise
        if "error" in answer:
            raise UnreachableError(f"target ssh: {self._host}: {answer['error']}")
        return answer["ok"]

    def _read(self, size: int) -> bytes:
        store = self._opened()
        assert store.stdout is not None
        try:
            content = store.stdout.read(size)
        except BaseException:
            self._stop()  # the rest must not be taken for the next answer
            raise
        if len(content) < size:
            raise self._failure(store)
        return content

    def _opened(self) -> subprocess.Popen[bytes]:
        """The process for files."""
        if self._store is None:
            self._complaints = tempfile.TemporaryFile()  # noqa: SIM115  (the master would hold a pipe open)
            command = self._command(RUN, self._python, "-c", STORE.read_text(encoding="utf-8"), self._folder)
            pipe, complaints = subprocess.PIPE, self._complaints
            store = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=complaints, start_new_session=True)
            self._store = store
            if not _await_ready(store):
                raise self._failure(store)
            self._was_reached = True
        return self._store

    def _failure(self, store: subprocess.Popen[bytes]) -> AutocompressError:
        """Why the process for files ended."""
        status = store.wait()
        assert self._complaints is not None
        self._complaints.seek(0)
        message = self._complaints.read().decode(errors="replace")
        self._stop()
        lost = "the connection was lost" if self.is_lost(status) else f"status {status}"
        last = next((line.strip() for line in reversed(message.splitlines()) if line.strip()), lost)
        why = next((f"{meaning} ({last})" for sign, meaning in REFUSALS.items() if sign in message), None)
        was_there = self._was_reached or not message.strip() or any(sign in message for sign in LOSSES)
        may_return = why is None and was_there and self.is_lost(status)
        return (ConnectionLostError if may_return else UnreachableError)(f"target ssh: {self._host}: {why or last}")

    def _stop(self) -> None:
        """End the process for files, and trust no longer in what it has."""
        self._there.clear()
        if self._store is not None:
            self._store.kill()
            self._store.communicate()
            self._store = None
        if self._complaints is not None:
            self._complaints.close()
            self._complaints = None

    def _command(self, script: str, *arguments: str, quiet: bool = False) -> list[str]:
        """The command that runs a shell script there; the login shell there sees one quoted word for each of ours."""
        there = shlex.join(["sh", "-c", script, "sh", *arguments])
        return self._client(*(["-q"] if quiet else []), "--", self._host, there)

    def _client(self, *arguments: str) -> list[str]:
        if self._sockets is None:
            self._sockets = tempfile.mkdtemp(prefix="autocompress-")
        options = {**OPTIONS, "ControlPath": f"{self._sockets}/%C"}
        given = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        return ["ssh", *(["-F", self._config] if self._config else []), *given, *arguments]


def _await_ready(process: subprocess.Popen[Any]) -> bool:
    """Read what the login shell prints, up to our own first line; False: the process ended before it."""
    assert process.stdout is not None
    try:
        while line := process.stdout.readline():
            if line.strip() in (READY, READY.encode()):
                return True
    except BaseException:
        process.kill()
        process.communicate()
        raise
    return False
