"""Progress on a terminal: finished trials scroll as a table, below them stands what is going on now."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import TextIO

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from autocompress.display.activity import Activity, Stage, Trials
from autocompress.display.progress import NOTHING_FITS, describe_policy, outcome
from autocompress.quality import Quality
from autocompress.record import TrialRecord

REFRESHES_PER_SECOND = 1
"""Enough for a clock; more would take time from what is being measured."""

LEAST_SECONDS_BETWEEN = 0.1
"""Of two redrawings because of steps, of which there may be thousands a second."""

MARGIN = 3
"""Columns at the right for the `^C` that terminals write where the cursor stands: on a line of its own it would stay."""

BEST = "*"
"""Before the trials that were the best so far when they ended."""


class Screen:
    """A `rich` display; whatever else Python prints meanwhile goes above it.

    Args:
        label: names the job, where there are several.
    """

    def __init__(self, stream: TextIO, activity: Activity, label: str = "") -> None:
        self._console = Console(file=stream, markup=False, highlight=False, emoji=False)
        self._stream, self._activity, self._label = stream, activity, label
        self._live: Live | None = None
        self._drawn = 0.0
        self._has_header = False

    def open(self) -> None:
        """Draw, and keep other output above."""
        if self._label:
            self._console.print(self._label, style="bold", soft_wrap=True)
            self._label = ""
        self._live = Live(
            get_renderable=lambda: now(self._activity),
            console=self._console,
            refresh_per_second=REFRESHES_PER_SECOND,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),
            redirect_stderr=sys.stderr is self._stream,
        )
        self._live.start(refresh=True)

    def close(self) -> None:
        """Remove what was drawn; the lines above stay."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def line(self, text: str) -> None:
        """Broken by the terminal itself, so that a command in it can be copied."""
        self._console.print(text, soft_wrap=True)

    def stage(self, stage: Stage) -> None:
        """How long it took."""
        self._console.print(Text(f"{stage.name}  {stage.seconds:.1f} s", style="dim"), soft_wrap=True)

    def trial(self) -> None:
        """A row of the table, after its header."""
        trials = self._activity.trials
        if not self._has_header:
            self._row(header(trials.quality), "bold")
            self._has_header = True
        assert trials.last is not None
        is_best = trials.best is not None and trials.best.number == trials.last.number
        style = "green" if is_best else "dim" if trials.last.state != "complete" else ""
        self._row(row(trials.last, trials.quality, is_best), style)

    def _row(self, text: str, style: str) -> None:
        self._console.print(Text(text, style=style), no_wrap=True, overflow="ellipsis", crop=True)

    def step(self, line: str | None) -> None:
        """Redraw, but not too often."""
        if self._live is not None and time.monotonic() - self._drawn > LEAST_SECONDS_BETWEEN:
            self._live.refresh()
            self._drawn = time.monotonic()


def header(quality: Quality) -> str:
    """Above the rows."""
    return f"  {'trial':<5}  {'policy':<12}  {'size':>6}  {'latency':>7}  {quality.metric:>9}  change"


def row(record: TrialRecord, quality: Quality, is_best: bool) -> str:
    """One trial: `* t0008  4.7b s35      0.272x    0.41x     88.10%  -0.3`; without what was not measured, but why not."""
    begin = f"{BEST if is_best else ' '} t{record.number:04d}  {describe_policy(record):<12}"
    return "  ".join([begin, *_figures(record, quality)])


def _figures(record: TrialRecord, quality: Quality) -> Iterator[str]:
    """In the order in which they are measured, as far as that went."""
    figures = record.measurement
    complete = record.state == "complete"
    if figures.size_ratio is not None:
        yield f"{figures.size_ratio:.3f}x"
    if figures.size_ratio is not None and figures.latency_ratio is not None:
        yield f"{figures.latency_ratio:.2f}x".rjust(7)
    if complete and figures.accuracy is not None and figures.accuracy_drop is not None:
        yield quality.value(figures.accuracy).rjust(max(9, len(quality.metric)))
        yield quality.signed(figures.accuracy_drop).removesuffix(" points")
    if not complete:
        yield f"{record.state} at {record.gate}"


def now(activity: Activity) -> RenderableType:
    """What is going on: a bar for the trials and one for what takes long within them, the best and the last trial."""
    trials = activity.trials
    parts: list[RenderableType] = [_bars(activity)]
    if trials.last is not None:
        parts += [_about("best", trials.best, trials.quality), _about("last", trials.last, trials.quality)]
    return _Narrower(Group(*parts))


class _Narrower:
    """Leaves the margin free, of blanks too."""

    def __init__(self, content: RenderableType) -> None:
        self._content = content

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from console.render(self._content, options.update(width=options.max_width - MARGIN))


def _about(name: str, record: TrialRecord | None, quality: Quality) -> Text:
    said = NOTHING_FITS if record is None else f"t{record.number:04d} {outcome(record, quality)}"
    return Text.assemble((f"{name}  ", "bold"), said, overflow="fold", no_wrap=False)


def _bars(activity: Activity) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0), expand=True)
    table.add_column(no_wrap=True)
    table.add_column(ratio=1)
    table.add_column(no_wrap=True, justify="right")
    if activity.trials.last is not None:
        table.add_row(*_trials(activity.trials, time.monotonic() - activity.start))
    for stage in activity.stages[:-1]:
        table.add_row(stage.name, "", _clock(stage.seconds))
    if activity.stages:
        table.add_row(*_stage(activity))
    return table


def _trials(trials: Trials, elapsed: float) -> tuple[RenderableType, ...]:
    estimate = trials.seconds_left
    left = "" if estimate is None else f"{duration(max(0.0, estimate - (time.monotonic() - trials.updated)))} left, "
    counted = Text(f"trials {trials.done}/{trials.total}", style="bold")
    return counted, ProgressBar(trials.total, min(trials.done, trials.total)), f"{left}{_clock(elapsed)}"


def _stage(activity: Activity) -> tuple[RenderableType, ...]:
    """The innermost one, with its step."""
    stage, step = activity.stages[-1], activity.step
    if step is None:
        return stage.name, "", _clock(stage.seconds)
    name = stage.name if stage.name == step.what else f"{stage.name}: {step.what}"
    return name, ProgressBar(1.0, step.done), step.remark


def duration(seconds: float) -> str:
    """`40 s`, `3.2 min`, `1.5 h`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def _clock(seconds: float) -> str:
    """`1:23`, `1:02:03`."""
    hours, rest = divmod(int(seconds), 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{left:02d}" if hours else f"{minutes}:{left:02d}"
