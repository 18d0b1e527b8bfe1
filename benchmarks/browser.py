"""MLflow's pages and ours in headless Chromium, as a person sees them."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar
from urllib.request import urlopen

from selenium.common.exceptions import StaleElementReferenceException, WebDriverException
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

Found = TypeVar("Found")

START_SECONDS = 60.0


def missing() -> str:
    """Why no browser can be started; empty: one can."""
    programs = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"{' and '.join(programs)} not installed (Debian: chromium, chromium-driver)" if programs else ""


@contextmanager
def browser(width: int = 1400, height: int = 900, scale: float = 1.0) -> Iterator[Chrome]:
    """Chromium without a display, its profile in a folder that goes with it."""
    with TemporaryDirectory() as profile:
        options = ChromeOptions()
        options.binary_location = shutil.which("chromium") or ""
        # As root it starts only without a sandbox; the pages are our own. A container's /dev/shm may be small.
        switches = [
            "--headless=new",
            "--no-sandbox",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
            f"--user-data-dir={profile}",
        ]
        for switch in [*switches, f"--window-size={width},{height}", f"--force-device-scale-factor={scale}"]:
            options.add_argument(switch)
        driver = Chrome(options, ChromeService(shutil.which("chromedriver")))
        try:
            yield driver
        finally:
            driver.quit()


@contextmanager
def mlflow_ui(database: Path) -> Iterator[str]:
    """The address of `mlflow ui` over a SQLite file."""
    uri = f"http://127.0.0.1:{_free_port()}"
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", f"sqlite:///{database}", "--workers", "1"]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with TemporaryDirectory() as folder, Path(folder, "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", uri.rpartition(":")[2]],
            cwd=folder,
            env={**os.environ, **quiet},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            _wait_until_up(uri, process)
            yield uri
        finally:
            os.killpg(process.pid, 15)
            process.wait()


def _free_port() -> int:
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _wait_until_up(uri: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            with urlopen(f"{uri}/health", timeout=5):  # nosec B310  # our own server
                return
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(f"mlflow ui did not answer at {uri}")


def wait_for(driver: Chrome, found: Callable[[Chrome], Found | None], seconds: float = 30.0) -> Found:
    """What a function returns as soon as it is anything true; pages build themselves while one looks."""
    waiting = WebDriverWait(driver, seconds, 0.1, [StaleElementReferenceException, WebDriverException])
    return waiting.until(lambda page: found(page) or False)


def element(driver: Chrome, xpath: str, seconds: float = 30.0) -> WebElement:
    """The first element that can be seen."""

    def seen(page: Chrome) -> WebElement | None:
        return next((one for one in page.find_elements(By.XPATH, xpath) if one.is_displayed()), None)

    return wait_for(driver, seen, seconds)


def click(driver: Chrome, xpath: str, seconds: float = 30.0) -> None:
    """Click it as soon as that is possible."""

    def clicked(page: Chrome) -> bool:
        element(page, xpath, 1).click()
        return True

    wait_for(driver, clicked, seconds)
