"""Everything that one search is told besides the task, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autocompress.choices.space_settings import SpaceSettings
from autocompress.components import Components
from autocompress.errors import BudgetError
from autocompress.measuring.device import TimingSettings
from autocompress.prediction.effects import SensitivitySettings
from autocompress.probing.capability_probe import ProbeSettings
from autocompress.searching.loop import Goal, SearchSettings
from autocompress.studies.storage import StudySettings
from autocompress.trials.trial import TrialSettings


@dataclass(frozen=True)
class Settings:
    """The settings of a search.

    Attributes:
        folder: where results, the study and the candidates go; the same folder resumes.
        plain: the settings as plain values, for trackers; without passwords.
        own_folder: what `scratch` is where other processes write to `folder`; None: `folder`.

    Raises:
        BudgetError: a drop of 1 or more is allowed for a metric that is a share.
    """

    goal: Goal
    components: Components
    search: SearchSettings
    space: SpaceSettings
    trial: TrialSettings
    timing: TimingSettings
    sensitivity: SensitivitySettings
    folder: Path
    probe: ProbeSettings = field(default_factory=ProbeSettings)
    plain: Mapping[str, Any] = field(default_factory=dict)
    study: StudySettings = field(default_factory=StudySettings)
    own_folder: Path | None = None

    @property
    def scratch(self) -> Path:
        """Where what only this process needs goes."""
        return self.own_folder or self.folder

    def __post_init__(self) -> None:
        drop, metric = self.goal.budget.accuracy_drop, self.components.metric
        if metric.percent and drop is not None and drop >= 1:
            raise BudgetError(
                f"budget.accuracy_drop={drop}: expected a fraction below 1 for metric {metric.name} (0.01 is one point)"
            )
