"""`autocompress plugins --check`: runs the contract of a component's kind on an installed component."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from autocompress.components import Component
from autocompress.errors import ConfigError
from autocompress.registry import KINDS, Registered

HEADER = """
import pytest

from autocompress import testing
from autocompress.commands.plugin_check import configured
from autocompress.registry import load_registry

REGISTRY = load_registry()
"""

TEST = """

class Test{number}(testing.{base}Contract):
    @pytest.fixture
    def {fixture}(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        return configured(REGISTRY.component({kind!r}, {name!r}), {settings!r})
"""

REASON_LINES = 4
"""Lines of the first failure that are shown."""


def check(components: Sequence[Registered], settings: Sequence[str]) -> bool:
    """Print which promises the components keep; returns whether they keep all.

    Args:
        settings: `name=value` for fields whose defaults shall not be used.

    Raises:
        ConfigError: pytest is missing, or a component cannot be made with these settings.
    """
    if importlib.util.find_spec("pytest") is None:
        raise ConfigError("autocompress plugins --check needs pytest, which is not installed: pip install pytest")
    for registered in components:
        _make(registered, settings)
    verdicts = _verdicts(components, settings)
    sys.stdout.write("\n\n".join(map(str, verdicts)) + "\n")
    return all(verdict.kept for verdict in verdicts)


def _make(registered: Registered, settings: Sequence[str]) -> None:
    try:
        configured(registered.component, settings)
    except Exception as error:  # whatever a stranger's component raises
        reason = str(error).partition("\n")[0] or type(error).__name__
        remedy = f"other settings: autocompress plugins --check {registered.name} SETTING=VALUE"
        raise ConfigError(f"{registered.kind} {registered.name} cannot be made: {reason} ({remedy})") from error


def configured(component: type[Component], settings: Sequence[str]) -> Any:
    """A component as Hydra makes it, with some of its fields set by `name=value`."""
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(component), OmegaConf.from_dotlist(list(settings))))


def _verdicts(components: Sequence[Registered], settings: Sequence[str]) -> list[Verdict]:
    import pytest

    verdicts = [Verdict(registered) for registered in components]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        test, ini = folder / f"test_{folder.name}.py", folder / "pytest.ini"  # a module's name stays taken in its process
        test.write_text(HEADER + "".join(_test(*numbered, settings) for numbered in enumerate(components)), encoding="utf-8")
        ini.write_text("[pytest]\n", encoding="utf-8")  # so that no configuration of the folder that we are in counts
        flags = ("-c", str(ini), "--rootdir", name, "--import-mode=importlib", "-p", "no:terminal", "-p", "no:cacheprovider")
        pytest.main([str(test), *flags], plugins=[_Listener(verdicts)])
    return verdicts


def _test(number: int, registered: Registered, settings: Sequence[str]) -> str:
    base = KINDS[registered.kind].__name__
    names = {"base": base, "fixture": base.lower(), "kind": registered.kind, "name": registered.name}
    return TEST.format(number=number, settings=list(settings), **names)


@dataclass
class Promise:
    """One test of a contract: what it says, and how it ended for each of its cases."""

    text: str
    cases: int = 0
    broken: list[str] = field(default_factory=list)
    skipped: int = 0
    reason: str = ""

    def __str__(self) -> str:
        if not self.broken:
            return f"  {'skipped' if self.skipped == self.cases else 'kept':<8}{self.text}"
        count = [f"in {len(self.broken)} of {self.cases} cases ({', '.join(self.broken)}), in the first:"] * (self.cases > 1)
        return "\n          ".join([f"  BROKEN  {self.text}", *count, *self.reason.splitlines()])


@dataclass
class Verdict:
    """The promises of one component, by the name of their test."""

    registered: Registered
    promises: dict[str, Promise] = field(default_factory=dict)

    @property
    def kept(self) -> bool:
        """Whether there were promises, and none is broken."""
        return bool(self.promises) and not any(promise.broken for promise in self.promises.values())

    def __str__(self) -> str:
        kept = sum(not promise.broken for promise in self.promises.values())
        head = f"{self.registered.kind} {self.registered.name}, from plugin {self.registered.plugin}"
        return "\n".join([head, *map(str, self.promises.values()), f"{kept} of {len(self.promises)} promises are kept."])


@dataclass
class _Listener:
    """A pytest plugin that writes down how each test ends."""

    verdicts: Sequence[Verdict]

    def pytest_collection_modifyitems(self, items: Sequence[Any]) -> None:
        """Note the promises, in their order."""
        for item in items:
            text = item.originalname.removeprefix("test_").replace("_", " ")
            sentence = (inspect.getdoc(item.function) or "").partition("\n")[0]
            promises = self.verdicts[int(item.cls.__name__.removeprefix("Test"))].promises
            promises.setdefault(item.originalname, Promise(f"{text}: {sentence}" if sentence else text)).cases += 1

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Note how one case ended: a fixture that fails breaks its promise too."""
        test, _, rest = report.location[2].partition(".")
        name, _, case = rest.partition("[")
        promise = self.verdicts[int(test.removeprefix("Test"))].promises[name]
        promise.skipped += report.outcome == "skipped"
        if report.outcome == "failed":
            promise.reason = promise.reason or _reason(report.longreprtext)
            promise.broken.append(case.removesuffix("]"))


def _reason(text: str) -> str:
    """The lines of a failure that say what was wrong: pytest marks them with an E."""
    marked = [line[1:].strip() for line in text.splitlines() if line.startswith("E ")]
    return "\n".join((marked or text.splitlines())[:REASON_LINES])
