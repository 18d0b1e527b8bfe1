"""Which study a search opens and its workers join: that of its model, data, device, space, objective and budget."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence

import optuna

from autocompress.budget import Budget
from autocompress.choices.space import SearchSpace
from autocompress.errors import ConfigError
from autocompress.record import DIRECTIONS, Objective
from autocompress.studies.storage import Storage
from autocompress.studies.study import FAMILY, OPEN, STATE, SearchStudy

SPACE = "space"
"""Attribute of a study: digest of the space that its indices mean."""

IDENTITY = "identity"
"""Attribute of a study: name to value of what tells it from others, for people."""

PARTS = ("name", "model", "data", "device", "components")
"""What the parts of an identity are, in their order."""

POLL_SECONDS = 0.5

Sampling = Callable[[int], optuna.samplers.BaseSampler]
"""Of the number of trials there are, so that a seeded sampler does not propose the same again when a search resumes."""


def open_study(
    storage: Storage, identity: Sequence[str], space: SearchSpace, objective: Objective, budget: Budget, sampler: Sampling
) -> SearchStudy:
    """Open or create the study of this model, data, target and space, for this objective and budget.

    What its sisters in the storage, those for another objective or budget, have measured is in it as finished trials.

    Args:
        identity: name for people first, then what makes two studies different.
    """
    logging.getLogger("optuna").setLevel(logging.WARNING)
    facts = _facts(identity, space, objective, budget)
    study = optuna.create_study(
        study_name=_name(identity, space, objective, budget),
        storage=storage.rdb,
        directions=DIRECTIONS[objective],
        load_if_exists=True,
    )
    opened = SearchStudy(study, space, objective, storage)
    if study.user_attrs.get(IDENTITY) != facts:
        study.set_user_attr(IDENTITY, facts)
    study.set_user_attr(SPACE, space.digest)
    opened.import_sisters(_digest([*identity, space.family]), budget)
    study.sampler = sampler(len(study.get_trials(deepcopy=False)))
    return opened


def join_study(
    storage: Storage,
    identity: Sequence[str],
    space: SearchSpace,
    objective: Objective,
    budget: Budget,
    sampler: Sampling,
    wait_seconds: float,
) -> SearchStudy:
    """The study that a search with the same settings has opened, now or before `wait_seconds` are over.

    Raises:
        ConfigError: none has; the message names the study that is nearest, and what it differs in.
    """
    logging.getLogger("optuna").setLevel(logging.WARNING)
    name, end = _name(identity, space, objective, budget), time.monotonic() + wait_seconds
    while (study := _open_studies(storage).get(name)) is None:
        if time.monotonic() > end:
            raise ConfigError(_nothing_to_join(storage, name, _facts(identity, space, objective, budget), wait_seconds))
        time.sleep(POLL_SECONDS)
    study.sampler = sampler(len(study.get_trials(deepcopy=False)))
    return SearchStudy(study, space, objective, storage)


def _open_studies(storage: Storage) -> dict[str, optuna.Study]:
    summaries = optuna.get_all_study_summaries(storage.rdb, include_best_trial=False)
    names = [summary.study_name for summary in summaries if summary.user_attrs.get(STATE) == OPEN]
    return {name: optuna.load_study(study_name=name, storage=storage.rdb) for name in names}


def searched_spaces(storage: Storage, identity: Sequence[str], family: str) -> set[str]:
    """Digests of the spaces that were searched there, of those that are parts of one.

    Args:
        family: digest of the whole (`SearchSpace.family`).
    """
    studies = optuna.get_all_study_summaries(storage.rdb, include_best_trial=False)
    ours = [study.user_attrs for study in studies if study.user_attrs.get(FAMILY) == _digest([*identity, family])]
    return {str(attributes.get(SPACE)) for attributes in ours}


def _nothing_to_join(storage: Storage, name: str, facts: Mapping[str, str], waited: float) -> str:
    found = {other: _differences(study.user_attrs.get(IDENTITY, {}), facts) for other, study in _open_studies(storage).items()}
    nearest = min(found, key=lambda other: len(found[other]), default=None)
    beside = f"; {nearest} there differs in {', '.join(found[nearest])}" if nearest is not None else ""
    return (
        f"study {name}: no search has opened it in {storage.address} within study.wait_seconds={waited:g}{beside}; "
        "start `autocompress search` with the same settings"
    )


def _differences(there: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    """What differs, with both values where they are short."""
    names = [name for name in here if there.get(name) != here[name]]
    return [f"{name} ({_short(there.get(name, 'none'))} there, {_short(here[name])} here)" for name in names]


def _short(value: str, characters: int = 60) -> str:
    return value if len(value) <= characters else f"{value[: characters - 4]} ..."


def _facts(identity: Sequence[str], space: SearchSpace, objective: Objective, budget: Budget) -> dict[str, str]:
    """What makes two studies different, by its name."""
    limits = json.dumps(budget.limits(), sort_keys=True)
    return {**dict(zip(PARTS, identity, strict=False)), "space": space.digest, "objective": objective, "budget": limits}


def _name(identity: Sequence[str], space: SearchSpace, objective: Objective, budget: Budget) -> str:
    parts = [*identity, space.digest, objective, json.dumps(budget.limits(), sort_keys=True)]
    return f"{identity[0]}-{objective}-{_digest(parts)[:8]}"


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256("|".join(parts).encode()).hexdigest()
