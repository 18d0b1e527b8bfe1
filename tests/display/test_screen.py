"""The live display, rendered by an emulator of a terminal."""

from __future__ import annotations

import io
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from command import SMALL, command

pytest.importorskip("pyte", reason="pyte is not installed")

from terminal import Terminal, rendered, text

from autocompress import Measurement, Policy, Quality, TrialRecord
from autocompress.display.progress import Progress
from autocompress.record import LayerRow

FIGURES = Measurement(latency_ratio=0.412, size_ratio=0.2715, accuracy=0.9, accuracy_drop=0.0034)
LAYERS = (LayerRow("a", "conv2d", 100, 0, "q", 4, "", 0.35, "", 0, 0.0, 0.0, 0.0),)


class Stream(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(params=[60, 80])
def columns(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv("COLUMNS", str(request.param))
    monkeypatch.setenv("LINES", "50")
    return int(request.param)


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def stream() -> Stream:
    return Stream()


def record(number: int, gate: str = "done", figures: Measurement = FIGURES) -> TrialRecord:
    state = "complete" if gate == "done" else "pruned"
    return TrialRecord(number, "trial", state, gate, "", Policy(), figures, {}, layers=LAYERS)  # type: ignore[arg-type]


def test_trials_scroll_as_a_table_above_what_goes_on(stream: Stream, columns: int) -> None:
    slow = record(9, "latency", Measurement(size_ratio=0.15, latency_ratio=1.2))
    progress = Progress(stream)
    with progress:
        progress.begin_trials(Quality())
        progress.trial(record(8), done=1, total=4, best=record(8))
        progress.trial(slow, done=2, total=4, best=record(8))
        with progress.stage("finalists"):
            progress.step("sensitivity", 3, 12, 60.0)
            during = text(rendered(stream.getvalue(), columns))
    after = rendered(stream.getvalue(), columns)
    table = [
        "  trial  policy          size  latency   accuracy  change",
        "* t0008  4.0b s35      0.272x    0.41x     90.00%  -0.3",
        "  t0009  4.0b s35      0.150x    1.20x  pruned at latency",
    ]
    assert during[:3] == table
    assert re.fullmatch(r"trials 2/4 .* s left, 0:0\d", during[3])
    best = "best  t0008 4.0b s35: 0.41x latency, 0.272x size, accuracy 90.00% (-0.3 points)"
    last = "last  t0009 4.0b s35: pruned at latency"
    assert re.search(r"finalists: sensitivity .* 3/12, 3.0 min left", "\n".join(during[4:]))
    assert f"{best} {last}" in re.sub(r"\s+", " ", " ".join(during[4:])).replace("best t", "best  t").replace(
        "last t", "last  t"
    )
    assert all(len(line) <= columns for line in during)
    assert text(after)[:3] == table
    assert re.fullmatch(r"finalists  0\.\d s", *text(after)[3:])
    assert not after.cursor.hidden


def test_a_stage_is_shown_while_it_runs_and_its_time_stays(stream: Stream, columns: int) -> None:
    with Progress(stream).stage("export"):
        during = text(rendered(stream.getvalue(), columns))
    assert during == [f"{'export':<{columns - 7}}0:00"]
    assert re.fullmatch(r"export  0\.\d s", *text(rendered(stream.getvalue(), columns)))


def test_other_messages_stand_above(monkeypatch: pytest.MonkeyPatch, stream: Stream, columns: int) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    progress = Progress(stream)
    with progress.stage("export"):
        sys.stderr.write("warning: the tracker is away\n")
        progress.note("a remark")
        during = text(rendered(stream.getvalue(), columns))
    shown = text(rendered(stream.getvalue(), columns))
    assert during == ["warning: the tracker is away", "a remark", f"{'export':<{columns - 7}}0:00"]
    assert shown[:2] == during[:2]
    assert re.fullmatch(r"export  0\.\d s", *shown[2:])


def test_an_error_leaves_a_clean_terminal(stream: Stream, columns: int) -> None:
    with pytest.raises(KeyboardInterrupt), Progress(stream).stage("export"):
        raise KeyboardInterrupt
    after = rendered(stream.getvalue(), columns)
    assert text(after) == [""]
    assert not after.cursor.hidden


def test_a_command_in_a_note_is_not_broken(stream: Stream, columns: int) -> None:
    long = f"mlflow ui --backend-store-uri sqlite:///{'folder/' * 20}mlflow.db"
    Progress(stream).note(long)
    assert stream.getvalue() == f"{long}\n"


def test_metrics_in_their_own_unit(stream: Stream, columns: int) -> None:
    progress = Progress(stream)
    progress.begin_trials(Quality("cosine", percent=False))
    progress.trial(record(8), done=1, total=1, best=None)
    assert text(rendered(stream.getvalue(), columns))[1].endswith("0.41x        0.9  -0.0034")


def test_epochs_move_a_bar(stream: Stream, columns: int) -> None:
    progress = Progress(stream)
    with progress.stage("model"):
        progress.epoch(3, 12, 0.25)
        (line,) = text(rendered(stream.getvalue(), columns))
    assert re.fullmatch(r"model: training +\S+ +epoch 3/12, loss 0.250", line)


@pytest.mark.parametrize(("variables", "is_coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_colours(monkeypatch: pytest.MonkeyPatch, stream: Stream, variables: dict[str, str], is_coloured: bool) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    progress = Progress(stream)
    progress.begin_trials(Quality())
    progress.trial(record(8), done=1, total=1, best=record(8))
    assert ("\x1b[32m" in stream.getvalue()) == is_coloured


@pytest.mark.parametrize("term", ["dumb", "unknown"])
def test_a_terminal_that_cannot_redraw_gets_plain_lines(monkeypatch: pytest.MonkeyPatch, stream: Stream, term: str) -> None:
    monkeypatch.setenv("TERM", term)
    with Progress(stream).stage("export"):
        pass
    assert re.fullmatch(r"export: 0\.\d s\n", stream.getvalue())


def test_a_job_of_a_sweep_says_which(stream: Stream, columns: int) -> None:
    progress = Progress(stream, label="#1 objective=size")
    for stage in ("data", "model"):
        with progress.stage(stage):
            pass
    lines = text(rendered(stream.getvalue(), columns))
    assert [line.split("  ")[0] for line in lines] == ["#1 objective=size", "data", "model"]


def test_failed_before_anything_was_measured(stream: Stream, columns: int) -> None:
    progress = Progress(stream)
    progress.begin_trials(Quality())
    progress.trial(replace(record(3, "build", Measurement()), state="failed"), done=1, total=2, best=None)
    assert text(rendered(stream.getvalue(), columns))[1] == "  t0003  4.0b s35      failed at build"


STAGE = """
import signal, time
from autocompress.display.progress import Progress
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin with it ignored
with Progress().stage("export"):
    time.sleep(60)
"""


@pytest.mark.timing
def test_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    """The terminal itself writes `^C` at the cursor, on a busy machine also in the middle of a redrawing."""
    terminal = Terminal([sys.executable, "-c", STAGE], tmp_path, 60)
    try:
        terminal.wait(lambda written: "0:01" in written)
        terminal.press("\x03")
        terminal.wait()
    finally:
        terminal.close()
    assert "^C" in terminal.written
    assert not [line for line in text(terminal.screen) if line.startswith("export") or "^C" in line]
    assert not terminal.screen.cursor.hidden


@pytest.mark.slow
def test_ctrl_c_in_a_real_search(tmp_path: Path) -> None:
    """Pressed on the terminal, so that every process in it is told."""
    search = ("search", *SMALL, "objective=size", "search.trials=500", "hydra.run.dir=out", "tracking=[]")
    terminal = Terminal(command(search), tmp_path, 60)
    try:
        terminal.wait(lambda written: "t0002" in written)
        during = text(terminal.screen)
        terminal.press("\x03")
        terminal.wait()
        after = text(terminal.screen)
    finally:
        terminal.close()
    assert any(re.match(r"trials \d+/500 ", line) for line in during), during
    assert terminal.process.returncode == 130
    assert after[-1] == "autocompress: interrupted; the same command resumes"
    assert any(line.startswith("status: interrupted") for line in after), after
    assert not [line for line in after if line.startswith(("trials ", "best ", "last "))]
    assert not terminal.screen.cursor.hidden
    assert "Traceback" not in terminal.written
