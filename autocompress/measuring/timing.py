"""The timing protocol of every target: how long files take against a reference, and how sure that is.

Self-contained: standard library and numpy only, since it travels with the runner.

How fast a file runs depends on where its tensors came to lie in memory when it was opened: ResNet-20's ratio differs by 0.5 %
from opening to opening, and no number of rounds averages that out. So the files are opened again and again, a few rounds each,
and the interval is that of independent openings (Kalibera and Jones 2013, "Rigorous benchmarking in reasonable time").
"""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

Run = Callable[[Sequence[Any]], list[Any]]
Opening = list[list[list[float]]]
"""Milliseconds of every call while the files were open: file, round, call. File 0 is the reference."""

WARM_UP_SECONDS = 0.1
"""For the first opening, in which the clock settles; a later one warms up by calls alone."""
WARM_UP_CALLS = 5
BLOCK_SECONDS = 0.01
ROUNDS = (3, 8)
"""Least and most rounds of an opening: the openings differ by more than further rounds would tell."""
MIN_OPENINGS = 5
MIN_OPENINGS_ABOVE = 3
"""Openings after which a file may be given up whose interval lies above the limit."""
LONGER = 3.0
"""A close decision, or a reference that wanders, is timed for so many times the seconds."""
PADDING_BYTES = 1 << 20
WANDER = 0.03
"""Least drift of the reference that is worth a warning."""
MEDIAN_ERROR = math.sqrt(math.pi / 2)
"""Standard error of a median against that of a mean (normal distribution)."""


@dataclass(frozen=True)
class Effort:
    """How sure a ratio must be, and how long that may take.

    Attributes:
        seconds: for one candidate beside the reference, opening the files included; each further candidate adds half.
        precision: half-width of the interval, relative, at which a ratio is known well enough.
        percentile: of the calls' times; ratios are those of this percentile.
        ratio_limit, ms_limit: limits of the percentile; timing goes on until the interval lies on one side of them.
    """

    seconds: float
    precision: float
    percentile: float = 50.0
    ratio_limit: float | None = None
    ms_limit: float | None = None

    @property
    def block_seconds(self) -> float:
        """Of calls of one file in a round: shorter where the least number of rounds would take longer than asked for."""
        return min(BLOCK_SECONDS, self.seconds / (2 * ROUNDS[0] * MIN_OPENINGS))

    @property
    def warm_up_seconds(self) -> float:
        """For a file that is opened for the first time."""
        return min(WARM_UP_SECONDS, self.seconds / 2)


def measure(files: Sequence[Callable[[], Run]], inputs: Sequence[Any], effort: Effort) -> list[dict[str, Any]]:
    """Time [reference, *candidates] until every ratio is known well enough or the time is over.

    In each round all files run in random order on the same machine, so the ratio to the reference in the round cancels drift
    and neighbours. An opening's ratio is the median over its rounds; what is reported is the median over openings.

    Args:
        files: each opens one.

    Returns:
        The figures of each candidate, in their order.
    """
    shuffle, start = random.Random(0), time.perf_counter()
    calls: list[int] = []
    openings: list[Opening] = []
    with _no_garbage_collection():
        while not _is_over(openings, len(files), effort, time.perf_counter() - start):
            openings.append(_opening(files, inputs, effort, shuffle, calls))
    return [figures(openings, file, effort) for file in range(1, len(files))]


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _opening(
    files: Sequence[Callable[[], Run]], inputs: Sequence[Any], effort: Effort, shuffle: random.Random, calls: list[int]
) -> Opening:
    """Open the files, warm them up, and time a few rounds; the first opening finds how many calls fill a block."""
    padding = bytearray(shuffle.randrange(PADDING_BYTES))  # what is allocated next lies elsewhere than in the last opening
    runs = [open_file() for open_file in files]
    del padding
    found = [_warm_up(run, inputs, 0.0 if calls else effort.warm_up_seconds, effort.block_seconds) for run in runs]
    calls.extend(found[len(calls) :])
    least, most = (max(rounds, math.ceil(_tail(effort.percentile) / min(calls))) for rounds in ROUNDS)
    end = time.perf_counter() + effort.seconds * len(files) / 2 / MIN_OPENINGS
    times: Opening = [[] for _ in runs]
    while len(times[0]) < least or (len(times[0]) < most and time.perf_counter() < end):
        for index in shuffle.sample(range(len(runs)), len(runs)):
            times[index].append(_block(runs[index], inputs, calls[index]))
    return times


def _tail(percentile: float) -> float:
    """Calls of which one is expected above the percentile; the median needs no more than a round."""
    return 1.0 if percentile <= 50 else 100 / (100 - percentile)


def _warm_up(run: Run, inputs: Sequence[Any], seconds: float, block_seconds: float) -> int:
    """Run until caches and clocks have settled; returns the calls that fill one block."""
    start, durations = time.perf_counter(), list[float]()
    while len(durations) < WARM_UP_CALLS or time.perf_counter() - start < seconds:
        durations.extend(_block(run, inputs, 1))
    return max(1, round(1000 * block_seconds / float(np.median(durations))))


def _block(run: Run, inputs: Sequence[Any], calls: int) -> list[float]:
    times = []
    for _ in range(calls):
        start = time.perf_counter_ns()
        run(inputs)
        times.append((time.perf_counter_ns() - start) / 1e6)
    return times


