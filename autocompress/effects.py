"""What each option does alone, measured on its file: the tables that a search starts from. Kept on disk, line by line."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from autocompress.errors import AutocompressError, ConfigError, UnreachableError
from autocompress.observers import in_effect
from autocompress.policy import Policy
from autocompress.problem import Effect
from autocompress.progress import Progress
from autocompress.space import OBSERVERS, SearchSpace
from autocompress.trial import Bench


@dataclass
class SensitivitySettings:
    """How the tables are measured.

    Attributes:
        images: calibration examples on which each option is run.
        seconds: at most so long the file of a single option is timed; equal shapes are timed once.
    """

    images: int = 64
    seconds: float = 0.5

    def __post_init__(self) -> None:
        for name in ("images", "seconds"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"sensitivity.{name}={getattr(self, name)}: expected more than 0")


class Journal:
    """Values by key in a file that is only ever appended to: a killed run loses at most the line it was writing."""

    def __init__(self, path: Path, identity: Sequence[str]) -> None:
        self._path, self._identity = path, "|".join(identity)
        self._known: dict[str, dict[str, float]] = {}
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        self._torn = bool(text) and not text.endswith("\n")
        for line in text.splitlines():
            with contextlib.suppress(json.JSONDecodeError):  # a line that a killed run did not finish
                entry = json.loads(line)
                self._known[entry.pop("key")] = entry

    def get(self, what: str, policy: Policy) -> dict[str, float] | None:
        """What is known of a policy under this identity."""
        return self._known.get(self._key(what, policy))

    def put(self, what: str, policy: Policy, values: Mapping[str, float]) -> None:
        """Keep figures of a policy; `what` says which."""
        key = self._key(what, policy)
        self._known[key] = dict(values)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write("\n" * self._torn + json.dumps({"key": key, **values}) + "\n")
        self._torn = False

    def _key(self, what: str, policy: Policy) -> str:
        return hashlib.sha256(f"{self._identity}|{what}|{policy.digest}".encode()).hexdigest()[:24]


def measure_effects(
    bench: Bench, space: SearchSpace, settings: SensitivitySettings, journal: Journal, progress: Progress
) -> dict[str, list[Effect]]:
    """Parameter to the effect of each option; only what the journal does not hold is measured.

    Where observers are searched, they come first, and everything else is measured with the best of them.
    """
    if "calibration" not in bench.evaluator.reference:
        bench.evaluator.keep_reference(bench.graph, "calibration")
    alone = {name: [space.alone(name, index) for index in range(count)] for name, count in space.sizes.items()}
    ranges = {name: alone.pop(name) for name in space.sizes if name.startswith(OBSERVERS)}
    watched = _tables(bench, ranges, settings, journal, progress)
    best = space.policy({name: _mildest(options) for name, options in watched.items()}).observers
    capabilities = bench.components.target.capabilities()
    policies = {
        name: [in_effect(bench.graph, replace(policy, observers=best), capabilities) for policy in options]
        for name, options in alone.items()
    }
    found = _tables(bench, policies, settings, journal, progress)
    largest = max((effect.size_bytes for options in found.values() for effect in options), default=len(bench.graph.data))
    return found | {name: _excess(options, largest) for name, options in watched.items()}


def _mildest(options: Sequence[Effect]) -> int:
    return min(range(len(options)), key=lambda index: options[index].divergence)


def _excess(options: Sequence[Effect], size_bytes: int) -> list[Effect]:
    """What each observer does beyond the best one; a range costs no bytes."""
    best = options[_mildest(options)]
    losses = [0.0 if option.divergence == best.divergence else option.divergence - best.divergence for option in options]
    return [Effect(loss, option.drop - best.drop, size_bytes) for loss, option in zip(losses, options, strict=True)]


def _tables(
    bench: Bench,
    policies: Mapping[str, Sequence[Policy]],
    settings: SensitivitySettings,
    journal: Journal,
    progress: Progress,
) -> dict[str, list[Effect]]:
    what = f"effect on {settings.images}"
    distinct = {policy.digest: policy for options in policies.values() for policy in options}
    missing = [policy for policy in distinct.values() if journal.get(what, policy) is None]
    start = time.monotonic()
    for done, policy in enumerate(missing):
        progress.step("sensitivity", done, len(missing), time.monotonic() - start)
        journal.put(what, policy, asdict(_measured(bench, policy, settings.images)))
    return {name: [_known(journal, what, policy) for policy in options] for name, options in policies.items()}


def _known(journal: Journal, what: str, policy: Policy) -> Effect:
    values = journal.get(what, policy)
    assert values is not None
    return Effect(values["divergence"], values["drop"], int(values["size_bytes"]))


def _measured(bench: Bench, policy: Policy, images: int) -> Effect:
    """The effect of a policy; one whose file does not run is infinitely bad."""
    path = bench.evaluator.folder / "effect.onnx"
    try:
        size = bench.build(policy, path).artifact.size_bytes
        evaluator, count = bench.evaluator, min(images, len(bench.evaluator.targets["calibration"]))
        outputs = evaluator.outputs(path, "calibration", 0, count)
    except UnreachableError:
        raise
    except AutocompressError:
        return Effect(math.inf, math.inf, len(bench.graph.data))
    finally:
        path.unlink(missing_ok=True)
    divergence = float(evaluator.divergence(outputs, "calibration", 0, count).mean())
    if not math.isfinite(divergence):
        return Effect(math.inf, math.inf, size)
    reference = evaluator.reference_statistics("calibration")[:count]
    drop = evaluator.metric.value(reference) - evaluator.metric.value(evaluator.score(outputs, "calibration", 0, count))
    return Effect(divergence, drop, size)
