"""An Optuna sampler as the study calls it: what it raises names the plugin, and it can only propose what there is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from autocompress.components import Sampler
from autocompress.errors import PluginError
from autocompress.guarding.plugin_call import calling, described
from autocompress.problem import Problem


def guarded_sampler(component: Sampler, problem: Problem, seed: int) -> BaseSampler:
    """The component's sampler, guarded.

    Raises:
        PluginError: it makes none.
    """
    with calling(component, "create"):
        sampler = component.create(problem, seed)
    if not isinstance(sampler, BaseSampler):
        raise PluginError(f"{described(component)}: create gives {type(sampler).__name__}; expected an Optuna sampler")
    return _GuardedSampler(component, sampler)


class _GuardedSampler(BaseSampler):
    def __init__(self, component: Sampler, sampler: BaseSampler) -> None:
        self._component, self._sampler = component, sampler

    def reseed_rng(self) -> None:
        with calling(self._component, "reseed_rng"):
            self._sampler.reseed_rng()

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        with calling(self._component, "infer_relative_search_space"):
            return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        with calling(self._component, "sample_relative"):
            found = self._sampler.sample_relative(study, trial, search_space)
        for name, value in found.items():
            self._check(name, value, search_space[name])
        return found

    def sample_independent(self, study: Study, trial: FrozenTrial, name: str, distribution: BaseDistribution) -> Any:
        with calling(self._component, "sample_independent"):
            found = self._sampler.sample_independent(study, trial, name, distribution)
        self._check(name, found, distribution)
        return found

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        with calling(self._component, "before_trial"):
            self._sampler.before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        with calling(self._component, "after_trial"):
            self._sampler.after_trial(study, trial, state, values)

    def _check(self, name: str, value: Any, distribution: BaseDistribution) -> None:
        try:
            is_one = distribution._contains(distribution.to_internal_repr(value))
        except (TypeError, ValueError):
            is_one = False
        if not is_one:
            raise PluginError(f"{described(self._component)}: proposes {name}={value!r}; expected one of {distribution}")
