"""The Optuna study: its storage is the truth about every trial."""

from __future__ import annotations

import hashlib
import json
import logging
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.trial import FrozenTrial, Trial, TrialState

from autocompress.budget import Budget
from autocompress.record import DIRECTIONS, Kind, Objective, TrialRecord, objective_values
from autocompress.space import SearchSpace

RECORD = "record"
KIND = "kind"
INTERRUPTED = "interrupted"
ID = "id"

_STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}


class SearchStudy:
    """Asks for policies and stores records, each exactly once, whenever the process is killed."""

    def __init__(self, study: optuna.Study, space: SearchSpace, objective: Objective) -> None:
        self._study, self._space, self._objective = study, space, objective

    @property
    def name(self) -> str:
        """Unique name of the study in its storage."""
        return self._study.study_name

    @property
    def id(self) -> str:
        """Unique in the world, given once."""
        if ID not in self._study.user_attrs:
            self._study.set_user_attr(ID, uuid.uuid4().hex)
        return str(self._study.user_attrs[ID])

    def records(self) -> list[TrialRecord]:
        """Every finished trial, oldest first; interrupted ones are not among them."""
        return [TrialRecord.from_dict(trial.user_attrs[RECORD]) for trial in self._trials() if _is_finished(trial)]

    def close_interrupted(self) -> int:
        """Fail the trials that a killed or stopped run left running, and queue their parameters again; returns how many.

        The parameters are queued before the trial is closed: killed in between, a policy is tried twice, never lost.
        """
        running = [trial for trial in self._trials() if trial.state == TrialState.RUNNING]
        for trial in running:
            self._requeue(trial)
            self._study._storage.set_trial_user_attr(trial._trial_id, INTERRUPTED, True)
            self._study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
        return len(running)

    def _requeue(self, trial: FrozenTrial) -> None:
        """A trial killed while it was asked for has only some of its parameters; a queued one knows all that it was to have."""
        wanted = trial.system_attrs.get("fixed_params", {}) | trial.params
        if wanted:
            self.enqueue(wanted, trial.user_attrs.get(KIND, "trial"))

    def enqueue(self, indices: dict[str, int], kind: Kind) -> None:
        """Try these parameters before asking the sampler."""
        self._study.enqueue_trial(indices, user_attrs={KIND: kind})

    def enqueue_seed(self, indices: dict[str, int]) -> None:
        """Try these parameters early, unless they were queued or tried before."""
        self._study.enqueue_trial(indices, user_attrs={KIND: "seed"}, skip_if_exists=True)

    @property
    def has_waiting(self) -> bool:
        """Whether parameters are queued that nobody has asked for yet."""
        return any(trial.state == TrialState.WAITING for trial in self._trials())

    def ask(self) -> Trial:
        """The next trial, queued or sampled."""
        return self._study.ask(self._space.distributions)

    def tell(self, trial: Trial, record: TrialRecord) -> None:
        """Store a record. The state is written last: a trial counts only when everything about it is stored."""
        trial.set_user_attr(RECORD, record.to_dict())
        for name, excess in record.violations.items():
            trial.set_constraint(name, excess)
        values = objective_values(self._objective, record.measurement) if record.state == "complete" else None
        self._study.tell(trial, values, state=_STATES[record.state])

    def _trials(self) -> Sequence[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)


def _is_finished(trial: FrozenTrial) -> bool:
    return trial.state.is_finished() and RECORD in trial.user_attrs and INTERRUPTED not in trial.user_attrs


def open_study(
    path: Path, identity: Sequence[str], space: SearchSpace, objective: Objective, budget: Budget, sampler: Any
) -> SearchStudy:
    """Open or create the study of this model, data, target and space, for this objective and budget.

    Args:
        path: the SQLite file.
        identity: name for people first, then what makes two studies different.
    """
    logging.getLogger("optuna").setLevel(logging.WARNING)
    parts = [*identity, space.digest, objective, json.dumps(budget.limits(), sort_keys=True)]
    digest = hashlib.sha256("|".join(parts).encode()).hexdigest()[:8]
    study = optuna.create_study(
        study_name=f"{identity[0]}-{objective}-{digest}",
        storage=_storage(path),
        sampler=sampler,
        directions=DIRECTIONS[objective],
        load_if_exists=True,
    )
    return SearchStudy(study, space, objective)


def _storage(path: Path) -> optuna.storages.RDBStorage:
    path.parent.mkdir(parents=True, exist_ok=True)
    storage = optuna.storages.RDBStorage(f"sqlite:///{path.resolve()}", engine_kwargs={"connect_args": {"timeout": 60}})
    sqlalchemy.event.listen(storage.engine, "connect", _tune_sqlite)
    storage.engine.dispose()
    return storage


def _tune_sqlite(connection: Any, _: Any) -> None:
    """Write-ahead log: a commit survives a killed process without waiting for the disk (forty parameters a trial)."""
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
