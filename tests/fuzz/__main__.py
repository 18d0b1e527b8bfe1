"""`python -m tests.fuzz TARGET...`: what strangers may have written, read a million times; all but a refusal is a crash."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.workbench import RESULTS, environment, publish
from tests.fuzz.targets import TARGETS

NAME = "fuzz"


def main() -> int:
    """Exit status 1: something was neither read nor refused; its input is printed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="+", choices=[*TARGETS, "all"], metavar="TARGET", help=f"all, {', '.join(TARGETS)}")
    parser.add_argument("--runs", type=int, help="inputs for each; by default those of the full form, a million in all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--publish", action="store_true", help=f"write the counts to benchmarks/results/{NAME}.json")
    asked = parser.parse_args()
    names = list(TARGETS) if "all" in asked.targets else asked.targets
    crashes = 0
    for name in names:
        row = _fuzzed(name, asked.runs or TARGETS[name].runs, asked.seed)
        crashes += row["crashes"]
        if asked.publish:
            publish(NAME, {**_published(), name: row})
    return int(crashes > 0)


def _fuzzed(name: str, runs: int, seed: int) -> dict[str, Any]:
    """One reader in a process of its own, which a crash of native code ends."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        arguments = [sys.executable, "-m", "tests.fuzz.guided", name, str(runs), str(seed), folder]
        done = subprocess.run(arguments, capture_output=True, text=True, errors="replace", check=False)
        counted = Path(folder, "inputs")
        row = {
            "target": name,
            "inputs": int(counted.read_text()) if counted.is_file() else 0,
            "crashes": int(done.returncode != 0),
            "seconds": round(time.monotonic() - start, 1),
            "seed": seed,
            "commit": environment()["commit"],
        }
        _say(json.dumps(row))
        if done.returncode:
            _say(done.stderr[-4000:])
            for path in Path(folder).glob("*-*"):
                _say(f"{path.name}: {path.read_bytes()[:2000]!r}")
    return row


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _published() -> dict[str, Any]:
    path = RESULTS / f"{NAME}.json"
    rows: dict[str, Any] = json.loads(path.read_text())["rows"] if path.is_file() else {}
    return rows


if __name__ == "__main__":
    sys.exit(main())
