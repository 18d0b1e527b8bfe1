"""The contract of `Tracker`."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import pluggy
import pytest

from autocompress import hookspecs
from autocompress.components import (
    Tracker,
)
from autocompress.record import Status, StudyContext, TrialRecord
from autocompress.reporting.notify import Notifier, TrackerWarning
from autocompress.testing.round_trip import check_settings
from autocompress.testing.studies import make_records, make_result, make_study


class TrackerContract:
    """The promises of `Tracker`: it hears a whole search, again and again, and never raises."""

    @pytest.fixture
    def tracker(self, tmp_path: Path) -> Tracker:
        """The component under test, which has heard nothing; it keeps what it stores below `tmp_path`."""
        raise NotImplementedError("a subclass of TrackerContract gives the fixture `tracker`")

    @pytest.mark.parametrize("status", get_args(Status))
    def test_hears_a_search_to_its_end(self, tracker: Tracker, tmp_path: Path, status: Status) -> None:
        """Trials of every state, and an answer of every status; what it returns is a line for the person or nothing."""
        study = make_study(tmp_path)
        answer = _tell(tracker, study, [], make_records(study), status)
        assert answer is None or "\n" not in answer

    def test_hears_of_a_metric_that_is_no_share(self, tracker: Tracker, tmp_path: Path) -> None:
        """Values below 0 and drops above 1 occur."""
        study = make_study(tmp_path, "squared_error", percent=False)
        figures = dataclasses.replace(study.baseline, accuracy=-12.5, accuracy_drop=3.0)
        records = [dataclasses.replace(record, measurement=figures) for record in make_records(study)[:1]]
        _tell(tracker, dataclasses.replace(study, baseline=figures), [], records)

    def test_goes_on_where_an_earlier_search_stopped(self, tracker: Tracker, tmp_path: Path) -> None:
        """A fresh copy, as the next process has it, is given what was told before, all of it or some of it."""
        study = make_study(tmp_path)
        records = make_records(study)
        with _notifier(tracker) as notify:
            notify("autocompress_search_started", study=study, records=[])
            notify("autocompress_trial_finished", study=study, record=records[0])
        _tell(dataclasses.replace(tracker), study, records[:2], records[2:])  # type: ignore[type-var]

    def test_hears_of_a_search_without_trials(self, tracker: Tracker, tmp_path: Path) -> None:
        """It was interrupted before the first one ended."""
        _tell(tracker, make_study(tmp_path), [], [], "interrupted")

    def test_settings_survive_a_round_trip(self, tracker: Tracker) -> None:
        """The fields can be configured, and stored as JSON."""
        check_settings(tracker)


@contextmanager
def _notifier(tracker: Tracker) -> Iterator[Notifier]:
    """As in a search, but what goes wrong in the tracker is raised."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    with Notifier(manager, (tracker,)) as notify, warnings.catch_warnings():
        warnings.simplefilter("error", TrackerWarning)
        yield notify


def _tell(
    tracker: Tracker,
    study: StudyContext,
    earlier: Sequence[TrialRecord],
    new: Sequence[TrialRecord],
    status: Status = "feasible",
) -> str | None:
    """What the tracker answers after a search that finds the earlier records and adds the new ones."""
    with _notifier(tracker) as notify:
        notify("autocompress_search_started", study=study, records=earlier)
        for record in new:
            notify("autocompress_trial_finished", study=study, record=record)
        result = make_result(study, [*earlier, *new], status)
        answers: list[str] = notify("autocompress_search_finished", study=study, result=result)
    return answers[0] if answers else None
