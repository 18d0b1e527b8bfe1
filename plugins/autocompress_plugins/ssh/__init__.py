"""Target `ssh`: the runtime of any other target, on a machine that OpenSSH's client reaches."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from autocompress import Capabilities, Target, Transport, hookimpl, load_registry
from autocompress.errors import ConfigError
from autocompress_plugins.ssh.client import SshTransport

HOST = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_.+-]*@)?[A-Za-z0-9_:][A-Za-z0-9_.:-]*")
"""[user@]name: nothing that begins like an option, and nothing that a shell would read."""


@dataclass
class Ssh(Target):
    """Files are measured there, and everything else is computed here.

    Attributes:
        host: [user@]name of the machine, as `ssh` takes it, known to `known_hosts` and reached without a password; port, key
            and jumps stand in the OpenSSH configuration.
        runtime: name of the target whose runtime runs there; the same, with its providers, is installed here, for calibration.
        settings: other fields of that target, by name: `+target.ssh.settings.provider_options={...}`.
        threads: threads of one inference when latency is measured.
        python: Python 3.10 or later there, with numpy and the runtime.
        folder: where files are kept there, below the home folder unless it is absolute; what was not used for a week goes.
        config: file with an OpenSSH configuration; empty: the user's own.
    """

    name = "ssh"

    host: str = MISSING
    runtime: str = "onnxruntime"
    settings: dict[str, Any] = field(default_factory=dict)
    threads: int = 1
    python: str = "python3"
    folder: str = ".cache/autocompress"
    config: str = ""

    def __post_init__(self) -> None:
        if not HOST.fullmatch(self.host):
            raise ConfigError(
                f"target.ssh.host={self.host!r}: expected [user@]name of letters, digits and . _ - : only; "
                "anything else belongs into the OpenSSH configuration, under a name of its own"
            )
        for name in ("python", "folder"):
            if getattr(self, name).startswith("-"):
                raise ConfigError(
                    f"target.ssh.{name}={getattr(self, name)!r}: expected a path; programs there would read an option"
                )

    @cached_property
    def _inner(self) -> Target:
        settings = {**self.settings, "threads": self.threads}
        target: Target = load_registry().create("target", self.runtime, settings)
        if not target.transport().here:
            raise ConfigError(f"target.ssh.runtime={self.runtime}: expected a target that runs on the machine itself")
        return target

    def capabilities(self) -> Capabilities:
        """Those of the runtime."""
        return self._inner.capabilities()

    @property
    def session_file(self) -> Path:
        """That of the runtime."""
        return self._inner.session_file

    @property
    def run_file(self) -> Path:
        """That of the runtime."""
        return self._inner.run_file

    def options(self) -> dict[str, object]:
        """Those of the runtime."""
        return self._inner.options()

    def transport(self) -> Transport:
        """OpenSSH's client."""
        return SshTransport(self.host, self.python, self.folder, self.config)


@hookimpl
def autocompress_targets() -> list[type[Target]]:
    """Another machine."""
    return [Ssh]
