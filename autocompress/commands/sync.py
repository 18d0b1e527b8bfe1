"""`autocompress sync`: tell trackers of studies again, so that one that was out of reach gets what it missed."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

from autocompress.components import Tracker
from autocompress.errors import ConfigError
from autocompress.guarding.held_folder import held_folder
from autocompress.registry import Registry, load_registry
from autocompress.reporting.notify import Notifier, TrackerWarning
from autocompress.studies.study_file import SavedStudy, load_study, saved_studies


def main(arguments: Sequence[str]) -> int:
    """Exit status 1: some tracker did not take something."""
    parser = argparse.ArgumentParser(prog="autocompress sync", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("outputs"), help="of a search, or above several (outputs)")
    parser.add_argument("settings", nargs="*", help="other ones than the search's: tracking.NAME.KEY=VALUE")
    parsed = parser.parse_args(arguments)
    paths = saved_studies(parsed.folder)
    if not paths:
        raise ConfigError(f"{parsed.folder}: no study there or below; expected the output folder of a search")
    registry = load_registry()
    problems = [_report(path, parsed.settings, registry) for path in paths]
    return int(any(problems))


def _report(path: Path, settings: Sequence[str], registry: Registry) -> bool:
    """Sync one study and print what came of it; returns whether something went wrong."""
    with held_folder(path.resolve().parent.parent):  # a search that runs tells trackers itself
        saved = load_study(path)
        said, problems = tell_again(saved, configured_trackers(saved, settings, registry), registry)
    sys.stdout.write("".join(f"{saved.context.name}: {line}\n" for line in [*said, *problems]))
    return bool(problems)


def configured_trackers(saved: SavedStudy, settings: Sequence[str], registry: Registry) -> list[Tracker]:
    """Those of the search, with other settings where given (`tracking.NAME.KEY=VALUE`)."""
    used = OmegaConf.create({"tracking": saved.context.config.get("tracking", {})})
    merged = OmegaConf.to_container(OmegaConf.merge(used, OmegaConf.from_dotlist(list(settings))))
    assert isinstance(merged, dict)
    return [registry.create("tracking", name, values) for name, values in merged["tracking"].items()]


def tell_again(saved: SavedStudy, trackers: Sequence[Tracker], registry: Registry) -> tuple[list[str], list[str]]:
    """Tell trackers of a study as if it had just been searched; what they have already they are to keep.

    Returns:
        What they answer, and what went wrong.
    """
    answers: list[str] = []
    with warnings.catch_warnings(record=True) as problems, Notifier(registry.manager, tuple(trackers)) as notify:
        warnings.simplefilter("always", TrackerWarning)
        notify("autocompress_search_started", study=saved.context, records=saved.records)
        if saved.result is not None and not problems:
            answers = notify("autocompress_search_finished", study=saved.context, result=saved.result)
    return answers, [str(problem.message) for problem in problems]
