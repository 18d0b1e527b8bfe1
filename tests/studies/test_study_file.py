"""What is read from a study's folder is what the search knew; and what can be told of one that never ended."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest

from autocompress.cli import main as cli
from autocompress.errors import ConfigError
from autocompress.record import SearchResult
from autocompress.reporting.report import comparison, result_dict, table
from autocompress.reporting.unfinished import unfinished
from autocompress.searching.selection import ranked
from autocompress.studies.study_file import last_study, save_study


@pytest.fixture(scope="module")
def folder(result: SearchResult) -> Path:
    return result.folder


@pytest.fixture(scope="module")
def result(searched: SearchResult) -> SearchResult:
    return searched


@pytest.fixture
def copy(result: SearchResult, folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns("*.onnx")))


def test_what_was_written_is_read_again(result: SearchResult, folder: Path) -> None:
    saved = last_study(folder)
    study, found = saved.context, saved.result
    assert found is not None
    assert (study.model, study.objective, study.target) == ("tiny", "latency", "onnxruntime")
    assert found.records == result.records
    assert study.baseline.latency is not None
    assert found.policy == result.policy
    assert json.dumps(result_dict(found)) == json.dumps(result_dict(result))
    assert table(found) == table(result)


def test_an_interrupted_study_is_told_by_its_trials(copy: Path) -> None:
    saved = last_study(copy)
    save_study(saved.context)
    study, records, told = vars(last_study(copy)).values()
    assert told is None
    found = unfinished(study, records)
    best = ranked(found.records, study.objective)[0]
    assert (found.status, found.best_trial, found.best.measurement) == ("interrupted", best.number, best.measurement)
    assert found.drop == best.measurement.accuracy_drop
    assert math.isnan(found.selection_gap)
    assert [row[0] for row in comparison(found)] == ["accuracy", "size", "latency"]


def test_a_folder_without_a_study_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=r"no study lies there; expected the output folder of a search"):
        last_study(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli(["report", str(tmp_path)])
    assert ended.value.code == 2
    assert "no study lies there" in capsys.readouterr().err


def test_the_tables_of_the_search_are_kept(result: SearchResult, folder: Path) -> None:
    content = json.loads((folder / "sensitivity.json").read_text())
    assert set(content["order"]) == {entry["layer"] for entry in content["layers"]}
    options = {option["option"]: option for entry in content["layers"] for option in entry["options"]}
    assert "int8" in options
