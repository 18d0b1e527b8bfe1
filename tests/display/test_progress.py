"""Plain lines where nobody can redraw; for terminals see test_screen.py."""

from __future__ import annotations

import io
import time
from dataclasses import replace

import pytest

from autocompress import ChannelPolicy, Measurement, Policy, Quality, TrialRecord
from autocompress.display.progress import Progress, describe, describe_policy
from autocompress.record import LayerRow

FIGURES = Measurement(latency_ratio=0.412, size_ratio=0.2715, accuracy=0.9, accuracy_drop=0.0034)
SHARE = Quality()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def record(number: int, state: str = "complete") -> TrialRecord:
    gate = "done" if state == "complete" else "latency"
    return TrialRecord(number, "trial", state, gate, "", Policy(), FIGURES, {})  # type: ignore[arg-type]


def test_figures_in_words() -> None:
    assert describe(FIGURES, SHARE) == "0.41x latency, 0.272x size, accuracy 90.00% (-0.3 points)"
    assert describe(Measurement(accuracy=0.5, accuracy_drop=-0.01), SHARE) == "accuracy 50.00% (+1.0 points)"
    assert describe(Measurement(accuracy=0.5, accuracy_drop=0.0001), SHARE) == "accuracy 50.00% (+0.0 points)"
    assert describe(Measurement(accuracy=-0.25, accuracy_drop=0.01), Quality("kl", percent=False)) == "kl -0.25 (-0.01)"
    assert describe(Measurement(), SHARE) == ""


def test_policy_in_words() -> None:
    def row(bits: int, parameters: int, sparsity: float = 0.0) -> LayerRow:
        return LayerRow("a", "conv2d", parameters, 0, "q", bits, "", sparsity, "", 0, 0.0, 0.0, 0.0)

    plain = replace(record(1), layers=(row(8, 300), row(4, 100)))
    assert describe_policy(plain) == "7.0b"
    cut = Policy(channels={"a": ChannelPolicy("sparse", 0.5), "b": ChannelPolicy("sparse", 0.3)})
    assert describe_policy(replace(plain, layers=(row(8, 300, 0.5), row(4, 100, 0.3)), policy=cut)) == "7.0b s45 c40"
    assert describe_policy(record(1)) == "-"


def test_lines_are_plain_when_it_is_no_terminal() -> None:
    stream = io.StringIO()
    progress = Progress(stream)
    with progress.stage("export"):
        time.sleep(0.01)
    progress.note("a remark")
    assert stream.getvalue() == "export: 0.0 s\na remark\n"


def test_lines_of_several_jobs_say_whose_they_are() -> None:
    stream = io.StringIO()
    Progress(stream, label="#1 objective=size").note("a remark")
    assert stream.getvalue() == "#1 objective=size: a remark\n"


def test_a_long_stage_has_a_line_for_each_tenth() -> None:
    stream = io.StringIO()
    progress = Progress(stream)
    for done in range(40):
        progress.step("probing", done, 40, 60.0 * done)
    assert stream.getvalue().splitlines()[:2] == ["probing: 4/40, 36.0 min left", "probing: 8/40, 32.0 min left"]
    assert len(stream.getvalue().splitlines()) == 9


def test_trials_with_the_best_so_far() -> None:
    stream = io.StringIO()
    progress = Progress(stream)
    progress.begin_trials(SHARE)
    progress.trial(record(7, "pruned"), done=2, total=4, best=None)
    progress.trial(record(8), done=3, total=4, best=record(8))
    first, second = stream.getvalue().splitlines()
    assert first.startswith("[2/4] t0007 -: pruned at latency | nothing within the budget yet | ")
    assert second.startswith("[3/4] t0008 -: 0.41x latency, 0.272x size, accuracy 90.00% (-0.3 points) | best t0008: 0.41x")


def test_trials_are_told_in_the_metrics_own_unit() -> None:
    stream = io.StringIO()
    progress = Progress(stream)
    progress.begin_trials(Quality("cosine", percent=False))
    progress.trial(record(8), done=3, total=4, best=record(8))
    assert stream.getvalue().count("cosine 0.9 (-0.0034)") == 2
    assert "point" not in stream.getvalue()


class Clock:
    """Time that passes when a test says so, and a search of `total` trials."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, total: int, timeout: float | None = None, kept_seconds: float = 0.0
    ) -> None:
        self.now, self.stream, self._total = 100.0, io.StringIO(), total
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        self._progress = Progress(self.stream)
        self.now = 1000.0  # a long preparation
        self._progress.begin_trials(SHARE, timeout, kept_seconds)

    def trial(self, seconds: float, done: int, kind: str = "trial") -> list[str]:
        """The lines that are written when a trial ends after so many seconds."""
        self.now += seconds
        written = len(self.stream.getvalue())
        self._progress.trial(replace(record(done), kind=kind), done, self._total, best=None)  # type: ignore[arg-type]
        return self.stream.getvalue()[written:].splitlines()


def test_time_left_is_the_median_of_the_measured_trials_of_this_run(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, total=40)
    assert clock.trial(0.1, 30, "repeated")[0].endswith("| nothing within the budget yet"), "nothing is known yet"
    assert clock.trial(300.0, 31)[0].endswith(" | 45.0 min left")
    assert clock.trial(30.0, 32)[0].endswith(" | 22.0 min left")
    assert clock.trial(0.0, 32, "repeated")[0].endswith(" | 22.0 min left")
    assert clock.trial(30.0, 33)[0].endswith(" | 3.5 min left"), "the slow first one no longer counts"


def test_only_the_last_trials_tell_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, total=100)
    for done in range(1, 41):
        lines = clock.trial(60.0 if done <= 20 else 6.0, done)
    assert lines[0].endswith(" | 6.0 min left")


def test_the_whole_time_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, total=40)
    lines = [line for done in range(1, 8) for line in clock.trial(60.0, done) if line.startswith("about")]
    assert lines == ["about 37.0 minutes for 37 more trials"]


def test_no_time_is_told_where_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, total=3)
    assert [len(clock.trial(60.0, done)) for done in (1, 2, 3)] == [1, 1, 1]


def test_what_ends_first_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, total=40, timeout=600.0)
    for done in (1, 2):
        clock.trial(60.0, done)
    first, second = clock.trial(60.0, 3)
    assert first.endswith(" | 7.0 min left")
    assert second == "about 7.0 minutes for 7 more trials"


def test_recoveries_have_their_part_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, total=40, timeout=600.0, kept_seconds=240.0)
    for done in (1, 2):
        clock.trial(60.0, done)
    assert clock.trial(60.0, 3)[1] == "about 3.0 minutes for 3 more trials, then at most 4.0 for recoveries"


def test_no_time_is_left_at_the_end() -> None:
    stream = io.StringIO()
    progress = Progress(stream)
    progress.begin_trials(SHARE)
    progress.trial(record(3), done=4, total=4, best=None)
    assert stream.getvalue().endswith(" | 0.0 min left\n")


def test_quiet_writes_nothing() -> None:
    for stream in (io.StringIO(), Terminal()):
        progress = Progress(stream, quiet=True)
        with progress.stage("export"):
            progress.note("a remark")
        progress.trial(record(1), done=1, total=1, best=None)
        assert stream.getvalue() == ""


def test_standard_error_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    Progress().note("hello")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "hello\n")


def test_a_stage_that_raises_is_not_reported_as_done() -> None:
    stream = io.StringIO()
    with pytest.raises(ZeroDivisionError), Progress(stream).stage("export"):
        raise ZeroDivisionError
    assert stream.getvalue() == ""
