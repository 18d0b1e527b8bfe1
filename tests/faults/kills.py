"""Kills searches at random moments: `python -m tests.faults.kills --searches 20 --kills 200`.

Each search is started again after each kill, in the same folder, and in the end runs undisturbed. What had finished before a
kill must be there afterwards as it was; in the end every finished trial is once in Optuna and once in MLflow.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import optuna
import yaml
from optuna.trial import TrialState
from safetensors import safe_open

from autocompress.measuring.lease import lease_path
from autocompress.studies.storage import StudySettings, opened_storage
from tests.faults.nursery import SMALL, Nursery, Started, nursery

WEIGHTS = {"SIGKILL": 6, "SIGTERM": 2, "SIGINT": 2, "runner": 2}
"""What a search is broken by, and how often; `runner`: SIGKILL of the process that measures alone."""

SIGNS = tuple(WEIGHTS)

MOMENTS = {
    "start": "",
    "export": r"^model: ",
    "calibration": r"^channel groups: ",
    "trials": r"^latencies that differ",
    "logging": r"^\[\d+/\d+\]",
    "tables": r"^\[\d+/\d+\]|^sensitivity: \d+/",
    "finalists": r"^latencies that differ",
    "delivery": r"^finalists: ",
    "end": r"^report set: ",
}
"""What the log shows when a moment has come; a kill is at a random time after it."""

SHARES = {
    "export": 6.0,
    "calibration": 0.05,
    "trials": 0.4,
    "logging": 0.1,
    "tables": 0.1,
    "finalists": 0.3,
    "delivery": 0.1,
    "end": 0.8,
}
"""At most so long after the moment, as a share of the time until then; a second after the start."""

PLACES = {
    "mlflow_tracker/": "logging",
    "reporting/notify.py": "logging",
    "reporting/": "delivery",
    "studies/": "study",
    "searching/finalists.py": "finalists",
    "searching/conclusion.py": "delivery",
    "prediction/": "tables",
    'trials/trial.py", line \\d+ in (baseline|self_check)': "baseline",
    "trials/": "trial",
    "building/preparation.py": "export",
    "measuring/device.py": "measuring",
    "workspace.py": "preparation",
    "searching/loop.py": "between trials",
    "run.py": "between stages",
}
"""What of the stack tells the stage, the most telling first."""

TRACEBACK = "Traceback (most recent call last)"
EXITS = {"SIGKILL": {-signal.SIGKILL, 0}, "SIGTERM": {130, 0}, "SIGINT": {130, 0}, "runner": {0}}


@dataclass
class Tally:
    """What happened to searches."""

    kills: Counter[str] = field(default_factory=Counter)
    stages: Counter[str] = field(default_factory=Counter)
    trials: int = 0
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    impolite: list[str] = field(default_factory=list)

    @property
    def faults(self) -> list[str]:
        """Everything that must not happen."""
        return [*self.lost, *self.doubled, *self.orphans, *self.broken, *self.impolite]

    def __add__(self, other: Tally) -> Tally:
        return Tally(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        kinds = ("lost", "doubled", "orphans", "broken", "impolite")
        counted = {
            "kills": sum(self.kills.values()),
            "by_signal": dict(self.kills),
            "by_stage": dict((+self.stages).most_common()),
        }
        return {**counted, "finished_trials": self.trials, **{kind: len(getattr(self, kind)) for kind in kinds}}


def finished(folder: Path) -> dict[int, str]:
    """Number to record of the trials that are stored as finished."""
    if not (folder / "out/study.db").exists():
        return {}
    try:
        with closing(sqlite3.connect(folder / "out/study.db")) as database:
            rows = database.execute(
                "select number, value_json from trials join trial_user_attributes using (trial_id) "
                "where key = 'record' and state in ('COMPLETE', 'PRUNED', 'FAIL') and trial_id not in "
                "(select trial_id from trial_user_attributes where key = 'interrupted')"
            )
            return dict(rows.fetchall())
    except sqlite3.OperationalError:  # no tables yet
        return {}


def stage(stack: str) -> str:
    """Where a search is, by its stack."""
    return next((name for place, name in PLACES.items() if re.search(place, stack)), "before the stages")


@dataclass
class Victim:
    """A search that is killed again and again."""

    folder: Path
    arguments: Sequence[str]
    random: random.Random
    tally: Tally = field(default_factory=Tally)

    def attack(self, home: Nursery, sign: str, moment: str) -> None:
        """Start the search, and break it at a random time after a moment; one that ends before is started again."""
        while not self._broken(home, sign, moment):
            moment = "trials"

    def _broken(self, home: Nursery, sign: str, moment: str) -> bool:
        before = finished(self.folder)
        further = 0 if before and moment in ("finalists", "delivery", "end") else self.random.randint(1, 3)
        search = home.start(self.folder, *self.arguments, f"search.trials={len(before) + further}")
        _wait_for(home, search, MOMENTS[moment])
        longest = SHARES[moment] * (time.monotonic() - search.begun) if moment in SHARES else 1.0
        home.poll(search, self.random.uniform(0, longest))
        where = self._strike(home, search, sign)
        status = home.wait(search, 600)
        self.tally.kills[sign] += bool(where)
        self.tally.stages[where] += bool(where)
        seconds = time.monotonic() - search.begun
        sys.stderr.write(f"{self.folder.name}: {sign} after {moment}, at {where or 'no time'}: {status}, {seconds:.1f} s\n")
        self._judge(search, sign, status, before)
        return bool(where)

    def _strike(self, home: Nursery, search: Started, sign: str) -> str:
        """Where it was struck; empty: it had ended."""
        victims = [search.pid]
        while sign == "runner" and home.poll(search) is None:
            if victims := [process.pid for process in search.processes() if process.pid != search.pid]:
                break
        found = stage(search.stack())
        if search.status is not None:
            return ""
        with suppress(ProcessLookupError):
            os.kill(self.random.choice(victims), signal.SIGKILL if sign == "runner" else getattr(signal, sign))
        return found

    def _judge(self, search: Started, sign: str, status: int, before: dict[int, str]) -> None:
        where = f"{self.folder.name} after {sign}"
        after = finished(self.folder)
        self.tally.lost += [f"{where}: trial {number}" for number, record in before.items() if after.get(number) != record]
        self.tally.orphans += [f"{where}: {command}" for command in search.orphans()]
        self.tally.orphans += [] if lease_is_free() else [f"{where}: the lease of the device is held"]
        self.tally.broken += [f"{where}: {problem}" for problem in broken_files(self.folder / "out")]
        allowed = EXITS[sign] | ({1} if sign == "runner" else set())
        if status not in allowed or TRACEBACK in search.log:
            self.tally.impolite.append(f"{where}: status {status}: {search.log[-6000:]}")

    def finish(self, home: Nursery) -> None:
        """Run it to its end, and look whether everything is there once."""
        before = finished(self.folder)
        search = home.run(self.folder, *self.arguments, f"search.trials={len(before) + 2}", seconds=600)
        self._judge(search, "runner", home.wait(search), before)
        if search.status != 0:
            self.tally.lost.append(f"{self.folder.name}: the search does not resume: {search.log[-3000:]}")
            return
        self.tally.trials = len(finished(self.folder))
        left = [path for name in ("*.partial*", "cache", "finalists") for path in self.folder.rglob(name)]
        self.tally.broken += [f"{self.folder.name}: {path} was left" for path in left]
        lost, doubled = accounts(self.folder)
        counts = json.loads((self.folder / "out/result.json").read_text())["trials"]
        lost += [f"result.json counts {counts}"] if sum(counts.values()) != self.tally.trials else []
        self.tally.lost += [f"{self.folder.name}: {what}" for what in lost]
        self.tally.doubled += [f"{self.folder.name}: {what}" for what in doubled]


def _wait_for(home: Nursery, search: Started, pattern: str, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not re.search(pattern, search.log, re.MULTILINE) and home.poll(search, 0.02) is None and time.monotonic() < end:
        pass


def accounts(folder: Path) -> tuple[list[str], list[str]]:
    """What Optuna or MLflow lack of the finished trials, and what they have twice."""
    from mlflow import MlflowClient

    with opened_storage(StudySettings(), folder / "out") as storage:
        trials = optuna.load_study(study_name=None, storage=storage.rdb).trials
    running = [f"trial {trial.number} is {trial.state.name}" for trial in trials if trial.state == TrialState.RUNNING]
    ended = finished(folder)
    records = [json.loads(record) for record in ended.values()]
    measured = Counter(json.dumps(record["policy"], sort_keys=True) for record in records if record["kind"] != "repeated")
    client = MlflowClient(f"sqlite:///{folder}/mlflow/mlflow.db")
    runs = client.search_runs([each.experiment_id for each in client.search_experiments()], max_results=10000)
    logged = Counter(run.data.tags.get("autocompress.trial", "study") for run in runs)
    wanted = {"study", "baseline", "final", *map(str, ended)}
    lost = [f"{name} is not in MLflow" for name in wanted - set(logged)]
    lost += [f"{run.info.run_name} is {run.info.status} in MLflow" for run in runs if run.info.status == "RUNNING"]
    lost += [f"{name} in MLflow is no trial" for name in set(logged) - wanted]
    doubled = [f"{name} is {count} times in MLflow" for name, count in logged.items() if count > 1]
    doubled += [f"a policy was measured {count} times" for count in measured.values() if count > 1]
    return [*lost, *running], doubled


def lease_is_free(seconds: float = 30.0) -> bool:
    """Whether somebody can measure on this device; other tests may do so for a while."""
    end = time.monotonic() + seconds
    with lease_path().open("a") as file:
        while time.monotonic() < end:
            with suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            time.sleep(0.05)
    return False


def broken_files(folder: Path) -> list[str]:
    """Files that are there but not whole; those that Hydra writes are its own, and `.partial` says so itself."""
    return [
        f"{path.relative_to(folder)}: {type(error).__name__}: {error}"
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not {".hydra", "cache"} & set(path.parts) and ".partial" not in str(path)
        if (error := _flaw(path)) is not None
    ]


def _flaw(path: Path) -> Exception | None:
    try:
        READERS.get(path.suffix, Path.read_bytes)(path)
    except FileNotFoundError:
        return None
    except Exception as error:
        return error
    return None


def _read_state(path: Path) -> None:
    with safe_open(path, framework="np") as file:
        for name in file.keys():  # noqa: SIM118  (no mapping)
            file.get_tensor(name)


def _read_page(path: Path) -> None:
    if not path.read_text(encoding="utf-8").rstrip().endswith("</html>"):
        raise ValueError("no end")


def _read_delivery(path: Path) -> None:
    """A delivered file is whole when all that belongs to it lies beside it."""
    onnx.checker.check_model(onnx.load(path))
    if path.parent.name == "best":
        figures = json.loads((path.parent / "figures.json").read_text())
        if figures["best"]["size_bytes"] != path.stat().st_size:
            raise ValueError("the figures are of another file")
        for name in ("run.py", "README.md"):
            if not (path.parent / name).stat().st_size:
                raise ValueError(f"{name} is empty")


READERS: dict[str, Any] = {
    ".json": lambda path: json.loads(path.read_text()),
    ".yaml": lambda path: yaml.safe_load(path.read_text()),
    ".onnx": _read_delivery,
    ".npy": np.load,
    ".safetensors": _read_state,
    ".html": _read_page,
}


def killed(home: Nursery, folder: Path, seed: int, kills: Sequence[tuple[str, str]]) -> Tally:
    """One search, killed by each signal at each moment in turn."""
    folder.mkdir(parents=True)
    start = ("rules", "tables", "uniform")[seed % 3]
    arguments = ["search", *SMALL, "objective=size", f"search.seed={seed}", f"search.start={start}", "search.finalists=2"]
    victim = Victim(folder, arguments, random.Random(seed))
    for sign, moment in kills:
        victim.attack(home, sign, moment)
    victim.finish(home)
    return victim.tally


def plan(searches: int, kills: int, seed: int) -> list[list[tuple[str, str]]]:
    """For each search the signals and moments, every moment as often as every other."""
    dice = random.Random(seed)
    moments = [*MOMENTS]
    drawn = [_drawn(dice, moments[kill % len(moments)]) for kill in range(kills)]
    dice.shuffle(drawn)
    return [drawn[search::searches] for search in range(searches)]


def _drawn(dice: random.Random, moment: str) -> tuple[str, str]:
    signs = SIGNS if moment in ("trials", "tables", "finalists") else SIGNS[:3]
    return dice.choices(signs, [WEIGHTS[sign] for sign in signs])[0], moment


def main() -> int:
    """Exit status 1: something was lost, doubled, left behind or told as a traceback."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--searches", type=int, default=20)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--publish", action="store_true", help="write benchmarks/results/faults_kills.json")
    parser.add_argument("--parts", type=Path, help="folder where each search's result is kept, so that the command can go on")
    given = parser.parse_args()
    total, start = Tally(), time.monotonic()
    root = Path(tempfile.mkdtemp(prefix="autocompress-kills-"))
    with nursery() as home:
        for number, kills in enumerate(plan(given.searches, given.kills, given.seed)):
            tally = _part(home, root, number, given, kills)
            total += tally
            sys.stderr.write(f"search {number}: {json.dumps(tally.plain())}, {time.monotonic() - start:.0f} s\n")
            sys.stderr.writelines(f"  {fault}\n" for fault in tally.faults)
    if total.faults:
        sys.stderr.write(f"the searches with faults lie in {root}\n")
    else:
        shutil.rmtree(root)
    rows = {"searches": given.searches, "seed": given.seed, **total.plain()}
    sys.stdout.write(json.dumps(rows, indent=2) + "\n")
    if given.publish:
        from benchmarks.workbench import publish

        sys.argv[1:] = ["--searches", str(given.searches), "--kills", str(given.kills), "--seed", str(given.seed)]
        publish("faults_kills", rows)
    return int(bool(total.faults))


def _part(home: Nursery, root: Path, number: int, given: argparse.Namespace, kills: Sequence[tuple[str, str]]) -> Tally:
    kept = None if given.parts is None else given.parts / f"{given.seed}-{number}.json"
    if kept is not None and kept.exists():
        found = json.loads(kept.read_text())
        return Tally(Counter(found.pop("kills")), Counter(found.pop("stages")), **found)
    tally = killed(home, root / f"search{number}", 1000 * given.seed + number, kills)
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(vars(tally)))
    if not tally.faults:
        shutil.rmtree(root / f"search{number}")
    return tally


if __name__ == "__main__":
    sys.exit(main())
