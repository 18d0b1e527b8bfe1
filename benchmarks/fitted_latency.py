"""A latency model fitted to files that were timed, and how far off it is: what stands in for the device in comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr

from autocompress.budget import Latency
from autocompress.choices.space import SearchSpace
from autocompress.measuring.device import TimingSettings
from autocompress.policy import Policy
from autocompress.prediction.effects import Journal
from autocompress.prediction.latency_model import LatencyFeatures, LatencyModel, Observation
from autocompress.trials.trial import Bench

MIXES = 24
"""Random policies that are timed."""

TIMING = TimingSettings(seconds=1.0)


@dataclass(frozen=True)
class FittedLatency:
    """The model and its error on the random policies, each predicted from all the other files.

    Attributes:
        mape: mean absolute error as a share of the measured ratio.
        rank_correlation: Spearman's.
        untrained_mape: of the prior alone, before anything was timed.
    """

    model: LatencyModel
    mape: float
    rank_correlation: float
    untrained_mape: float

    def __call__(self, policy: Policy) -> Latency:
        """What the device would say; as sure as a good measurement."""
        ratio = float(self.model.predict([policy])[0][0])
        return Latency(ratio, ratio, 1.0, ratio, 0.995 * ratio, 1.005 * ratio, 0, "model")

    def figures(self) -> Mapping[str, float]:
        """For results."""
        errors = {"mape": self.mape, "rank_correlation": self.rank_correlation, "untrained_mape": self.untrained_mape}
        return {**errors, "policies": MIXES}


def fit(bench: Bench, space: SearchSpace, journal: Journal, timed_options: Sequence[Observation]) -> FittedLatency:
    """Time random policies that the journal does not know, and fit."""
    features = LatencyFeatures(bench.graph, bench.groups, bench.components.target.capabilities())
    mixes = [_observed(bench, policy, journal) for policy in _random(space)]
    model = LatencyModel.fit(features, [*mixes, *timed_options])
    measured = np.array([observation.ratio for observation in mixes])
    predicted = model.left_out()[: len(mixes)]
    untrained, _ = LatencyModel.fit(features, []).predict([observation.policy for observation in mixes])
    return FittedLatency(
        model, _mape(predicted, measured), float(spearmanr(predicted, measured).statistic), _mape(untrained, measured)
    )


def _mape(predicted: np.ndarray, measured: np.ndarray) -> float:
    return float((np.abs(predicted - measured) / measured).mean())


def _random(space: SearchSpace) -> list[Policy]:
    """Policies from mostly precise to mostly small."""
    random, sizes = np.random.default_rng(0), space.sizes
    shares = np.linspace(0.1, 1.0, MIXES)
    return [
        space.policy({name: int(random.integers(1, count)) if random.random() < share else 0 for name, count in sizes.items()})
        for share in shares
    ]


def _observed(bench: Bench, policy: Policy, journal: Journal) -> Observation:
    known = journal.get("mix latency", policy)
    if known is None:
        path = bench.evaluator.folder / "mix.onnx"
        bench.build(policy, path)
        observation = Observation.of(
            policy, bench.device.latency(bench.graph.path, path, bench.evaluator.inputs("example"), TIMING)
        )
        known = {"ratio": observation.ratio, "spread": observation.spread}
        journal.put("mix latency", policy, known)
    return Observation(policy, known["ratio"], known["spread"])
