"""A study on disk: what was told of it can be told again, when a tracker was out of reach for example."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import optuna

from autocompress.errors import ConfigError
from autocompress.guarding.whole_file import write_whole
from autocompress.plain import from_fields, from_plain, to_plain
from autocompress.record import SearchResult, StudyContext, TrialRecord
from autocompress.studies.storage import StudySettings, opened_storage
from autocompress.studies.study import stored_records

FOLDER = "studies"
"""Folder of the files, one for each study, in a search's output folder."""


@dataclass(frozen=True)
class SavedStudy:
    """Everything that trackers are told; `result` None: its search has not ended, or goes on."""

    context: StudyContext
    records: Sequence[TrialRecord]
    result: SearchResult | None


def save_study(context: StudyContext, result: SearchResult | None = None) -> Path:
    """Write it, whole or not at all; trials stay where they are, in the study's storage."""
    path = context.folder / FOLDER / f"{context.name}.json"
    bare = None if result is None else replace(result, records=())
    content = {"context": to_plain(context, context.folder), "result": to_plain(bare, context.folder)}
    return write_whole(path, json.dumps(content, indent=2, default=str))


def load_study(path: Path) -> SavedStudy:
    """Read it with its trials; the output folder may have moved.

    Raises:
        ConfigError: the file is not what a search wrote, or its trials are not there.
        StorageError: the study's database cannot be reached.
    """
    saved, folder = read_study(path), _root(path)
    try:
        settings = from_fields(StudySettings, saved.context.config.get("study", {}))
        with opened_storage(settings, folder) as storage:
            records = stored_records(optuna.load_study(study_name=saved.context.name, storage=storage.rdb))
    except KeyError:
        raise ConfigError(f"study {path}: its storage has no study {saved.context.name}; keep study.db beside it") from None
    except ValueError as error:
        raise ConfigError(f"study {path}: {error}") from error
    return replace(saved, records=records, result=None if saved.result is None else replace(saved.result, records=records))


def read_study(path: Path) -> SavedStudy:
    """The file alone, without its trials.

    Raises:
        ConfigError: it is not what a search wrote.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        context = from_plain(StudyContext, content["context"], _root(path))
        result = from_plain(SearchResult | None, content["result"], _root(path))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise ConfigError(f"study {path}: not what a search wrote: {problem}; its command writes it again") from error
    return SavedStudy(context, (), result)


def _root(path: Path) -> Path:
    """The output folder, which may have moved."""
    return path.resolve().parent.parent


def saved_studies(folder: Path) -> list[Path]:
    """The files of all studies in a folder and those below it."""
    return sorted(folder.rglob(f"{FOLDER}/*.json"))


def last_study(folder: Path) -> SavedStudy:
    """The study that was last searched in a folder, finished or not.

    Raises:
        ConfigError: there is none.
    """
    paths = (folder / FOLDER).glob("*.json")
    path = max(paths, key=lambda found: found.stat().st_mtime_ns, default=None)
    if path is None:
        raise ConfigError(f"folder {folder}: no study lies there; expected the output folder of a search")
    return load_study(path)
