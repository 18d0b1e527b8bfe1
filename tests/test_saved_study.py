"""What is read from a study's folder is what the search knew; and what can be told of one that never ended."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from autocompress.cli import main as cli
from autocompress.errors import ConfigError
from autocompress.record import SearchResult
from autocompress.report import comparison, result_dict, table
from autocompress.saved_study import read_study
from autocompress.selection import ranked


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
    study, found = read_study(folder)
    assert (study.model, study.objective, study.target) == ("tiny", "latency", "onnxruntime")
    assert found.records == result.records
    assert study.baseline.latency is not None
    assert found.policy == result.policy
    assert json.dumps(result_dict(found)) == json.dumps(result_dict(result))
    assert table(replace(found, changes=result.changes)) == table(result)


def test_an_interrupted_study_is_told_by_its_trials(copy: Path) -> None:
    (copy / "result.json").unlink()
    study, found = read_study(copy)
    best = ranked(found.records, study.objective)[0]
    assert (found.status, found.best_trial, found.best.measurement) == ("interrupted", best.number, best.measurement)
    assert found.drop == best.measurement.accuracy_drop
    assert math.isnan(found.selection_gap)
    assert [row[0] for row in comparison(found)] == ["accuracy", "size", "latency"]


def test_a_study_from_before_there_was_study_json(copy: Path) -> None:
    """The same figures, of the search set, as far as trials and result tell them."""
    known, _ = read_study(copy)
    (copy / "study.json").unlink()
    study, found = read_study(copy)
    assert (study.name, study.model, study.objective, study.budget) == (known.name, "tiny", "latency", known.budget)
    assert study.device == known.device
    assert study.baseline.accuracy == pytest.approx(known.baseline.accuracy)
    assert study.baseline.size_bytes == known.baseline.size_bytes
    assert len(found.records) == 3
    (copy / "result.json").unlink()
    study, found = read_study(copy)
    assert (study.objective, found.status, len(found.records)) == ("latency", "interrupted", 3)


def test_a_result_for_another_budget_is_not_this_study_s(copy: Path) -> None:
    told = json.loads((copy / "result.json").read_text())
    (copy / "result.json").write_text(json.dumps({**told, "budget": {"size_ratio": 0.5}}))
    assert read_study(copy)[1].status == "interrupted"


def test_a_folder_without_a_study_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=r"no study lies there; expected the output folder of a search, with study\.db"):
        read_study(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli(["report", str(tmp_path)])
    assert ended.value.code == 2
    assert "no study lies there" in capsys.readouterr().err


def test_the_tables_of_the_search_are_kept(result: SearchResult, folder: Path) -> None:
    content = json.loads((folder / "sensitivity.json").read_text())
    assert set(content["order"]) == {entry["layer"] for entry in content["layers"]}
    options = {option["option"]: option for entry in content["layers"] for option in entry["options"]}
    assert "int8" in options
