"""Trackers hear of everything; one that fails is reported and harms nobody."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
from autocompress_plugins.mlflow_tracker import MlflowTracker

from autocompress import Tracker, TrialRecord, hookimpl
from autocompress.registry import load_registry
from autocompress.reporting.notify import Notifier, TrackerWarning


@dataclass
class Counter(Tracker):
    name: ClassVar[str] = "counter"
    numbers: list[int] = field(default_factory=list)

    @hookimpl
    def autocompress_trial_finished(self, record: int) -> None:
        self.numbers.append(record)


@dataclass
class Again(Counter):
    name: ClassVar[str] = "again"


@dataclass
class Broken(Tracker):
    name: ClassVar[str] = "broken"
    error: type[BaseException] = ConnectionError

    @hookimpl
    def autocompress_trial_finished(self, record: TrialRecord) -> None:
        raise self.error("the server is gone")


class ModuleLike:
    """What a plugin that only listens looks like: hooks without a tracker class."""

    def __init__(self) -> None:
        self.numbers: list[int] = []

    @hookimpl
    def autocompress_trial_finished(self, record: int) -> None:
        self.numbers.append(record)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_tracker_that_fails_is_reported_and_the_others_are_called(order: int) -> None:
    first, second = Counter(), Again()
    trackers: list[Tracker] = [first, second]
    trackers.insert(order, Broken())
    with Notifier(load_registry([]).manager, tuple(trackers)) as notify:
        for number in range(3):
            with pytest.warns(TrackerWarning) as caught:
                notify("autocompress_trial_finished", study=None, record=number)
            text = "tracker:broken failed in autocompress_trial_finished: ConnectionError: the server is gone"
            assert [str(warning.message) for warning in caught] == [text]
    assert first.numbers == second.numbers == [0, 1, 2]


@pytest.mark.parametrize("error", [SystemExit, GeneratorExit])
def test_no_tracker_ends_the_search(error: type[BaseException]) -> None:
    counter = Counter()
    problem = f"tracker:broken failed in autocompress_trial_finished: {error.__name__}: the server is gone"
    with Notifier(load_registry([]).manager, (counter, Broken(error))) as notify, pytest.warns(TrackerWarning, match=problem):
        notify("autocompress_trial_finished", study=None, record=1)
    assert counter.numbers == [1]


def test_the_user_may_end_it_while_a_tracker_works() -> None:
    broken = Broken(KeyboardInterrupt)
    with Notifier(load_registry([]).manager, (broken,)) as notify, pytest.raises(KeyboardInterrupt):
        notify("autocompress_trial_finished", study=None, record=1)


def test_a_tracker_that_hangs_is_ended() -> None:
    @dataclass
    class Slow(Tracker):
        name: ClassVar[str] = "slow"

        @hookimpl
        def autocompress_trial_finished(self) -> None:
            time.sleep(60)

    counter = Counter()
    problem = "tracker:slow failed in autocompress_trial_finished: took longer than search.trial_timeout=0.2 seconds: it was in"
    notifier = Notifier(load_registry([]).manager, (counter, Slow()), trial_timeout=0.2)
    with notifier as notify, pytest.warns(TrackerWarning, match=problem):
        notify("autocompress_trial_finished", study=None, record=1)
    assert counter.numbers == [1]


def test_trackers_that_are_equal_by_value_are_two() -> None:
    first, second = Counter(), Again()
    with Notifier(load_registry([]).manager, (first, second)) as notify:
        notify("autocompress_trial_finished", study=None, record=7)
    assert (first.numbers, second.numbers) == ([7], [7])


def test_bundled_tracker_can_be_registered_and_its_failure_is_reported() -> None:
    counter = Counter()
    problem = r"tracker:mlflow failed in autocompress_trial_finished: RuntimeError"
    with Notifier(load_registry([]).manager, (MlflowTracker(), counter)) as notify, pytest.warns(TrackerWarning, match=problem):
        notify("autocompress_trial_finished", study=None, record=1)
    assert counter.numbers == [1]


def test_plugin_that_only_listens_is_called() -> None:
    manager = load_registry([]).manager
    listener = ModuleLike()
    manager.register(listener, name="listener")
    with Notifier(manager, ()) as notify:
        notify("autocompress_trial_finished", study=None, record=4)
    assert listener.numbers == [4]


def test_answers_are_returned_the_latest_tracker_first() -> None:
    @dataclass
    class Place(Tracker):
        name: str = "place"  # type: ignore[misc]

        @hookimpl
        def autocompress_search_finished(self) -> str | None:
            return None if self.name == "silent" else f"look at {self.name}"

    with Notifier(load_registry([]).manager, (Place("first"), Place("silent"), Place("second"))) as notify:
        assert notify("autocompress_search_finished", study=None, result=None) == ["look at second", "look at first"]


def test_trackers_leave_with_the_run() -> None:
    manager = load_registry([]).manager
    counter = Counter()
    for number in range(2):
        with Notifier(manager, (counter,)) as notify:
            notify("autocompress_trial_finished", study=None, record=number)
    assert counter.numbers == [0, 1]
    assert manager.get_plugin("tracker:counter") is None


def test_trackers_leave_when_the_run_raises() -> None:
    manager = load_registry([]).manager
    with pytest.raises(ZeroDivisionError), Notifier(manager, (Counter(),)):
        raise ZeroDivisionError
    assert manager.list_name_plugin() == []


def test_ctrl_c_in_a_tracker_is_no_failure_of_it() -> None:
    with pytest.raises(KeyboardInterrupt), Notifier(load_registry([]).manager, (Broken(KeyboardInterrupt),)) as notify:
        notify("autocompress_trial_finished", study=None, record=1)
