"""The Optuna study: its storage is the truth about every trial."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from autocompress.budget import Budget, Measurement
from autocompress.choices.space import SearchSpace
from autocompress.errors import ConfigError
from autocompress.record import Objective, TrialRecord, objective_values
from autocompress.studies.finished_trials import add_finished
from autocompress.studies.heartbeat import HEARTBEAT, Heartbeat, Watch
from autocompress.studies.sisters import judged_again
from autocompress.studies.storage import Storage

RECORD = "record"
KIND = "kind"
INTERRUPTED = "interrupted"
ID = "id"
FAMILY = "family"
"""Attribute of a study: equal in all studies of a storage whose measurements mean the same."""
STATE = "state"
"""Attribute of a study: `OPEN` while a search has it, else the sentence that says why it ended."""
OPEN = "open"
RETRY_OF = "retry_of"
"""Attribute of a trial: the number of one whose process died."""


_STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}


class SearchStudy:
    """Asks for policies and stores records, each exactly once, whenever a process is killed, alone or among others."""

    def __init__(self, study: optuna.Study, space: SearchSpace, objective: Objective, storage: Storage) -> None:
        self._study, self._space, self._objective, self._storage = study, space, objective, storage
        self._told: set[int] = set()
        self._asked: Trial | None = None
        seconds = storage.heartbeat_seconds
        self._heartbeat = None if seconds is None else Heartbeat(self._beat, seconds)
        self._watch = None if seconds is None else Watch(seconds)

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
        return stored_records(self._study)

    def news(self) -> list[TrialRecord]:
        """The finished trials that this has not returned before, oldest first, whichever process ran them."""
        new = [trial for trial in self._trials() if trial.number not in self._told and _is_finished(trial)]
        self._told.update(trial.number for trial in new)
        return [read_record(trial) for trial in new]

    @property
    def running(self) -> int:
        """How many trials other processes are at."""
        own = self._asked.number if self._asked is not None else None
        return 0 if self._watch is None else sum(trial.number != own for trial in self._running())

    @contextmanager
    def held(self) -> Iterator[None]:
        """One search has a study: it alone queues policies, tells trackers and concludes.

        Raises:
            ConfigError: another one has it.
        """
        with self._storage.locked(f"autocompress search {self.name}", wait=False) as has_lock:
            if not has_lock:
                raise ConfigError(
                    f"study {self.name} in {self._storage.address}: another search has it; help it with `autocompress worker` "
                    "and the same settings"
                )
            yield

    def open(self) -> None:
        """Let workers join."""
        self._study.set_user_attr(STATE, OPEN)

    def end(self, reason: str) -> None:
        """Send workers home when their trials are done."""
        self._study.set_user_attr(STATE, reason)

    @property
    def ended(self) -> str | None:
        """Why the search has ended; None: it goes on."""
        state = str(self._study.user_attrs.get(STATE, ""))
        return None if state == OPEN else state

    def close_interrupted(self) -> int:
        """Fail the trials that a killed run left running, and queue the parameters of each again, once; returns how many.

        The parameters are queued before the trial is closed: killed in between, a policy is tried twice, never lost. Where
        other processes may run trials, none is closed: see `retry_silent`.
        """
        left = self._running() if self._watch is None else []
        for trial in left:
            self._retry(trial)
        return len(left)

    def retry_silent(self) -> int:
        """The same for trials of other processes that no longer give signs of life; returns how many."""
        silent = self._watch.silent(self._running()) if self._watch is not None else []
        if silent:
            with self._storage.locked(f"autocompress retry {self.name}"):
                for trial in silent:
                    self._retry(trial)
        return len(silent)

    def give_back(self) -> None:
        """Leave the trial that this process is at to the next one."""
        if self._heartbeat is not None:
            self._heartbeat.stop()
        if self._asked is not None:
            trial = self._study._storage.get_trial(self._asked._trial_id)
            if not trial.state.is_finished():
                self._leave(trial)
            self._asked = None
        for trial in self._running() if self._watch is None else []:
            self._leave(trial)  # one that was only being asked for

    def _leave(self, trial: FrozenTrial) -> None:
        """It is no fault of the trial that it ends here."""
        self._requeue(trial, trial.user_attrs.get(RETRY_OF))
        self._close(trial)

    def _retry(self, trial: FrozenTrial) -> None:
        """Once: a policy on which two processes died failed. Where others may do this, under the lock."""
        if self._study._storage.get_trial(trial._trial_id).state != TrialState.RUNNING:
            return
        was_asked = trial.params.keys() == self._space.distributions.keys()
        if was_asked and RETRY_OF in trial.user_attrs:
            self._fail(trial)
            return
        if not any(other.user_attrs.get(RETRY_OF) == trial.number for other in self._trials()):
            self._requeue(trial, trial.number)
        self._close(trial)

    def _fail(self, trial: FrozenTrial) -> None:
        reason = f"the process that ran it died, as that of trial {trial.user_attrs[RETRY_OF]} had: it is not tried again"
        policy, kind = self._space.policy(trial.params), trial.user_attrs.get(KIND, "trial")
        record = TrialRecord(trial.number, kind, "failed", "build", reason, policy, Measurement(), {}, given_up=True)
        with suppress(UpdateFinishedTrialError):
            self._study._storage.set_trial_user_attr(trial._trial_id, RECORD, record.to_dict())
            self._study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)

    def _requeue(self, trial: FrozenTrial, retry_of: int | None = None) -> None:
        """A trial killed while it was asked for has only some of its parameters; a queued one knows all that it was to have.

        Nothing but parameters and kind is taken over: a constraint of the dead trial could not be set again.
        """
        wanted = trial.system_attrs.get("fixed_params", {}) | trial.params
        attributes = {KIND: trial.user_attrs.get(KIND, "trial"), **({} if retry_of is None else {RETRY_OF: retry_of})}
        if wanted:
            self._study.enqueue_trial(wanted, user_attrs=attributes)

    def _close(self, trial: FrozenTrial) -> None:
        with suppress(UpdateFinishedTrialError):  # its process was only slow
            self._study._storage.set_trial_user_attr(trial._trial_id, INTERRUPTED, True)
            self._study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)

    def _beat(self, trial_id: int, count: int) -> None:
        self._study._storage.set_trial_user_attr(trial_id, HEARTBEAT, count)

    def enqueue_seed(self, indices: dict[str, int]) -> None:
        """Try these parameters early, unless they were queued or tried before."""
        self._study.enqueue_trial(indices, user_attrs={KIND: "seed"}, skip_if_exists=True)

    @property
    def has_waiting(self) -> bool:
        """Whether parameters are queued that nobody has asked for yet."""
        return any(trial.state == TrialState.WAITING for trial in self._trials())

    def ask(self) -> Trial:
        """The next trial, queued or sampled."""
        while True:
            self._asked = None
            self._asked = trial = self._study.ask()
            if self._heartbeat is not None:
                self._heartbeat.start(trial._trial_id)  # a sampler may take minutes
            try:
                for name, count in self._space.sizes.items():
                    trial.suggest_int(name, 0, count - 1)
            except UpdateFinishedTrialError:  # others took this process for dead
                continue
            return trial

    def tell(self, trial: Trial, record: TrialRecord) -> bool:
        """Store a record. The state is written last: a trial counts only when everything about it is stored.

        Returns:
            Whether it was; not when others took this process for dead meanwhile, and the trial is run again.
        """
        try:
            self._store(trial, record)
        except UpdateFinishedTrialError:
            return False
        finally:
            self._asked = None
            if self._heartbeat is not None:
                self._heartbeat.stop()
        return True

    def _store(self, trial: Trial, record: TrialRecord) -> None:
        trial.set_user_attr(RECORD, record.to_dict())
        for name, excess in record.violations.items():
            trial.set_constraint(name, excess)
        values = objective_values(self._objective, record.measurement) if record.state == "complete" else None
        self._study.tell(trial, values, state=_STATES[record.state])

    def import_sisters(self, family: str, budget: Budget) -> None:
        """Take over what the other studies of the family measured and this one has not, judged by its own budget."""
        self._study.set_user_attr(FAMILY, family)
        with self._storage.locked(f"autocompress import {self.name}"):
            known = {record.policy.digest for record in self.records() if record.state != "failed"}
            sisters = [(sister.study_name, record) for sister in self._sisters(family) for record in stored_records(sister)]
            judged = [record for record in judged_again(sisters, budget) if record.policy.digest not in known]
            new = [record for record in judged if self._space.offers(record.policy)]
            add_finished(self._study, [self._frozen(record) for record in new])

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

    def _running(self) -> list[FrozenTrial]:
        return [trial for trial in self._trials() if trial.state == TrialState.RUNNING]


def stored_records(study: optuna.Study) -> list[TrialRecord]:
    """Every finished trial, oldest first."""
    return [read_record(trial) for trial in study.get_trials(deepcopy=False) if _is_finished(trial)]


def read_record(trial: FrozenTrial) -> TrialRecord:
    """Its number is Optuna's: an imported record has that of the study where it was measured."""
    try:
        record = TrialRecord.from_dict(trial.user_attrs[RECORD])
    except ValueError as error:
        raise ConfigError(f"study: trial {trial.number} is not stored as a search does it: {error}") from error
    return replace(record, number=trial.number)


def _is_finished(trial: FrozenTrial) -> bool:
    return trial.state.is_finished() and RECORD in trial.user_attrs and INTERRUPTED not in trial.user_attrs
