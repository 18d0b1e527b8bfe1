"""Every hook is documented, and reaches a plugin that implements it."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar

import pluggy
import pytest

from autocompress import (
    Capabilities,
    Metric,
    Observer,
    Problem,
    Pruner,
    QuantizedTensor,
    Quantizer,
    Recovery,
    Sampler,
    SearchResult,
    StudyContext,
    Target,
    Tracker,
    TrialRecord,
    hookimpl,
    hookspecs,
    testing,
)
from autocompress.registry import KINDS, load_registry
from autocompress.reporting.notify import Notifier

HOOKS = sorted(name for name in vars(hookspecs) if name.startswith("autocompress_"))
PAGE = Path(__file__).parents[1] / "docs" / "plugins.md"
EVENTS = [name for name in HOOKS if name.endswith(("_started", "_finished"))]


@dataclass
class AnyQuantizer(Quantizer):
    name = "any"

    def bit_widths(self, layer: Any) -> list[int]:
        return [8]

    def quantize(self, weight: Any, bits: int, stats: Any, mask: Any = None) -> QuantizedTensor:
        raise NotImplementedError


@dataclass
class AnyPruner(Pruner):
    name = "any"

    def score(self, weight: Any, stats: Any) -> Any:
        raise NotImplementedError


@dataclass
class AnyRecovery(Recovery):
    name = "any"


@dataclass
class AnyObserver(Observer):
    name = "any"

    def update(self, batch: Any) -> None:
        raise NotImplementedError

    def range(self, bits: int) -> tuple[float, float]:
        raise NotImplementedError


@dataclass
class AnyMetric(Metric):
    name = "any"

    def statistics(self, outputs: Any, expected: Any) -> Any:
        raise NotImplementedError


@dataclass
class AnyTarget(Target):
    name = "any"
    threads: int = 1

    def capabilities(self) -> Capabilities:
        raise NotImplementedError

    @property
    def session_file(self) -> Any:
        raise NotImplementedError


@dataclass
class AnySampler(Sampler):
    name = "any"

    def create(self, problem: Problem, seed: int) -> Any:
        raise NotImplementedError


@dataclass
class Listener(Tracker):
    """A dataclass with a mutable field: neither hashable nor unique by value."""

    name: ClassVar[str] = "listener"
    heard: list[Any] = field(default_factory=list)

    @hookimpl
    def autocompress_search_started(self, study: StudyContext, records: Sequence[TrialRecord]) -> None:
        self.heard.append(("started", study, records))

    @hookimpl
    def autocompress_trial_finished(self, study: StudyContext, record: TrialRecord) -> None:
        self.heard.append(("trial", study, record))

    @hookimpl
    def autocompress_search_finished(self, study: StudyContext, result: SearchResult) -> None:
        self.heard.append(("finished", study, result))


class Everything:
    """A plugin that implements each hook that brings components."""

    @hookimpl
    def autocompress_quantizers(self) -> list[type[Quantizer]]:
        return [AnyQuantizer]

    @hookimpl
    def autocompress_pruners(self) -> list[type[Pruner]]:
        return [AnyPruner]

    @hookimpl
    def autocompress_recoveries(self) -> list[type[Recovery]]:
        return [AnyRecovery]

    @hookimpl
    def autocompress_observers(self) -> list[type[Observer]]:
        return [AnyObserver]

    @hookimpl
    def autocompress_metrics(self) -> list[type[Metric]]:
        return [AnyMetric]

    @hookimpl
    def autocompress_targets(self) -> list[type[Target]]:
        return [AnyTarget]

    @hookimpl
    def autocompress_samplers(self) -> list[type[Sampler]]:
        return [AnySampler]

    @hookimpl
    def autocompress_trackers(self) -> list[type[Tracker]]:
        return [Listener]


everything = Everything()


@pytest.mark.parametrize("name", HOOKS)
def test_hook_is_documented(name: str) -> None:
    hook = getattr(hookspecs, name)
    assert hook.autocompress_spec is not None, "not marked @hookspec"
    assert f"| `{name}({', '.join(inspect.signature(hook).parameters)})` |" in PAGE.read_text(), "docs/plugins.md lacks it"
    text = inspect.getdoc(hook)
    assert text is not None and text.startswith("Called "), "its docstring shall say first when it is called"
    if name not in EVENTS:
        assert "returns" in text
    described = text.partition("Args:")[2]
    if described:
        assert all(f"{parameter}:" in described for parameter in inspect.signature(hook).parameters)


@pytest.mark.parametrize("name", HOOKS)
def test_hook_is_exercised_below(name: str) -> None:
    assert hasattr(Listener if name in EVENTS else Everything, name)


@pytest.mark.parametrize("base", [base.__name__ for base in KINDS.values()])
def test_every_kind_has_a_contract_and_its_section(base: str) -> None:
    assert hasattr(testing, f"{base}Contract")
    assert f"\n## {base}\n" in PAGE.read_text()


def test_every_kind_of_component_has_its_hook() -> None:
    assert len(HOOKS) == len(KINDS) + len(EVENTS) == 11


def test_every_hook_that_brings_components_is_asked() -> None:
    registry = load_registry([EntryPoint("everything", f"{__name__}:everything", "autocompress")])
    assert [plugin.problem for plugin in registry.plugins] == [None]
    found = {kind: registered.component for (kind, _), registered in registry.components.items()}
    assert found == {
        "quantizer": AnyQuantizer,
        "pruner": AnyPruner,
        "recover": AnyRecovery,
        "observer": AnyObserver,
        "metric": AnyMetric,
        "target": AnyTarget,
        "sampler": AnySampler,
        "tracking": Listener,
    }


def test_every_event_reaches_a_tracker_with_its_arguments() -> None:
    registry = load_registry([])
    study, records, record, result = object(), object(), object(), object()
    listener = Listener()
    with Notifier(registry.manager, (listener,)) as notify:
        notify("autocompress_search_started", study=study, records=records)
        notify("autocompress_trial_finished", study=study, record=record)
        notify("autocompress_search_finished", study=study, result=result)
    assert listener.heard == [("started", study, records), ("trial", study, record), ("finished", study, result)]


@pytest.mark.parametrize("name", EVENTS)
def test_event_is_called_with_what_it_declares(name: str) -> None:
    """An argument that the specification lacks could never reach an implementation."""
    declared = set(inspect.signature(getattr(hookspecs, name)).parameters)
    assert set(inspect.signature(getattr(Listener, name)).parameters) - {"self"} == declared


def test_misdeclared_argument_is_refused_when_the_tracker_is_registered() -> None:
    class Wrong(Listener):
        @hookimpl
        def autocompress_trial_finished(self, trial: TrialRecord) -> None:  # type: ignore[override]
            raise AssertionError("never called")

    with pytest.raises(pluggy.PluginValidationError, match="trial"), Notifier(load_registry([]).manager, (Wrong(),)):
        pass