def _is_over(openings: Sequence[Opening], files: int, effort: Effort, elapsed: float) -> bool:
    if len(openings) < MIN_OPENINGS_ABOVE:
        return False
    found = [figures(openings, file, effort) for file in range(1, files)]
    if all(_side(figure, effort) > 0 for figure in found):
        return True
    if len(openings) < MIN_OPENINGS:
        return False
    allowed = effort.seconds * files / 2
    unclear = wander(openings) > 0 or any(_side(figure, effort) == 0 for figure in found)
    if unclear or elapsed >= allowed:
        return elapsed >= LONGER * allowed or not unclear
    return all(_side(figure, effort) > 0 or half_width(figure) <= effort.precision for figure in found)


def half_width(figure: dict[str, Any]) -> float:
    """Half-width of a ratio's interval, relative."""
    return float((figure["ratio_high"] - figure["ratio_low"]) / (2 * figure["ratio"]))


def _side(figure: dict[str, Any], effort: Effort) -> int:
    """1: the interval lies above a limit; -1: below all of them; 0: it holds one."""
    in_ms = None if effort.ms_limit is None else effort.ms_limit * figure["ratio"] / figure["percentile_ms"]
    limits = [limit for limit in (effort.ratio_limit, in_ms) if limit is not None]
    if any(figure["ratio_low"] > limit for limit in limits):
        return 1
    return -1 if all(figure["ratio_high"] <= limit for limit in limits) else 0


def figures(openings: Sequence[Opening], file: int, effort: Effort) -> dict[str, Any]:
    """What is known of one candidate; milliseconds are the median over openings, the 95th percentile is of all calls."""
    ratios = [_ratio(opening, file, effort.percentile) for opening in openings]
    ratio, low, high = interval(ratios, _error_within(openings, file, effort.percentile))
    every = np.concatenate([_calls(opening[file]) for opening in openings])
    limit = effort.ms_limit
    return {
        "median_ms": _milliseconds(openings, file, 50),
        "p95_ms": float(np.percentile(every, 95)),
        "reference_median_ms": _milliseconds(openings, 0, 50),
        "ratio": ratio,
        "ratio_low": low,
        "ratio_high": high,
        "rounds": sum(len(opening[0]) for opening in openings),
        "openings": len(openings),
        "percentile": effort.percentile,
        "percentile_ms": _milliseconds(openings, file, effort.percentile),
        "missed": None if limit is None else float(np.mean(every > limit)),
        "wander": wander(openings),
    }


def _calls(rounds: Sequence[Sequence[float]]) -> Any:
    return np.concatenate([np.asarray(block) for block in rounds])


def _milliseconds(openings: Sequence[Opening], file: int, percentile: float) -> float:
    return float(np.median([np.percentile(_calls(opening[file]), percentile) for opening in openings]))


def _ratio(opening: Opening, file: int, percentile: float) -> float:
    """Of medians, round by round; a round has too few calls for another percentile, so that is of all rounds."""
    if percentile == 50:
        return float(np.median([np.median(a) / np.median(b) for a, b in zip(opening[file], opening[0], strict=True)]))
    return float(np.percentile(_calls(opening[file]), percentile) / np.percentile(_calls(opening[0]), percentile))


def _error_within(openings: Sequence[Opening], file: int, percentile: float) -> float:
    """Standard error of an opening's ratio by its rounds alone, relative: how far its even and odd rounds disagree."""
    parts = [[[rounds[first::2] for rounds in opening] for first in (0, 1)] for opening in openings]
    ratios = np.log([[_ratio(half, file, percentile) for half in halves] for halves in parts])
    return float(np.sqrt(np.mean((ratios[:, 0] - ratios[:, 1]) ** 2))) / 2


def interval(values: Sequence[float], error: float = 0.0) -> tuple[float, float, float]:
    """Median of independent positive values and its 95 % interval: Student's, on logarithms, for the error of a median.

    One opening that a neighbour slowed down widens the interval and hardly moves the median.

    Args:
        error: least relative standard error of a single value: a few may agree by chance.
    """
    logs = np.log(values)
    middle, count = float(np.median(logs)), len(logs)
    half = student(count - 1) * MEDIAN_ERROR * max(error, float(logs.std(ddof=1))) / math.sqrt(count)
    return math.exp(middle), math.exp(middle - half), math.exp(middle + half)


def student(degrees: int) -> float:
    """97.5 % quantile of Student's t (Abramowitz and Stegun 26.7.5): 3 % low for 2 degrees of freedom, 0.4 % for 4."""
    z = 1.959964
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / degrees + second / degrees**2 + third / degrees**3


def wander(openings: Sequence[Opening]) -> float:
    """Share by which the reference's time wandered from one third of the rounds to another; 0: noise explains it.

    Medians of thirds and the median difference of neighbouring rounds: single slow rounds count in neither.
    """
    times = np.log([np.median(block) for opening in openings for block in opening[0]])
    thirds = [float(np.median(third)) for third in np.array_split(times, 3)]
    noise = 1.4826 * float(np.median(np.abs(np.diff(times)))) / math.sqrt(2)
    error = MEDIAN_ERROR * noise / math.sqrt(len(times) / 3)
    found = math.expm1(max(thirds) - min(thirds))
    return found if found > max(WANDER, 5 * error) else 0.0
