"""Finished trials written to an Optuna database all at once: `add_trial` asks three questions for each parameter of each."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import optuna
import sqlalchemy
from optuna.distributions import distribution_to_json
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.orm import Session

Row = dict[str, Any]


def add_finished(study: optuna.Study, trials: Sequence[FrozenTrial]) -> None:
    """Add trials to a study in one transaction: all of them, or none when the process is killed.

    Row for row what `optuna.Study.add_trial` writes, numbered in their order after those that the study has.

    Args:
        study: in a relational database.
        trials: with the study's own parameters and distributions, which is not checked again.
    """
    if not trials:
        return
    backend: Any = getattr(study._storage, "_backend", study._storage)
    with Session(backend.engine) as session, session.begin():
        models.StudyModel.find_or_raise_by_id(study._study_id, session, for_update=True)
        stored = [_begun(trial, study._study_id) for trial in trials]
        session.add_all(stored)
        session.flush()
        first = stored[0].count_past_trials(session)
        for place, (model, trial) in enumerate(zip(stored, trials, strict=True)):
            model.number, model.state = first + place, trial.state
        for table, rows in _rows(stored, trials).items():
            if rows:
                session.execute(sqlalchemy.insert(table), rows)


def _begun(trial: FrozenTrial, study_id: int) -> models.TrialModel:
    times = {"datetime_start": trial.datetime_start, "datetime_complete": trial.datetime_complete}
    return models.TrialModel(study_id=study_id, number=None, state=TrialState.RUNNING, **times)


def _rows(stored: Sequence[models.TrialModel], trials: Sequence[FrozenTrial]) -> dict[Any, list[Row]]:
    """Table to the rows of all trials."""
    pairs = list(zip(stored, trials, strict=True))
    return {
        table: [{"trial_id": model.trial_id, **row} for model, trial in pairs for row in rows(trial)]
        for table, rows in (
            (models.TrialParamModel, _parameters),
            (models.TrialValueModel, _values),
            (models.TrialUserAttributeModel, lambda trial: _attributes(trial.user_attrs)),
            (models.TrialSystemAttributeModel, lambda trial: _attributes(trial.system_attrs)),
        )
    }


def _parameters(trial: FrozenTrial) -> Iterator[Row]:
    for name, value in trial.params.items():
        distribution = trial.distributions[name]
        internal, written = distribution.to_internal_repr(value), distribution_to_json(distribution)
        yield {"param_name": name, "param_value": internal, "distribution_json": written}


def _values(trial: FrozenTrial) -> Iterator[Row]:
    for objective, value in enumerate(trial.values or ()):
        number, kind = models.TrialValueModel.value_to_stored_repr(value)
        yield {"objective": objective, "value": number, "value_type": kind}


def _attributes(values: Mapping[str, Any]) -> Iterator[Row]:
    for key, value in values.items():
        yield {"key": key, "value_json": json.dumps(value)}
