"""The pictures in docs/screenshots: `python -m docs.screenshots FOLDER`.

Searches the embedded default on a terminal (where FOLDER has a recording, that is used), then opens MLflow and the report in
Chromium. Each picture is a PNG with a palette and under 300 kB.
"""

from __future__ import annotations

import argparse
import fcntl
import io
import json
import os
import pty
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pyte
from mlflow import MlflowClient
from mlflow.entities import Run
from PIL import Image
from rich.console import Console
from rich.style import Style
from rich.text import Text
from selenium.common.exceptions import TimeoutException
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By

from benchmarks.browser import browser, click, element, missing, mlflow_ui, wait_for
from benchmarks.tracking import FIRST_ROW

PICTURES = Path(__file__).parent / "screenshots"
LARGEST_BYTES = 300_000
COLUMNS, ROWS = 118, 44
COMMAND = ("search", "+experiment=digits", "objective=latency", "budget.accuracy_drop=0.01", "search.trials=24")
MOMENT = 0.6
"""Share of the search's time at which the picture of a running search is taken."""

A_TRIAL = "//a[starts-with(., 't0000')]"
PATIENCE = 180.0
SETTLE_SECONDS = 3.0
"""Charts move into place for so long."""

Screen = list[list[tuple[str, str, bool]]]
"""Rows of characters with colour and boldness."""


def main() -> None:
    """Make all pictures."""
    parser = argparse.ArgumentParser(prog="python -m docs.screenshots", description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder.resolve()
    if missing():
        parser.error(missing())
    PICTURES.mkdir(exist_ok=True)
    screens = recorded(folder)
    for name, screen in zip(
        ("terminal_during", "terminal_after"), (screens[int(MOMENT * len(screens))], screens[-1]), strict=True
    ):
        take_terminal(name, screen)
    take_mlflow(folder / "mlflow" / "mlflow.db")
    take_report(folder / "study" / "report.html")


def recorded(folder: Path) -> list[Screen]:
    """What the terminal showed, every half second."""
    path = folder / "screens.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(list(search(folder))))
    screens: list[Screen] = json.loads(path.read_text())
    return screens


def search(folder: Path) -> Iterator[Screen]:
    """Run the search on a terminal of its own."""
    control, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    command = [sys.executable, "-m", "autocompress", *COMMAND, f"hydra.run.dir={folder / 'study'}"]
    environment = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"}
    process = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, env=environment, cwd=folder)
    os.close(terminal)
    screen = pyte.Screen(COLUMNS, ROWS)
    stream, shown = pyte.ByteStream(screen), time.monotonic()
    stream.feed(f"$ autocompress {' '.join(COMMAND)}\r\n".encode())
    while data := _read(control):
        stream.feed(data)
        if time.monotonic() - shown > 0.5:
            shown = time.monotonic()
            yield _characters(screen)
    assert process.wait() == 0, "\n".join(screen.display)
    yield _characters(screen)


def _read(control: int) -> bytes:
    try:
        return os.read(control, 65536)
    except OSError:  # the other end is closed
        return b""


def _characters(screen: pyte.Screen) -> Screen:
    cells = [[screen.buffer[row][column] for column in range(COLUMNS)] for row in range(ROWS)]
    return [[(cell.data, cell.fg, cell.bold) for cell in row] for row in cells]


def take_terminal(name: str, screen: Screen) -> None:
    """Draw a terminal, without the empty rows at its end."""
    rows = list(screen)
    while rows and not "".join(character for character, *_ in rows[-1]).strip():
        rows.pop()
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), color_system="truecolor")
    for row in rows:
        line = Text(no_wrap=True)
        for character, colour, bold in row:
            line.append(character, Style(color=_colour(colour), bold=bold))
        line.rstrip()
        console.print(line)
    picture = PICTURES / f"{name}.svg"
    console.save_svg(str(picture), title="autocompress")
    with browser(1300, 1000) as driver:
        driver.get(picture.as_uri())
        _save(name, element(driver, "/*").screenshot_as_png)
    picture.unlink()


def _colour(name: str) -> str | None:
    if name == "default":
        return None
    names = {"brown": "yellow", "brightbrown": "bright_yellow"}
    return f"#{name}" if len(name) == 6 and not name.isalpha() else names.get(name, name.replace("bright", "bright_"))


def take_report(page: Path) -> None:
    """As wide as a desk's screen, and as a phone's."""
    for name, width, height, scale in (("report_desktop", 1200, 1500, 1.0), ("report_phone", 390, 1400, 1.5)):
        with browser(width, height) as driver:
            metrics = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": width < 500}
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
            driver.get(page.as_uri())
            time.sleep(SETTLE_SECONDS)
            _save(name, driver.get_screenshot_as_png())


def take_mlflow(database: Path) -> None:
    """The table of runs, a child with its layers, and the study's curves and figures."""
    client = MlflowClient(f"sqlite:///{database}")
    (experiment,) = client.search_experiments(filter_string="name != 'Default'")
    runs = client.search_runs([experiment.experiment_id])
    (study,) = [run for run in runs if run.data.tags["autocompress.kind"] == "study"]
    child = _best_child(study, runs)
    with mlflow_ui(database) as address, browser(1500, 950) as driver:
        page = f"{address}/#/experiments/{experiment.experiment_id}/runs"
        _open(driver, page, FIRST_ROW)
        _tidy(driver)
        _open(driver, f"{page}?viewStateShareKey=autocompress", A_TRIAL)
        _shoot(driver, "mlflow_table", A_TRIAL)
        _open(driver, f"{page}/{study.info.run_id}", "//strong[contains(., 'Ship')]")
        _shoot(driver, "mlflow_study", "//strong[contains(., 'Ship')]")
        _open(driver, f"{page}/{study.info.run_id}/model-metrics", "//*[contains(@class, 'main-svg')]")
        _shoot(driver, "mlflow_charts", "//*[contains(@class, 'main-svg')]")
        _open(driver, f"{page}/{child.info.run_id}/artifacts/layers.json", "//*[text()='stored_bytes']")
        _shoot(driver, "mlflow_child", "//*[text()='stored_bytes']")


def _best_child(study: Run, runs: list[Run]) -> Run:
    wanted = study.data.tags["autocompress.best_trial"]
    return next(run for run in runs if run.data.tags.get("autocompress.trial") == wanted)


def _open(driver: Chrome, address: str, xpath: str) -> None:
    driver.get(address)
    element(driver, xpath, PATIENCE)


def _tidy(driver: Chrome) -> None:
    """Close what a first visit shows beside the page, and say that this is about training."""
    for xpath in ("//button[@aria-label='Close']", "//*[text()='Model training']"):
        try:
            click(driver, xpath, 20)
        except TimeoutException:
            print(f"not there: {xpath}", file=sys.stderr)


def _shoot(driver: Chrome, name: str, xpath: str) -> None:
    wait_for(driver, lambda page: page.find_elements(By.XPATH, xpath), PATIENCE)
    time.sleep(SETTLE_SECONDS)
    driver.execute_script("for (const bar of document.querySelectorAll('.modebar')) bar.style.display = 'none'")
    _save(name, driver.get_screenshot_as_png())


def _save(name: str, png: bytes) -> None:
    path = PICTURES / f"{name}.png"
    Image.open(io.BytesIO(png)).convert("RGB").quantize(256).save(path, optimize=True)
    size = path.stat().st_size
    assert size < LARGEST_BYTES, f"{path.name} has {size} bytes; expected fewer than {LARGEST_BYTES}"
    print(f"{path.name}: {size:,} bytes")


if __name__ == "__main__":
    main()
