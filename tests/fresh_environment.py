"""A new environment to install into, without a network: all that is installed here is there too."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path


def create(folder: Path) -> Path:
    """Make an environment; returns its interpreter."""
    venv.create(folder, symlinks=True)
    paths = {"base": str(folder), "platbase": str(folder)}
    ours = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    lines = [f"import site; site.addsitedir({path!r})" for path in sorted(ours)]  # with what is installed there as editable
    Path(sysconfig.get_path("purelib", vars=paths), "borrowed.pth").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "bin" / "python"


def install(python: Path, source: Path, *flags: str) -> None:
    """Install a package from its sources."""
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--disable-pip-version-check"]
    flags = ("--no-deps", "--no-index", "--no-build-isolation", *flags)
    done = subprocess.run([*pip, *flags, str(source)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
