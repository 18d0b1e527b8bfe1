"""What `autocompress doctor` looks at on this machine: versions, cores and memory, disk, folders, plugins."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement

from autocompress.commands.check import Check
from autocompress.inputs.cache import cache_folder
from autocompress.registry import DISABLED, Registry

DISTRIBUTION = "autocompress"
DATA = "AUTOCOMPRESS_DATA"
CGROUP = Path("/sys/fs/cgroup")
LEAST_BYTES, ENOUGH_BYTES = 200 << 20, 2 << 30
"""Free space without which a search cannot write its files, and below which a larger model may fill the disk."""

DEVELOPMENT = ("test", "docs")
"""Extras that no search uses."""


def versions() -> Check:
    """Of Python and of every package that this one needs, against the versions that it is made for."""
    needed = [requirement for requirement in _requirements() if not requirement.marker]
    optional = [entry for entry in _requirements() if _is_optional(entry) and _version(entry.name)]
    wrong = [entry for entry in (*needed, *optional) if not entry.specifier.contains(_version(entry.name) or "0")]
    found = [f"{name}{_installed(name)}" for name in dict.fromkeys(entry.name for entry in (*needed, *optional))]
    advice = f"pip install {' '.join(repr(f'{entry.name}{entry.specifier}') for entry in wrong)}" if wrong else ""
    return Check("versions", f"python=={platform.python_version()}, {', '.join(found)}", advice, usable=not wrong)


def _requirements() -> list[Requirement]:
    return [Requirement(written) for written in importlib.metadata.requires(DISTRIBUTION) or []]


def _is_optional(requirement: Requirement) -> bool:
    marker, metadata = requirement.marker, importlib.metadata.metadata(DISTRIBUTION)
    extras = [extra for extra in metadata.get_all("Provides-Extra") or [] if extra not in DEVELOPMENT]
    return marker is not None and any(marker.evaluate({"extra": extra}) for extra in extras)


def _installed(name: str) -> str:
    version = _version(name)
    return f"=={version}" if version else " is not installed"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def cores(threads: int) -> Check:
    """How many cores and how much memory this process may use, beside the threads that inferences are timed with."""
    allowed, quota, memory = len(os.sched_getaffinity(0)), cgroup_cores(), cgroup_memory()
    limits = [f"cgroup gives {quota:g} cores"] if quota is not None else []
    limits += [f"cgroup gives {memory / (1 << 30):.1f} GiB"] if memory is not None else []
    found = f"{os.cpu_count()} cores, {allowed} for this process; {', '.join(limits) or 'no cgroup limits'}; {_memory()}"
    usable = min(allowed, quota if quota is not None else allowed)
    advice = f"{threads} threads are timed on fewer cores: lower the target's threads" if threads > usable else ""
    return Check("cores", found, advice)


def cgroup_cores(folder: Path = CGROUP) -> float | None:
    """Cores that the container may use on average; None: no limit (versions 2 and 1 of cgroups)."""
    limit = _words(folder / "cpu.max") or [*_words(folder / "cpu/cpu.cfs_quota_us"), *_words(folder / "cpu/cpu.cfs_period_us")]
    return int(limit[0]) / int(limit[1]) if len(limit) == 2 and limit[0] not in ("max", "-1") else None


def cgroup_memory(folder: Path = CGROUP) -> int | None:
    """Bytes that the container may use; None: no limit."""
    limit = _words(folder / "memory.max") or _words(folder / "memory/memory.limit_in_bytes")
    return int(limit[0]) if limit and limit[0].isdigit() and int(limit[0]) < 1 << 60 else None


def _words(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split() if path.is_file() else []


def _memory() -> str:
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / (1 << 30):.1f} GiB of memory"


def folder(name: str, path: Path) -> Check:
    """Whether files can be written to a folder, or to where it will be made, and how much space is free there."""
    there = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            free = shutil.disk_usage(there).free
    except OSError as error:
        return Check(name, f"{path} cannot be written ({error.strerror})", _remedy(name), usable=False)
    found = f"{path.absolute()}, {free / (1 << 30):.1f} GiB free"
    advice = "free some space there" if free < LEAST_BYTES else "little for large models" if free < ENOUGH_BYTES else ""
    return Check(name, found, advice, usable=free >= LEAST_BYTES)


def _remedy(name: str) -> str:
    return "set XDG_CACHE_HOME to another folder" if name == "cache" else "start it elsewhere, or set hydra.run.dir=FOLDER"


def folders() -> Iterable[Check]:
    """Those that are written to, made by the first search where they are not there yet."""
    return folder("cache", cache_folder()), folder("outputs", Path("outputs"))


def data() -> Check:
    """The user's own data; what is bundled needs none."""
    root = os.environ.get(DATA)
    if not root:
        return Check("data", f"{DATA} is not set; the digits and tables of scikit-learn need none")
    if not Path(root).is_dir() or not os.access(root, os.R_OK | os.X_OK):
        return Check("data", f"{DATA}={root} is no readable folder", f"correct or unset {DATA}", usable=False)
    return Check("data", f"{DATA}={root}, {len(list(Path(root).iterdir()))} entries")


def plugins(registry: Registry) -> Check:
    """What did not load, and why."""
    broken = [plugin for plugin in registry.plugins if plugin.problem and DISABLED not in plugin.problem]
    disabled = [plugin.name for plugin in registry.plugins if plugin.problem and DISABLED in plugin.problem]
    loaded = len(registry.plugins) - len(broken) - len(disabled)
    found = f"{loaded} loaded with {len(registry.components)} components"
    found += f", {', '.join(disabled)} disabled by {DISABLED}" if disabled else ""
    why = "; ".join(
        f"{plugin.name} of {plugin.distribution} {plugin.version} did not load ({plugin.problem})" for plugin in broken
    )
    advice = f"{why}; update or uninstall {', '.join(sorted({plugin.distribution for plugin in broken}))}" if broken else ""
    return Check("plugins", found, advice, usable=not broken)
