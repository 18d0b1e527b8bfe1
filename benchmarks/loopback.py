"""An OpenSSH server on loopback with throw-away keys, for tests and benchmarks of the target `ssh`."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")

SERVER = """\
ListenAddress 127.0.0.1:{port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/user_key.pub
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
SetEnv HOME={folder}
"""

CLIENT = """\
Host board
    HostName 127.0.0.1
    Port {port}
    User {user}
    IdentityFile {folder}/user_key
    IdentitiesOnly yes
    UserKnownHostsFile {folder}/known_hosts
    GlobalKnownHostsFile none
"""


def why_missing() -> str:
    """What keeps a server from being started here; empty: nothing."""
    missing = [name for name in ("ssh", "ssh-keygen") if shutil.which(name) is None] + ([] if SSHD else ["sshd"])
    return f"no {', '.join(missing)}; install Debian's packages openssh-server and openssh-client" if missing else ""


@dataclass(frozen=True)
class Loopback:
    """A running server; `config` calls it `board`.

    Attributes:
        folder: keys and configuration; files that are sent go below it.
    """

    folder: Path
    process: int

    @property
    def config(self) -> Path:
        """What OpenSSH's client has to know."""
        return self.folder / "ssh_config"

    def overrides(self) -> list[str]:
        """A search's settings for the runtime of this very interpreter behind the server."""
        there = {"host": "board", "config": self.config, "python": sys.executable, "folder": self.folder / "cache"}
        return ["target=ssh", *(f"target.ssh.{name}={value}" for name, value in there.items())]

    def connections(self) -> list[int]:
        """Processes that serve a connection."""
        children = Path(f"/proc/{self.process}/task/{self.process}/children").read_text(encoding="utf-8")
        return [int(child) for child in children.split()]

    def drop(self) -> int:
        """End all connections at once, as a cut cable does for both sides; returns how many there were."""
        found = self.connections()
        for process in found:
            for each in (*_descendants(process), process):
                _kill(each)
        return len(found)


def _descendants(process: int) -> list[int]:
    """The server's own processes below one; what users run there is not among them."""
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text(encoding="utf-8").split()
        servers = [int(child) for child in children if Path(f"/proc/{child}/comm").read_text().startswith("sshd")]
    except OSError:
        return []
    return [each for server in servers for each in (*_descendants(server), server)]


def _kill(process: int) -> None:
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        return


@contextmanager
def open_loopback(folder: Path) -> Iterator[Loopback]:
    """Start a server as the current user; it ends with the block, and so do its connections."""
    port = _free_port()
    for name in ("host_key", "user_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    public = (folder / "host_key.pub").read_text(encoding="utf-8")
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {public}", encoding="utf-8")
    (folder / "sshd_config").write_text(SERVER.format(port=port, folder=folder), encoding="utf-8")
    (folder / "ssh_config").write_text(CLIENT.format(port=port, folder=folder, user=getpass.getuser()), encoding="utf-8")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    assert SSHD is not None
    with (folder / "sshd.log").open("wb") as log:
        server = subprocess.Popen([SSHD, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=log, start_new_session=True)
    loopback = Loopback(folder, server.pid)
    try:
        _wait_for(port, server, folder)
        yield loopback
    finally:
        loopback.drop()
        server.kill()
        server.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(port: int, server: subprocess.Popen[bytes], folder: Path, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise RuntimeError(f"sshd does not answer: {(folder / 'sshd.log').read_text(encoding='utf-8')}")
