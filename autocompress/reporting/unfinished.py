"""The answer of a search that has not ended, as far as its trials tell it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from autocompress.artifact import Artifact
from autocompress.policy import Policy
from autocompress.record import Final, SearchResult, StudyContext, TrialRecord
from autocompress.searching.selection import nearest, pareto_front, ranked

DEVIATES = 1.96
"""Standard errors that an interval of 95 % reaches to each side."""


def unfinished(study: StudyContext, records: Sequence[TrialRecord]) -> SearchResult:
    """As far as a search came that has not written its result: the best trial, on the search set."""
    chosen = next(iter([*ranked(records, study.objective), *nearest(records, study.objective)]), None)
    figures = study.baseline if chosen is None else chosen.measurement
    spread, drop = DEVIATES * (figures.accuracy_drop_spread or math.nan), figures.accuracy_drop or 0.0
    unknown = (math.nan, math.nan)
    best = (
        study.reference
        if chosen is None
        else Artifact(study.folder / "candidates", "onnx", figures.size_bytes or 0, chosen.sha256)
    )
    return SearchResult(
        status="interrupted",
        objective=study.objective,
        budget=study.budget,
        baseline=Final(study.reference, study.baseline, unknown),
        best=Final(best, figures, unknown),
        policy=Policy() if chosen is None else chosen.policy,
        best_trial=None if chosen is None else chosen.number,
        drop=drop,
        drop_ci=(drop - spread, drop + spread),
        drop_upper=math.nan,
        selection_gap=math.nan,
        binding_constraint=None,
        records=records,
        front=[record.number for record in pareto_front(records)],
        seconds=sum(sum(record.seconds.values()) for record in records if record.is_measured),
        folder=study.folder,
        versions=study.versions,
        device=study.device,
        minimum_runtime={},
        reasons=[
            "the search has not ended: these are the figures of its trials on the search set; the same command resumes it"
        ],
        quality=study.quality,
        environment=study.environment,
        self_check=study.self_check,
    )
