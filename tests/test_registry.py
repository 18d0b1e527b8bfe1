"""Plugins come in by entry points only; one that is broken or clashes is reported and skipped, whatever it does."""

from __future__ import annotations

import ast
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import autocompress
from autocompress.components import Component
from autocompress.errors import UnknownComponentError
from autocompress.registry import KINDS, Registry, load_registry

Install = Callable[..., None]

KEEP_ALL = """
@dataclass
class KeepAll(Pruner):
    name = "keep_all"

    def score(self, weight, stats):
        return weight.abs() + 1
"""

GOOD = (
    KEEP_ALL
    + """
@hookimpl
def autocompress_pruners():
    return [KeepAll]
"""
)


TRACKER = """
from autocompress import Tracker

@dataclass
class Listener(Tracker):
    name = "listener"

    @hookimpl
    def autocompress_trial_finished(self, study, record):
        pass

@hookimpl
def autocompress_trackers():
    return [Listener]
"""

MODE = "from typing import Literal\nMode = Literal['fast', 'slow']\n"


def bundled() -> Registry:
    return load_registry(
        entry for entry in entry_points(group="autocompress") if entry.dist and entry.dist.name == "autocompress"
    )


def problems(registry: Registry) -> dict[tuple[str, str], str]:
    """What is not in use: (name, distribution) to the reason."""
    return {(plugin.name, plugin.distribution): plugin.problem for plugin in registry.plugins if plugin.problem}


def test_bundled_components_are_all_there() -> None:
    registry = bundled()
    assert problems(registry) == {}
    assert {kind: registry.names(kind) for kind in KINDS} == {
        "quantizer": ["estimated", "gptq", "int4", "int8", "mean_rounding"],
        "pruner": ["importance", "sparse", "stability"],
        "recover": ["adaround", "bias_correction", "equalization", "finetune", "moments"],
        "observer": ["entropy", "global", "minmax", "moving_average", "mse", "percentile"],
        "metric": [
            *("accuracy", "agreement", "cosine", "f1", "function", "kl", "mean_iou", "squared_error", "top5"),
        ],
        "target": ["onnxruntime", "openvino", "ssh"],
        "sampler": ["gp", "grid", "knapsack", "nsgaii", "random", "tpe"],
        "tracking": ["mlflow"],
    }


def test_installed_plugin_is_loaded_with_its_distribution(install: Install) -> None:
    install("stranger", mine=GOOD)
    registry = load_registry()
    registered = registry.components["pruner", "keep_all"]
    assert (registered.plugin.name, registered.plugin.distribution, registered.plugin.version) == ("mine", "stranger", "1.2")
    assert registry.component("pruner", "keep_all") is registered.component
    assert registry.versions()["stranger"] == "1.2"


