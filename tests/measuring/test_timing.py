from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import scipy.stats

from autocompress.measuring import timing
from autocompress.measuring.timing import (
    BLOCK_SECONDS,
    LONGER,
    MIN_OPENINGS,
    MIN_OPENINGS_ABOVE,
    ROUNDS,
    Effort,
    interval,
    measure,
)

Run = Callable[[Sequence[Any]], list[Any]]
BRIEF = Effort(seconds=0, precision=0.0)
FEWEST = MIN_OPENINGS * ROUNDS[0]


def sleeps(*seconds: float, calls: list[str] | None = None, name: str = "") -> Callable[[], Run]:
    """A model that takes these times in turn."""
    count = 0

    def run(inputs: Sequence[Any]) -> list[Any]:
        nonlocal count
        if calls is not None:
            calls.append(name)
        time.sleep(seconds[count % len(seconds)])
        count += 1
        return []

    return lambda: run


def drawn(ratios: Sequence[float], noise: float, seed: int = 0, rounds: int = 6) -> list[timing.Opening]:
    """Openings of a reference of 1 ms and a file of these ratios, three calls a round, each with normal noise."""
    random = np.random.default_rng(seed)
    return [
        [(middle * np.exp(noise * random.standard_normal((rounds, 3)))).tolist() for middle in (1.0, ratio)] for ratio in ratios
    ]


# --- rounds and openings ---


def test_timing_of_known_durations() -> None:
    (found,) = measure([sleeps(0.01), sleeps(0.02)], [], BRIEF)
    assert 1.4 < found["ratio"] < 2.2
    assert found["ratio_low"] <= found["ratio"] <= found["ratio_high"]
    assert 10 <= found["reference_median_ms"] < 20
    assert 20 <= found["median_ms"] == found["percentile_ms"] < 40
    assert found["median_ms"] <= found["p95_ms"]
    assert (found["openings"], found["rounds"]) == (MIN_OPENINGS, FEWEST)


def test_timing_finds_the_slow_tail_and_its_median_ignores_it() -> None:
    runs = [sleeps(0.005), sleeps(*[0.005] * 4, 0.08)]
    (median,) = measure(runs, [], BRIEF)
    assert median["median_ms"] < 20 < median["p95_ms"]
    assert median["ratio"] < 3
    (tail,) = measure(runs, [], Effort(0, 0.0, percentile=95))
    assert tail["percentile_ms"] > 40
    assert tail["ratio"] > 3
    assert tail["rounds"] >= MIN_OPENINGS * 10, "two calls a round at most: twenty tell what the slowest twentieth is"


def test_share_of_deadlines_missed() -> None:
    (found,) = measure([sleeps(0.002), sleeps(0.002, 0.002, 0.002, 0.03)], [], Effort(0, 0.0, ms_limit=20.0))
    assert found["missed"] == pytest.approx(0.25, abs=0.12)
    assert measure([sleeps(0.002)] * 2, [], BRIEF)[0]["missed"] is None


def test_timing_stops_when_precise_or_when_the_time_is_over() -> None:
    start = time.perf_counter()
    (precise,) = measure([sleeps(0.002), sleeps(0.002)], [], Effort(60, precision=10.0))
    assert precise["openings"] == MIN_OPENINGS
    (limited,) = measure([sleeps(0.002), sleeps(0.002)], [], Effort(0.6, precision=0.0))
    assert limited["rounds"] > FEWEST
    assert time.perf_counter() - start < 10


def test_rounds_interleave_all_files_in_random_order() -> None:
    calls: list[str] = []
    measure([sleeps(0.012, calls=calls, name=name) for name in "rab"], [], BRIEF)
    warm_up = 3 * timing.WARM_UP_CALLS
    each = len(calls) // MIN_OPENINGS  # the first opening warms up longer
    openings = [calls[len(calls) - (index + 1) * (warm_up + 3 * ROUNDS[0]) :] for index in range(MIN_OPENINGS - 1)]
    assert each >= warm_up + 3 * ROUNDS[0]
    rounds = ["".join(opening[warm_up + 3 * at : warm_up + 3 * at + 3]) for opening in openings for at in range(ROUNDS[0])]
    assert {"".join(sorted(order)) for order in rounds} == {"abr"}
    assert len(set(rounds)) > 2


