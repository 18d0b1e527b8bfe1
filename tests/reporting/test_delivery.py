"""What is delivered beside the file runs without autocompress, and says how inputs are prepared."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from autocompress.config import compose_settings
from autocompress.record import SearchResult
from autocompress.registry import load_registry
from autocompress.reporting.delivery import preprocessing
from autocompress.reporting.report import result_dict

ROOT = Path(__file__).parents[1].parent
SCRIPTS = {
    "onnxruntime": ROOT / "autocompress" / "run_model.py",
    "openvino": ROOT / "plugins" / "autocompress_plugins" / "openvino_cpu" / "run_model.py",
}


@pytest.mark.parametrize("runtime", SCRIPTS)
def test_script_gives_the_outputs_of_the_file(searched: SearchResult, tmp_path: Path, runtime: str) -> None:
    pytest.importorskip(runtime)
    best = Path(shutil.copytree(searched.folder / "best", tmp_path / "best"))
    if runtime == "openvino":
        shutil.copyfile(SCRIPTS[runtime], best / "run.py")
    images = np.random.default_rng(0).uniform(-0.3, 0.7, (5, 1, 8, 8)).astype(np.float32)
    np.save(tmp_path / "input.npy", images)
    command = [sys.executable, "-I", str(best / "run.py")]
    done = subprocess.run([*command, "input.npy"], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60)
    session = onnxruntime.InferenceSession(searched.best.artifact.path, providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {session.get_inputs()[0].name: images})
    steps = 1 if runtime == "onnxruntime" else 0.05 * np.abs(expected).max()
    np.testing.assert_allclose(np.load(tmp_path / "OUTPUT.npy"), expected, atol=1e-6 * steps if steps == 1 else steps)
    assert "OUTPUT.npy: shape (5, 10)" in done.stdout
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=True, timeout=60)
    assert np.load(tmp_path / "OUTPUT.npy").shape == (1, 10)


@pytest.mark.parametrize("runtime", SCRIPTS)
def test_script_needs_the_runtime_and_numpy_only(runtime: str) -> None:
    source = SCRIPTS[runtime].read_text()
    imports = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {(node.module or "") if isinstance(node, ast.ImportFrom) else node.names[0].name for node in imports}
    assert names == {"sys", "pathlib", "numpy", runtime}
    assert len(source.splitlines()) < 30


def test_everything_that_a_deployment_needs_is_there(searched: SearchResult) -> None:
    best = searched.folder / "best"
    names = {path.name for path in best.iterdir()}
    assert names == {"model.onnx", "policy.yaml", "state.safetensors", "run.py", "README.md", "figures.json"}
    figures, told = json.loads((best / "figures.json").read_text()), json.loads(json.dumps(result_dict(searched)))
    assert all(figures[name] == told[name] for name in figures)
    readme = (best / "README.md").read_text()
    assert "- input `input`: float, shape (batch, 1, 8, 8)" in readme
    assert "those that were given to the search from Python" in readme
    assert (searched.folder / "report.html").stat().st_size < 8_000_000


def test_preprocessing_is_that_of_the_configured_data() -> None:
    image = {"grayscale": False, "resize": 256, "interpolation": "bicubic", "crop": 224, "mean": [0.5], "std": [0.25]}
    assert preprocessing({"data": {"factory": None, "image": image}}) == [
        "RGB, then short side to 256 pixels, bicubic, aspect ratio kept, then central 224 x 224 pixels, then divide by 255, "
        "axes (channel, row, column), float32, then subtract [0.5] from the channels, then divide the channels by [0.25]"
    ]
    settings = compose_settings([], load_registry())
    assert "data" not in settings.plain
    assert preprocessing(settings.plain) == ["as those that were given to the search from Python: nothing is done to them"]


@pytest.mark.parametrize("runtime", SCRIPTS)
def test_python_of_the_page_on_deployment_runs(searched: SearchResult, monkeypatch: pytest.MonkeyPatch, runtime: str) -> None:
    pytest.importorskip(runtime)
    monkeypatch.chdir(searched.folder)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "deploy.md").read_text(), flags=re.DOTALL)
    chosen = [block for block in blocks if f"import {runtime}\n" in block]
    for block in chosen:
        found: dict[str, object] = {}
        exec(block, found)
        assert np.shape(found.get("outputs", np.zeros((1, 10)))) == (1, 10)
    assert len(chosen) == {"onnxruntime": 2, "openvino": 1}[runtime]
