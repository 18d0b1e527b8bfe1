"""`autocompress doctor`: whether everything that a search needs is there and works; each line is OK or says what to do."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from autocompress.commands import machine_checks
from autocompress.commands.check import Check, guarded, terminal_width
from autocompress.guarding.masking import masked
from autocompress.registry import Registry, load_registry

EPILOG = """examples:
  autocompress doctor
  autocompress doctor target=openvino
  autocompress doctor target=ssh target.ssh.host=pi@board target.ssh.runtime=onnxruntime
  autocompress doctor tracking.mlflow.uri=http://127.0.0.1:5000

exit status: 0 if a search can run (notes are no obstacle), 1 if a line says FAIL, 2 for a mistake in the arguments
"""


def main(arguments: Sequence[str]) -> int:
    """Print one line for each check as soon as it is known."""
    parser = argparse.ArgumentParser(
        prog="autocompress doctor", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings of the search that is meant")
    overrides, usable = parser.parse_args(arguments).overrides, True
    for check in checks(overrides):
        sys.stdout.write(f"{masked(check.lines(terminal_width()))}\n")
        sys.stdout.flush()
        usable = usable and check.usable
    sys.stdout.write("a search can run\n" if usable else "mend what says FAIL, then try again\n")
    return 0 if usable else 1


def checks(overrides: Sequence[str]) -> Iterator[Check]:
    """All of them, the quick ones first.

    Raises:
        ConfigError: the overrides are no settings.
    """
    yield guarded("versions", machine_checks.versions)
    yield from machine_checks.folders()
    yield guarded("data", machine_checks.data)
    registry = load_registry()
    yield guarded("plugins", lambda: machine_checks.plugins(registry))
    yield from _configured(overrides, registry)


def _configured(overrides: Sequence[str], registry: Registry) -> Iterator[Check]:
    """Those of the components that a search would use."""
    from autocompress.commands.device_checks import device_checks
    from autocompress.config import compose_settings

    components = compose_settings(overrides, registry).components
    yield guarded("cores", lambda: machine_checks.cores(components.target.threads))
    for tracker in components.trackers:
        yield guarded(tracker.name, lambda tracker=tracker: Check(tracker.name, tracker.reach(Path("outputs/study"))))  # type: ignore[misc]
    yield from device_checks(components.target)