def test_files_are_opened_anew_and_closed_before_that() -> None:
    opened = alive = most = 0

    class Session:
        def __init__(self) -> None:
            nonlocal opened, alive, most
            opened, alive = opened + 1, alive + 1
            most = max(most, alive)

        def __call__(self, inputs: Sequence[Any]) -> list[Any]:
            time.sleep(0.001)
            return []

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    measure([Session, Session], [], BRIEF)
    assert (opened, most) == (2 * MIN_OPENINGS, 2)


def test_a_block_holds_the_calls_that_fill_its_time() -> None:
    """Against the calls' own clock: a busy machine makes each call longer, and a block hold fewer of them."""
    durations: list[float] = []

    def run(_: Sequence[Any]) -> list[Any]:
        start = time.perf_counter()
        time.sleep(0.0005)
        durations.append(time.perf_counter() - start)
        return []

    calls = timing._warm_up(run, [], 0.1, BLOCK_SECONDS)
    assert sum(durations) > 0.08
    assert calls == pytest.approx(BLOCK_SECONDS / np.median(durations), rel=0.3, abs=1)
    assert timing._warm_up(sleeps(2 * BLOCK_SECONDS)(), [], 0.0, BLOCK_SECONDS) == 1


def fails(inputs: Sequence[Any]) -> list[Any]:
    raise RuntimeError("on" if gc.isenabled() else "off")


def test_garbage_collection_is_off_while_timing_and_on_again_after_a_failure() -> None:
    assert gc.isenabled()
    with pytest.raises(RuntimeError, match=r"^off$"):
        measure([lambda: fails] * 2, [], BRIEF)
    assert gc.isenabled()


# --- when it is over ---

SURE = {"seconds": 1.0, "precision": 0.01}


@pytest.mark.parametrize(
    ("effort", "count", "over", "why"),
    [
        (Effort(**SURE), MIN_OPENINGS - 1, False, "too few openings"),
        (Effort(**SURE), MIN_OPENINGS, True, "known well enough"),
        (Effort(1.0, precision=1e-6), MIN_OPENINGS, False, "not known well enough"),
        (Effort(**SURE, ratio_limit=0.4), MIN_OPENINGS_ABOVE, True, "above the limit for sure"),
        (Effort(1.0, 1e-6, ratio_limit=0.4), MIN_OPENINGS, True, "above the limit for sure, however precise"),
        (Effort(**SURE, ratio_limit=0.6), MIN_OPENINGS, True, "below the limit for sure"),
        (Effort(**SURE, ratio_limit=0.5), MIN_OPENINGS, False, "on both sides of the limit"),
        (Effort(**SURE, ms_limit=0.5), MIN_OPENINGS, False, "on both sides of the limit in milliseconds"),
        (Effort(**SURE, ms_limit=0.4), MIN_OPENINGS_ABOVE, True, "above the limit in milliseconds"),
        (Effort(**SURE, ms_limit=0.6, ratio_limit=0.4), MIN_OPENINGS_ABOVE, True, "above one of both limits"),
        (Effort(**SURE, ms_limit=0.6, ratio_limit=0.5), MIN_OPENINGS, False, "close to one of both limits"),
    ],
)
def test_when_a_ratio_of_a_half_is_known_well_enough(effort: Effort, count: int, over: bool, why: str) -> None:
    openings = drawn([0.4995, 0.5, 0.5005, 0.4998, 0.5002][:count], noise=0.0005)
    assert timing._is_over(openings, 2, effort, elapsed=0.5) is over, why


def test_a_close_decision_is_timed_longer_once() -> None:
    openings = drawn([0.49, 0.5, 0.51, 0.5, 0.5], noise=0.001)
    close, clear = Effort(1.0, 0.0, ratio_limit=0.5), Effort(1.0, 0.0, ratio_limit=0.8)
    assert [timing._is_over(openings, 2, clear, elapsed) for elapsed in (0.9, 1.1)] == [False, True]
    assert [timing._is_over(openings, 2, close, elapsed) for elapsed in (1.1, LONGER + 0.1)] == [False, True]
    assert [timing._is_over(openings, 2, close, 1.5 * elapsed) for elapsed in (1.1, LONGER + 0.1)] == [False, True]


