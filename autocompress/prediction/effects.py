"""What each option does alone, measured on its file: the tables that a search starts from. Kept on disk, line by line."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from autocompress.bounds import check_positive
from autocompress.choices.space import OBSERVERS, SearchSpace
from autocompress.display.progress import Progress
from autocompress.errors import AutocompressError, UnreachableError
from autocompress.guarding.time_limit import TimeUpError, within
from autocompress.plain import from_plain
from autocompress.policy import Policy
from autocompress.prediction.attempts import attempt
from autocompress.problem import Effect
from autocompress.tensors.observers import in_effect
from autocompress.trials.trial import Bench


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
        check_positive("sensitivity", self, "images", "seconds")


class Journal:
    """Values by key in a file that is only ever appended to, by any number of processes; a killed one loses at most a line."""

    def __init__(self, path: Path, identity: Sequence[str]) -> None:
        self._path, self._identity = path, "|".join(identity)
        self._known: dict[str, dict[str, float]] = {}
        self._read = 0
        self.refresh()

    def refresh(self) -> None:
        """Read what other processes have written since."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._read)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._read += len(whole) + len(newline)
        for line in whole.splitlines():
            with contextlib.suppress(ValueError, RecursionError):  # a line that a killed run did not finish
                entry = from_plain(Mapping[str, Any], json.loads(line))
                key, values = entry.get("key"), {name: value for name, value in entry.items() if name != "key"}
                self._known[from_plain(str, key)] = from_plain(Mapping[str, float], values)

    def get(self, what: str, policy: Policy) -> dict[str, float] | None:
        """What is known of a policy under this identity."""
        return self._known.get(self._key(what, policy))

    def put(self, what: str, policy: Policy, values: Mapping[str, float]) -> None:
        """Keep figures of a policy; `what` says which."""
        key = self._key(what, policy)
        self._known[key] = dict(values)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # until it is closed
            file.write(_line_break(file) + json.dumps({"key": key, **values}).encode() + b"\n")

    def _key(self, what: str, policy: Policy) -> str:
        return hashlib.sha256(f"{self._identity}|{what}|{policy.digest}".encode()).hexdigest()[:24]


def _line_break(file: BinaryIO) -> bytes:
    """Ends the line that a killed run did not finish."""
    if not file.seek(0, os.SEEK_END):
        return b""
    file.seek(-1, os.SEEK_END)
    return b"" if file.read(1) == b"\n" else b"\n"


def measure_missing(
    journal: Journal,
    what: str,
    policies: Sequence[Policy],
    measure: Callable[[Sequence[Policy]], object],
    label: str,
    progress: Progress,
    together: int = 1,
) -> None:
    """Measure the policies that the journal does not hold, so many together; those that leave nothing there are tried once.

    In an order that differs from process to process: those that share the file share the work.
    """
    left = _missing(journal, what, random.sample(policies, len(policies)))
    count, start = len(left), time.monotonic()
    while left:
        progress.step(label, count - len(left), count, time.monotonic() - start)
        measure(left[:together])
        left = _missing(journal, what, left[together:])


def _missing(journal: Journal, what: str, policies: Sequence[Policy]) -> list[Policy]:
    journal.refresh()
    return [policy for policy in policies if journal.get(what, policy) is None]


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

    def measure(batch: Sequence[Policy]) -> None:
        for policy in batch:
            with attempt(journal, policy) as is_worth_it:
                journal.put(what, policy, asdict(_measured(bench, policy, settings.images) if is_worth_it else _useless(bench)))

    measure_missing(journal, what, list(distinct.values()), measure, "sensitivity", progress)
    return {name: [_known(journal, what, policy) for policy in options] for name, options in policies.items()}


def _known(journal: Journal, what: str, policy: Policy) -> Effect:
    values = journal.get(what, policy)
    assert values is not None
    return Effect(values["divergence"], values["drop"], int(values["size_bytes"]))


def _measured(bench: Bench, policy: Policy, images: int) -> Effect:
    """The effect of a policy; one whose file does not run, or not in the time that a trial has, is infinitely bad."""
    try:
        return within(bench.trial_timeout, lambda: _run(bench, policy, images))
    except TimeUpError:
        return _useless(bench)


def _useless(bench: Bench) -> Effect:
    return Effect(math.inf, math.inf, len(bench.graph.data))


def _run(bench: Bench, policy: Policy, images: int) -> Effect:
    path = bench.evaluator.folder / "effect.onnx"
    try:
        size = bench.build(policy, path).artifact.size_bytes
        evaluator, count = bench.evaluator, min(images, len(bench.evaluator.targets["calibration"]))
        outputs = evaluator.outputs(path, "calibration", 0, count)
    except UnreachableError:
        raise
    except AutocompressError:
        bench.check_files()
        return _useless(bench)
    finally:
        path.unlink(missing_ok=True)
    divergence = float(evaluator.divergence(outputs, "calibration", 0, count).mean())
    if not math.isfinite(divergence):
        return Effect(math.inf, math.inf, size)
    reference = evaluator.reference_statistics("calibration")[:count]
    drop = evaluator.metric.value(reference) - evaluator.metric.value(evaluator.score(outputs, "calibration", 0, count))
    return Effect(divergence, drop, size)