BROKEN = {
    "import error": ("import no_such_module_anywhere", "ModuleNotFoundError: No module named 'no_such_module_anywhere'"),
    "syntax error": ("def f(:", "SyntaxError"),
    "raises": ("raise RuntimeError('the card is missing')", "RuntimeError: the card is missing"),
    "leaves": ("import sys; sys.exit(3)", "SystemExit: 3"),
    "hook raises": ("@hookimpl\ndef autocompress_pruners():\n    return 1 / 0", "ZeroDivisionError"),
    "hook gives no list": ("@hookimpl\ndef autocompress_pruners():\n    return 5", "TypeError"),
    "hook wants too much": (
        "@hookimpl\ndef autocompress_pruners(graph):\n    return []",
        "hook autocompress_pruners has no argument 'graph' (arguments: none)",
    ),
    "misspelt argument": (
        "@hookimpl\ndef autocompress_trial_finished(study, recrod):\n    pass",
        "hook autocompress_trial_finished has no argument 'recrod'; did you mean 'record'? (arguments: study, record)",
    ),
    "misspelt hook": (
        "@hookimpl\ndef autocompress_pruner():\n    return []",
        "unknown hook 'autocompress_pruner'; did you mean 'autocompress_pruners'? (hooks: autocompress_quantizers, ",
    ),
    "misspelt hook of a tracker": (
        TRACKER.replace("trial_finished", "trial_finish"),
        "unknown hook 'autocompress_trial_finish'; did you mean 'autocompress_trial_finished'?",
    ),
    "unmarked hook": (
        KEEP_ALL + "def autocompress_pruners():\n    return [KeepAll]",
        "function autocompress_pruners is not marked with @hookimpl, so it would never be called",
    ),
    "unmarked hook of a tracker": (
        TRACKER.replace("    @hookimpl\n", ""),
        "function autocompress_trial_finished is not marked with @hookimpl",
    ),
    "name that is not there": (
        "from autocompress import Prunner",
        "uses autocompress.Prunner, which does not exist; did you mean 'Pruner'?; the plugin declares no AUTOCOMPRESS_API, "
        "this is autocompress 0.1.0 with plugin API 1.0",
    ),
    "attribute that is not there": (
        "import autocompress\nBASE = autocompress.Quantiser",
        "uses autocompress.Quantiser, which does not exist; did you mean 'Quantizer'?",
    ),
    "error that is not there": (
        'AUTOCOMPRESS_API = "1.0"\nfrom autocompress.errors import ConfgError',
        "uses autocompress.errors.ConfgError, which does not exist; did you mean 'ConfigError'?; "
        "the plugin was written for API 1.0,",
    ),
    "module that is not there": (
        "import autocompress.testting",
        "uses autocompress.testting, which does not exist; did you mean 'testing'?",
    ),
    "another version": (
        'AUTOCOMPRESS_API = "2.0"\nraise RuntimeError("must not even be run")',
        "was written for plugin API 2.0; this is autocompress 0.1.0 with plugin API 1.0: "
        "install an earlier stranger or a later autocompress",
    ),
    "field that Hydra cannot take": (
        GOOD.replace("\n\n    def score", "\n    mode: Mode = 'fast'\n\n    def score").replace(
            "@dataclass", MODE + "@dataclass"
        ),
        "pruner.keep_all: Unexpected type annotation",
    ),
    "instance": (
        KEEP_ALL + "@hookimpl\ndef autocompress_pruners():\n    return [KeepAll()]",
        "hook autocompress_pruners returned KeepAll(); expected a subclass of Pruner",
    ),
    "other kind": (
        KEEP_ALL + "@hookimpl\ndef autocompress_quantizers():\n    return [KeepAll]",
        "expected a subclass of Quantizer",
    ),
    "not a class": (
        "@hookimpl\ndef autocompress_pruners():\n    return ['keep_all']",
        "returned 'keep_all'; expected a subclass of Pruner",
    ),
    "not a dataclass": (
        KEEP_ALL.replace("@dataclass", "") + "@hookimpl\ndef autocompress_pruners():\n    return [KeepAll]",
        "pruner class KeepAll must be a dataclass with a class attribute `name: str`",
    ),
    "without a name": (
        KEEP_ALL.replace('name = "keep_all"', "") + "@hookimpl\ndef autocompress_pruners():\n    return [KeepAll]",
        "pruner class KeepAll must be a dataclass with a class attribute `name: str`",
    ),
    "abstract": (
        KEEP_ALL.replace("def score", "def scores") + "@hookimpl\ndef autocompress_pruners():\n    return [KeepAll]",
        "pruner class KeepAll does not implement score; rename its 'scores'",
    ),
    "twice the same name": (
        KEEP_ALL + "@hookimpl\ndef autocompress_pruners():\n    return [KeepAll, KeepAll]",
        "pruner 'keep_all' is registered twice",
    ),
}


@pytest.mark.parametrize(("source", "reason"), BROKEN.values(), ids=BROKEN)
def test_broken_plugin_is_reported_and_skipped(install: Install, source: str, reason: str) -> None:
    install("stranger", broken=source)
    install("zebra", other=GOOD.replace("keep_all", "keep_more"))
    registry = load_registry()
    found = problems(registry)
    assert list(found) == [("broken", "stranger")]
    assert reason in found["broken", "stranger"]
    assert registry.component("pruner", "keep_more").name == "keep_more"
    assert registry.components.keys() - {("pruner", "keep_more")} == bundled().components.keys()
    assert not registry.manager.has_plugin("broken")
    assert "stranger" not in registry.versions()


def test_second_plugin_of_a_name_is_reported(install: Install) -> None:
    install("beta", same=GOOD.replace("keep_all", "of_beta"))
    install("alpha", same=GOOD.replace("keep_all", "of_alpha"))
    registry = load_registry()
    assert problems(registry) == {("same", "beta"): "another distribution registers a plugin of this name"}
    assert registry.component("pruner", "of_alpha")
    assert ("pruner", "of_beta") not in registry.components


