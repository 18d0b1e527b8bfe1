"""A study as a person finds it: `mlflow ui` in Chromium."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from autocompress import Budget, search

pytest.importorskip("selenium", reason="selenium is not installed")

from selenium.webdriver import Chrome

from benchmarks.browser import browser, click, element, missing, mlflow_ui, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=missing() or "-"), pytest.mark.timeout(600)]

QUICK = (
    "timing.seconds=0.05",
    "timing.precision=1",
    "sensitivity.seconds=0.05",
    "trial.load_processes=1",
    "probe.enabled=false",
)
TRIALS = 4
PATIENCE = 120.0
"""Seconds for a page on a machine that is at other things too."""


@pytest.fixture(scope="module")
def folder(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real search."""
    folder = tmp_path_factory.mktemp("study")
    search(tiny.task, Budget(accuracy_drop=0.2), trials=TRIALS, output_dir=folder / "tiny", overrides=QUICK)
    return folder


@pytest.fixture(scope="module")
def runs(folder: Path) -> dict[str, Run]:
    """By `autocompress.trial`; the study's under `study`."""
    client = MlflowClient(f"sqlite:///{folder}/mlflow/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name != 'Default'")
    return {run.data.tags.get("autocompress.trial", "study"): run for run in client.search_runs([experiment.experiment_id])}


@pytest.fixture(scope="module")
def page(folder: Path, runs: dict[str, Run]) -> Iterator[tuple[Chrome, str]]:
    """A browser, and the address of the experiment."""
    with mlflow_ui(folder / "mlflow/mlflow.db") as address, browser(1800, 1000) as driver:
        yield driver, f"{address}/#/experiments/{runs['study'].info.experiment_id}/runs"


NAMES = """
const links = [...document.querySelectorAll('[role=row] a[href*="/runs/"]')].filter(link => link.innerText);
return links.map(link => [link.getBoundingClientRect().top, link.innerText]).sort((a, b) => a[0] - b[0]).map(found => found[1]);
"""


def names(driver: Chrome) -> list[str]:
    """The runs of the table from top to bottom."""
    found: list[str] = driver.execute_script(NAMES)
    return found


def test_the_table_shows_all_trials_and_sorts_by_a_metric(page: tuple[Chrome, str], runs: dict[str, Run]) -> None:
    driver, address = page
    driver.get(f"{address}?viewStateShareKey=autocompress")
    everything = {run.info.run_name for run in runs.values()}
    assert wait_for(driver, lambda _: set(names(driver)) == everything, PATIENCE)
    assert element(driver, "//*[@data-testid='sort-header-size/ratio']").is_displayed()
    ratios = {
        run.info.run_name: run.data.metrics["latency/ratio"] for run in runs.values() if "latency/ratio" in run.data.metrics
    }
    assert len(set(ratios.values())) > 1
    click(driver, "//*[@data-testid='sort-header-latency/ratio']", PATIENCE)

    def is_sorted(_: Chrome) -> bool:
        shown = [ratios[name] for name in names(driver) if name in ratios]
        return len(shown) == len(ratios) and shown in (sorted(shown), sorted(shown, reverse=True))

    assert wait_for(driver, is_sorted, PATIENCE)


def test_the_study_begins_with_the_answer_and_shows_figures(page: tuple[Chrome, str], runs: dict[str, Run]) -> None:
    driver, address = page
    driver.get(f"{address}/{runs['study'].info.run_id}")
    assert element(driver, "//strong[contains(., 'Ship')]", PATIENCE).text.startswith("Ship")
    driver.get(f"{address}/{runs['study'].info.run_id}/artifacts/figures/figures.html")
    driver.switch_to.frame(element(driver, "//iframe", PATIENCE))
    assert element(driver, "//*[@id='pareto_front']//*[contains(@class, 'main-svg')]", PATIENCE).is_displayed()
    driver.switch_to.default_content()


def test_the_study_has_curves_over_its_trials(page: tuple[Chrome, str], runs: dict[str, Run]) -> None:
    driver, address = page
    driver.get(f"{address}/{runs['study'].info.run_id}/model-metrics")
    assert element(driver, "//*[contains(text(), 'front_hypervolume')]", PATIENCE).is_displayed()
    assert element(driver, "//*[contains(@class, 'main-svg')]", PATIENCE).is_displayed()


def test_a_child_shows_its_layers(page: tuple[Chrome, str], runs: dict[str, Run], tiny: Any) -> None:
    driver, address = page
    driver.get(f"{address}/{runs['0'].info.run_id}/artifacts/layers.json")
    for layer in tiny.graph.layers:
        assert element(driver, f"//*[normalize-space(text())='{layer}']", PATIENCE).is_displayed()