def test_a_reference_that_wanders_is_told_and_timed_longer() -> None:
    steady = drawn([0.5] * 6, noise=0.02)
    assert timing.wander(steady) == 0
    slower = [[[[1.08 * ms for ms in block] for block in rounds] for rounds in opening] for opening in steady[3:]]
    wandering = [*steady[:3], *slower]
    assert timing.wander(wandering) == pytest.approx(0.08, abs=0.015)
    effort = Effort(1.0, precision=1.0)
    assert timing._is_over(steady, 2, effort, 0.5)
    assert [timing._is_over(wandering, 2, effort, elapsed) for elapsed in (0.5, 1.1, LONGER + 0.1)] == [False, False, True]
    (ratio, *_), expected = interval([timing._ratio(opening, 1, 50) for opening in wandering]), 0.5
    assert ratio == pytest.approx(expected, rel=0.01), "the ratio does not wander"


def test_single_slow_rounds_are_no_wandering() -> None:
    openings = drawn([0.5] * 6, noise=0.01)
    for opening in openings[::2]:
        opening[0][1] = [3 * ms for ms in opening[0][1]]
    assert timing.wander(openings) == 0


def test_noise_alone_is_rarely_called_wandering() -> None:
    assert np.mean([timing.wander(drawn([0.5] * 5, noise=0.2, seed=seed)) > 0 for seed in range(200)]) < 0.03


# --- the interval ---


@pytest.mark.parametrize("degrees", [2, 4, 9, 30, 200])
def test_quantiles_of_student(degrees: int) -> None:
    assert timing.student(degrees) == pytest.approx(scipy.stats.t.ppf(0.975, degrees), rel=0.035 if degrees == 2 else 0.005)


def test_interval_of_known_values() -> None:
    values = [0.9, 1.0, 1.1, 1.2, 0.8]
    spread = np.std(np.log(values), ddof=1)
    half = scipy.stats.t.ppf(0.975, 4) * math.sqrt(math.pi / 2) * spread / math.sqrt(5)
    middle, low, high = interval(values)
    assert middle == pytest.approx(1.0)
    assert (math.log(low), math.log(high)) == (pytest.approx(-half, rel=0.005), pytest.approx(half, rel=0.005))
    assert interval(values, error=2 * spread)[2] == pytest.approx(math.exp(2 * half), rel=0.005)
    assert interval(values, error=spread / 2) == (middle, low, high)


@pytest.mark.parametrize("burst", [0.0, 0.1], ids=["calm", "bursts"])
def test_interval_covers_the_truth_when_openings_differ_and_timing_stops_early(burst: float) -> None:
    """Openings that differ by 0.5 %, calls by 1.5 %, one opening in ten hit by a neighbour; stops as the protocol does."""
    random, effort, repeats, covered = np.random.default_rng(1), Effort(1.0, 0.01), 100, 0
    for repeat in range(repeats):
        slow = np.where(random.random(40) < burst, 1.1, 1.0)
        ratios = 0.5 * np.exp(0.005 * random.standard_normal(40)) * slow
        openings = drawn(ratios, noise=0.015, seed=repeat)
        count = next(count for count in range(1, 41) if timing._is_over(openings[:count], 2, effort, count / 10))
        found = timing.figures(openings[:count], 1, effort)
        covered += found["ratio_low"] <= 0.5 <= found["ratio_high"]
    assert covered / repeats > 0.93


def test_the_least_number_of_blocks_fits_into_the_time_asked_for() -> None:
    short, long = Effort(seconds=0.02, precision=0.01), Effort(seconds=1.5, precision=0.01)
    assert 2 * MIN_OPENINGS * ROUNDS[0] * short.block_seconds == pytest.approx(short.seconds)
    assert (short.warm_up_seconds, long.warm_up_seconds) == (0.01, timing.WARM_UP_SECONDS)
    assert long.block_seconds == BLOCK_SECONDS