def test_plugin_may_not_take_the_place_of_a_bundled_one(install: Install) -> None:
    install("aardvark", affine=GOOD)
    registry = load_registry()
    assert list(problems(registry)) == [("affine", "aardvark")]
    assert registry.component("quantizer", "int8") is bundled().component("quantizer", "int8")


def test_component_may_not_take_the_name_of_a_bundled_one(install: Install) -> None:
    install("aardvark", mine=GOOD.replace('"keep_all"', '"sparse"'))
    registry = load_registry()
    assert problems(registry) == {("mine", "aardvark"): "pruner 'sparse' is already registered by autocompress"}
    assert registry.component("pruner", "sparse") is bundled().component("pruner", "sparse")


def test_of_a_plugin_that_clashes_nothing_is_used(install: Install) -> None:
    both = GOOD + KEEP_ALL.replace("keep_all", "sparse").replace("KeepAll", "Clash")
    install("aardvark", mine=both.replace("return [KeepAll]", "return [KeepAll, Clash]"))
    registry = load_registry()
    assert list(problems(registry)) == [("mine", "aardvark")]
    assert ("pruner", "keep_all") not in registry.components


def test_one_name_may_stand_for_components_of_two_kinds(install: Install) -> None:
    install("stranger", mine=GOOD.replace('"keep_all"', '"int8"'))
    registry = load_registry()
    assert problems(registry) == {}
    assert registry.component("pruner", "int8") is not registry.component("quantizer", "int8")


def test_plugins_can_be_switched_off_by_name(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("stranger", mine="raise RuntimeError('must not even be imported')", other=GOOD)
    monkeypatch.setenv("AUTOCOMPRESS_DISABLED_PLUGINS", "mine, mlflow_tracker")
    registry = load_registry()
    reason = "disabled by AUTOCOMPRESS_DISABLED_PLUGINS"
    assert problems(registry) == {("mine", "stranger"): reason, ("mlflow_tracker", "autocompress"): reason}
    assert registry.names("tracking") == []
    assert "keep_all" in registry.names("pruner")


def test_each_registry_stands_alone(install: Install) -> None:
    before = bundled()
    install("stranger", mine=GOOD)
    assert "keep_all" in load_registry().names("pruner")
    assert "keep_all" not in before.names("pruner")


@pytest.mark.parametrize(("name", "guess"), [("importence", "importance"), ("sparze", "sparse"), ("zzz", None)])
def test_unknown_component_is_told_with_the_names_that_exist(name: str, guess: str | None) -> None:
    with pytest.raises(UnknownComponentError) as caught:
        bundled().component("pruner", name)
    suggestion = f" Did you mean '{guess}'?" if guess else ""
    assert str(caught.value) == f"pruner '{name}' is not registered; available: importance, sparse, stability.{suggestion}"


def test_unknown_component_of_a_kind_that_has_none() -> None:
    with pytest.raises(UnknownComponentError, match="pruner 'sparse' is not registered; available: none"):
        load_registry([]).component("pruner", "sparse")


WORDS = {
    "__init__.py": {"grid"},
    "candidate.py": {"int4", "sparse"},
    "capability_probe.py": {"int8"},
    "device.py": {"percentile"},
    "options.py": {"global"},
    "space_settings.py": {"global"},
    "studies.py": {"int8"},
    "trackers.py": {"squared_error"},
    "timing.py": {"percentile"},
    "workspace.py": {"percentile"},
}
"""Words that mean something else there: a module, how a weight is stored, the scope of a share, made-up records, times."""

FIGURE = "accuracy"
"""An objective, a gate and a measured figure, besides a metric."""


def test_the_core_names_no_bundled_component() -> None:
    names = {name for _, name in bundled().components} - {FIGURE}
    core = Path(autocompress.__file__).parent
    found = {
        f"{path.name}:{node.lineno} {node.value}"
        for path in core.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in names - WORDS.get(path.name, set())
    }
    assert found == set()


def test_every_kind_has_its_own_base() -> None:
    assert all(issubclass(base, Component) for base in KINDS.values())
    assert len(set(KINDS.values())) == len(KINDS)


def test_what_could_not_be_loaded_is_told_where_it_is_missed(install: Install) -> None:
    install("stranger", broken="import no_such_module_anywhere")
    with pytest.raises(UnknownComponentError) as caught:
        load_registry().component("pruner", "keep_all")
    assert "Not in use: broken of stranger 1.2: ModuleNotFoundError: No module named 'no_such_module_anywhere'." in str(
        caught.value
    )
