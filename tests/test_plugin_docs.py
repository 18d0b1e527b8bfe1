"""The examples of docs/plugins.md: each keeps the promises of its kind, and is what `new-plugin` writes."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import recall_score

from autocompress import CompressedLayer, testing
from autocompress.commands.new_plugin import KIND_TO_GROUP, Plugin
from autocompress.registry import Registry, load_registry
from autocompress.testing import make_layer, make_records, make_stats, make_study

PAGE = (Path(__file__).parents[1] / "docs" / "plugins.md").read_text(encoding="utf-8")

MOST_LINES = 30


def code(kind: str) -> list[str]:
    """The code blocks of a kind's section: the module, and for a target its session module."""
    section = re.split(r"^## ", PAGE, flags=re.MULTILINE)
    (text,) = (part for part in section if part.startswith(f"{kind.capitalize()}\n"))
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def name(kind: str) -> str:
    return str(re.findall(r'^    name = "(\w+)"$', code(kind)[0], flags=re.MULTILINE)[0])


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """Every example as an installed plugin."""
    folder = tmp_path_factory.mktemp("examples")
    packages = [f"example_{kind}" for kind in KIND_TO_GROUP]
    for kind, package in zip(KIND_TO_GROUP, packages, strict=True):
        (folder / package).mkdir()
        for file, text in zip(("__init__.py", "session.py"), code(kind), strict=False):
            (folder / package / file).write_text(text, encoding="utf-8")
    sys.path.insert(0, str(folder))
    yield load_registry([EntryPoint(package, package, "autocompress") for package in packages])
    sys.path.remove(str(folder))
    for package in packages:
        sys.modules.pop(package, None)


@pytest.mark.parametrize("kind", KIND_TO_GROUP)
def test_example_is_short_and_what_new_plugin_writes(kind: str) -> None:
    plugin, blocks = Plugin(name(kind), kind), code(kind)
    assert blocks[0] == plugin.rendered("components/__KIND__.py")
    assert blocks[1:] == ([plugin.rendered("components/session.py")] if kind == "target" else [])
    for block in blocks:
        assert sum(bool(line) for line in block.splitlines()) <= MOST_LINES


def test_power_of_two_quantizer_is_under_thirty_lines() -> None:
    assert len(code("quantizer")[0].splitlines()) < MOST_LINES


def test_examples_load(examples: Registry) -> None:
    assert [plugin.problem for plugin in examples.plugins] == [None] * len(KIND_TO_GROUP)
    assert {plugin.api for plugin in examples.plugins} == {"1.0"}


def made(examples: Registry, kind: str, **settings: Any) -> Any:
    return examples.create(KIND_TO_GROUP[kind], name(kind), settings)


class TestQuantizer(testing.QuantizerContract):
    @pytest.fixture(params=[7, 2])
    def quantizer(self, examples: Registry, request: pytest.FixtureRequest) -> Any:
        return made(examples, "quantizer", powers=request.param)


class TestPruner(testing.PrunerContract):
    @pytest.fixture
    def pruner(self, examples: Registry) -> Any:
        return made(examples, "pruner")


class TestObserver(testing.ObserverContract):
    @pytest.fixture
    def observer(self, examples: Registry) -> Any:
        return made(examples, "observer")


class TestMetric(testing.MetricContract):
    @pytest.fixture
    def metric(self, examples: Registry) -> Any:
        return made(examples, "metric")


class TestRecovery(testing.RecoveryContract):
    @pytest.fixture
    def recovery(self, examples: Registry) -> Any:
        return made(examples, "recovery")


class TestTarget(testing.TargetContract):
    @pytest.fixture
    def target(self, examples: Registry) -> Any:
        return made(examples, "target")


class TestSampler(testing.SamplerContract):
    @pytest.fixture
    def sampler(self, examples: Registry) -> Any:
        return made(examples, "sampler")


class TestTracker(testing.TrackerContract):
    @pytest.fixture
    def tracker(self, examples: Registry) -> Any:
        return made(examples, "tracker")


def test_weights_are_powers_of_two_times_the_scale(examples: Registry) -> None:
    weight = torch.tensor([[64.0, 33.0, -47.0, 49.0, 0.4, 0.6, -1.4, 0.0], [1.0, -0.5, 0.25, 0.2, 0.3, 0.1, 0.01, -1.0]])
    layer = make_layer((2, 8), "linear")
    found = made(examples, "quantizer").quantize(weight, 4, make_stats(weight, layer))
    assert found.scale.tolist() == [1.0, 2**-6]
    assert found.dequantize().tolist() == [
        [64.0, 32.0, -32.0, 64.0, 0.0, 1.0, -1.0, 0.0],
        [1.0, -0.5, 0.25, 0.25, 0.25, 0.125, 0.015625, -1.0],
    ]


def test_pruner_scores_as_the_formula_says(examples: Registry) -> None:
    weight = torch.tensor([[3.0, -1.0], [2.0, 0.0]])
    score = made(examples, "pruner").score(weight, make_stats(weight, make_layer((2, 2), "linear")))
    torch.testing.assert_close(score, torch.tensor([[9 / 9, 1 / 14], [4 / 13, 0 / 14]]))


def test_metric_agrees_with_scikit_learn(examples: Registry) -> None:
    random = np.random.default_rng(0)
    outputs, labels = random.standard_normal((200, 5)), random.integers(5, size=200) // 2
    metric = made(examples, "metric")
    expected = recall_score(labels, outputs.argmax(1), labels=np.unique(labels), average="macro")
    assert metric.value(metric.statistics(outputs, labels)) == pytest.approx(expected)


def test_recovery_gives_the_least_squares_scale(examples: Registry) -> None:
    weight = torch.randn(6, 20, generator=torch.Generator().manual_seed(0))
    layer = make_layer((6, 20), "linear")
    stats = make_stats(weight, layer)
    quantized = made(examples, "quantizer").quantize(weight, 4, stats)
    repaired = made(examples, "recovery").repair(CompressedLayer(quantized, None), stats, {}).weight
    rows = zip(quantized.numbers.double().numpy(), weight.double().numpy(), strict=True)
    expected = [np.linalg.lstsq(numbers[:, None], wanted, rcond=None)[0][0] for numbers, wanted in rows]
    np.testing.assert_allclose(repaired.scale.numpy(), expected, rtol=1e-6)


def test_tracker_writes_a_row_for_each_trial(examples: Registry, tmp_path: Path) -> None:
    study = make_study(tmp_path)
    records = make_records(study)
    tracker = made(examples, "tracker")
    tracker.autocompress_search_started(study, records[:1])
    tracker.autocompress_trial_finished(study, records[1])
    assert (study.folder / "trials.csv").read_text().splitlines() == [
        "number,state,size_bytes,latency_ms,accuracy",
        "0,complete,400,0.8,0.89",
        "1,pruned,700,,",
    ]
