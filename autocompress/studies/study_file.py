"""A study on disk: what was told of it can be told again, when a tracker was out of reach for example."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import optuna

from autocompress.errors import ConfigError
from autocompress.record import SearchResult, StudyContext, TrialRecord
from autocompress.studies.plain import from_plain, to_plain
from autocompress.studies.storage import StudySettings, opened_storage
from autocompress.studies.study import stored_records
from autocompress.whole_file import write_whole

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
        ConfigError: the file is damaged, or the study is not in its database.
        StorageError: the study's database cannot be reached.
    """
    folder = path.resolve().parent.parent
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        context: StudyContext = from_plain(StudyContext, content["context"], folder)
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"study file {path}: damaged ({error}); the search's command writes it again") from error
    with opened_storage(StudySettings(**context.config.get("study", {})), folder) as storage:
        records = stored_records(optuna.load_study(study_name=context.name, storage=storage.rdb))
    result = from_plain(SearchResult, content["result"], folder)
    return SavedStudy(context, records, None if result is None else replace(result, records=records))


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
