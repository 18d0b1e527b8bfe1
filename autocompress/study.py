"""The Optuna study: its storage is the truth about every trial."""

from __future__ import annotations

import hashlib
import json
import logging
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from autocompress.budget import Budget
from autocompress.finished_trials import add_finished
from autocompress.record import DIRECTIONS, Kind, Objective, TrialRecord, objective_values
from autocompress.sisters import judged_again
from autocompress.space import SearchSpace

RECORD = "record"
KIND = "kind"
INTERRUPTED = "interrupted"
ID = "id"
FAMILY = "family"
"""Attribute of a study: equal in all studies of a file whose measurements mean the same."""

SPACE = "space"
"""Attribute of a study: digest of the space that its indices mean."""

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
        return _records(self._study)

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

    def import_sisters(self, family: str, budget: Budget) -> None:
        """Take over what the other studies of the family measured and this one has not, judged by its own budget."""
        self._study.set_user_attr(FAMILY, family)
        known = {record.policy.digest for record in self.records() if record.state != "failed"}
        sisters = [(sister.study_name, record) for sister in self._sisters(family) for record in _records(sister)]
        judged = [record for record in judged_again(sisters, budget) if record.policy.digest not in known]
        new = [record for record in judged if self._space.offers(record.policy)]
        add_finished(
            self._study, [self._frozen(replace(record, number=n)) for n, record in enumerate(new, len(self._trials()))]
        )

    def _sisters(self, family: str) -> Iterator[optuna.Study]:
        for summary in optuna.get_all_study_summaries(self._study._storage, include_best_trial=False):
            if summary.study_name != self.name and summary.user_attrs.get(FAMILY) == family:
                yield optuna.load_study(study_name=summary.study_name, storage=self._study._storage)

    def _frozen(self, record: TrialRecord) -> FrozenTrial:
        """A finished trial as Optuna has it."""
        is_complete = record.state == "complete"
        return create_trial(
            state=_STATES[record.state],
            values=objective_values(self._objective, record.measurement) if is_complete else None,
            params=self._space.indices(record.policy),
            distributions=self._space.distributions,
            user_attrs={KIND: record.kind, RECORD: record.to_dict()},
            constraints=dict(record.violations),
        )

    def _trials(self) -> Sequence[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)


def _records(study: optuna.Study) -> list[TrialRecord]:
    return [
        TrialRecord.from_dict(trial.user_attrs[RECORD]) for trial in study.get_trials(deepcopy=False) if _is_finished(trial)
    ]


def _is_finished(trial: FrozenTrial) -> bool:
    return trial.state.is_finished() and RECORD in trial.user_attrs and INTERRUPTED not in trial.user_attrs


def open_study(
    path: Path,
    identity: Sequence[str],
    space: SearchSpace,
    objective: Objective,
    budget: Budget,
    sampler: Callable[[int], optuna.samplers.BaseSampler],
) -> SearchStudy:
    """Open or create the study of this model, data, target and space, for this objective and budget.

    What its sisters in the file, those for another objective or budget, have measured is in it as finished trials.

    Args:
        path: the SQLite file.
        identity: name for people first, then what makes two studies different.
        sampler: of the number of trials there are, so that a seeded one does not propose the same again when a search resumes.
    """
    logging.getLogger("optuna").setLevel(logging.WARNING)
    digest = _digest([*identity, space.digest, objective, json.dumps(budget.limits(), sort_keys=True)])[:8]
    study = optuna.create_study(
        study_name=f"{identity[0]}-{objective}-{digest}",
        storage=_storage(path),
        directions=DIRECTIONS[objective],
        load_if_exists=True,
    )
    opened = SearchStudy(study, space, objective)
    study.set_user_attr(SPACE, space.digest)
    opened.import_sisters(_digest([*identity, space.family]), budget)
    study.sampler = sampler(len(study.get_trials(deepcopy=False)))
    return opened


def searched_spaces(path: Path, identity: Sequence[str], family: str) -> set[str]:
    """Digests of the spaces that were searched in a file, of those that are parts of one.

    Args:
        family: digest of the whole (`SearchSpace.family`).
    """
    if not path.exists():
        return set()
    studies = optuna.get_all_study_summaries(_storage(path), include_best_trial=False)
    ours = [study.user_attrs for study in studies if study.user_attrs.get(FAMILY) == _digest([*identity, family])]
    return {str(attributes.get(SPACE)) for attributes in ours}


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256("|".join(parts).encode()).hexdigest()


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
