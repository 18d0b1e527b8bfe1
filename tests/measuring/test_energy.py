"""Joules of an inference, read from a folder that looks like Linux's powercap."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from autocompress.measuring import energy
from autocompress.measuring.energy import POWERCAP, energy_zones, joules_per_inference

if TYPE_CHECKING:
    from autocompress.measuring.device import Device
    from tests.conftest import Tiny

RANGE = 10_000_000
"""Microjoules after which a counter begins again."""

SECONDS = 0.4


class Inference:
    """Takes a millisecond, and is counted."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, inputs: Sequence[Any]) -> list[Any]:
        self.calls += 1
        time.sleep(0.001)
        return []


def add_zone(folder: Path, zone: str, name: str, microjoules: int = 0) -> Path:
    path = folder / zone
    path.mkdir(parents=True)
    for file, content in (("name", name), ("energy_uj", microjoules), ("max_energy_range_uj", RANGE)):
        (path / file).write_text(f"{content}\n")
    return path


@contextmanager
def spending(watts: dict[Path, float]) -> Iterator[None]:
    """Advances counters as processors do, a thousand times a second."""
    begin, over = time.perf_counter(), threading.Event()
    first = {zone: int((zone / "energy_uj").read_text()) for zone in watts}

    def advance() -> None:
        while not over.wait(0.001):
            for zone, power in watts.items():
                spent = first[zone] + int(1e6 * power * (time.perf_counter() - begin))
                (zone / "next").write_text(f"{spent % RANGE}\n")
                (zone / "next").replace(zone / "energy_uj")

    thread = threading.Thread(target=advance)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def measured(folder: Path, watts: dict[Path, float], counted: Sequence[Path]) -> tuple[dict[str, Any], float]:
    """What is found, and the joules that one inference took by the clock and the calls."""
    run = Inference()
    with spending(watts):
        start = time.perf_counter()
        found = joules_per_inference(run, [], str(folder), SECONDS)
        return found, sum(watts[zone] for zone in counted) * (time.perf_counter() - start) / run.calls


def test_packages_and_their_memory_are_summed(tmp_path: Path) -> None:
    """Cores are a part of a package, the platform holds all, and the memory-mapped interface counts a package again."""
    zones = {"intel-rapl:0": "package-0", "intel-rapl:0:0": "core", "intel-rapl:0:1": "dram", "intel-rapl:1": "package-1"}
    others = {"intel-rapl:2": "psys", "intel-rapl-mmio:0": "package-0"}
    paths = {zone: add_zone(tmp_path, zone, name) for zone, name in (zones | others).items()}
    counted = [paths[zone] for zone in ("intel-rapl:0", "intel-rapl:0:1", "intel-rapl:1")]
    assert energy_zones(tmp_path) == counted
    watts = dict.fromkeys(paths.values(), 50.0) | dict(zip(counted, (6.0, 3.0, 2.0), strict=True))
    found, expected = measured(tmp_path, watts, counted)
    assert found["joules"] == pytest.approx(expected, rel=0.15)
    assert found["reason"] == ""


@pytest.mark.parametrize("microjoules", [0, RANGE - 1, RANGE - 3_000_000])
def test_a_counter_that_begins_again_loses_nothing(tmp_path: Path, microjoules: int) -> None:
    zone = add_zone(tmp_path, "intel-rapl:0", "package-0", microjoules)
    found, expected = measured(tmp_path, {zone: 15.0}, [zone])
    assert (int((zone / "energy_uj").read_text()) < microjoules) == (microjoules > 0), "else it did not begin again"
    assert found["joules"] == pytest.approx(expected, rel=0.15)


def test_a_loop_lasts_at_least_a_second() -> None:
    assert energy.SECONDS >= 1


def test_where_there_is_no_counter_the_reason_is_told(tmp_path: Path) -> None:
    found = joules_per_inference(Inference(), [], str(tmp_path / "powercap"), SECONDS)
    assert found == {"joules": None, "reason": f"no energy counter: {tmp_path}/powercap: no package of RAPL here"}


def test_a_counter_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    zone = add_zone(tmp_path, "intel-rapl:0", "package-0")
    (zone / "energy_uj").unlink()
    (zone / "energy_uj").mkdir()  # root, who may be running this, can read any file
    found = joules_per_inference(Inference(), [], str(tmp_path), SECONDS)
    assert found == {"joules": None, "reason": f"no energy counter: {zone}/energy_uj: Is a directory"}


def test_a_counter_that_stands_still_is_no_zero(tmp_path: Path) -> None:
    """Virtual machines have such."""
    add_zone(tmp_path, "intel-rapl:0", "package-0", 12345)
    found = joules_per_inference(Inference(), [], str(tmp_path), SECONDS)
    assert found == {"joules": None, "reason": f"the energy counters in {tmp_path} stand still"}


def test_a_device_gives_a_figure_or_the_reason(tiny: Tiny, device: Device, calibration_file: Path) -> None:
    found = device.energy(tiny.graph.path, calibration_file)
    assert (found.joules is None) == (found.reason != "")
    if not Path(POWERCAP).exists():
        assert POWERCAP in found.reason
    else:
        assert found.joules is None or 0 < found.joules < 10
