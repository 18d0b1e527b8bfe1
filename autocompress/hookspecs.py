"""The hooks of autocompress, and how to write a plugin.

A plugin is a Python package with two lines in its pyproject.toml::

    [project.entry-points."autocompress"]
    power_of_two = "autocompress_power_of_two"

and a module that returns component classes::

    from dataclasses import dataclass
    from autocompress import Quantizer, QuantizedTensor, hookimpl

    @dataclass
    class PowerOfTwo(Quantizer):
        name = "power_of_two"
        narrow: bool = True          # becomes the option quantizer.power_of_two.narrow

        def bit_widths(self, layer): ...
        def quantize(self, weight, bits, stats, mask=None): ...

    @hookimpl
    def autocompress_quantizers():
        return [PowerOfTwo]

After `pip install` the quantizer is listed by `autocompress plugins`, is an option in `autocompress search --help`, and is
used with `quantizer=[power_of_two]`. A `conf/` folder with an `__init__.py` inside the package joins Hydra's search path.
Arguments are only ever added to a hook; an implementation names the ones that it needs. docs/plugins.md has an example of each
kind and the policy of versions; `autocompress new-plugin power_of_two` writes such a package.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from autocompress.components import Metric, Observer, Pruner, Quantizer, Recovery, Sampler, Target, Tracker
    from autocompress.record import SearchResult, StudyContext, TrialRecord

PROJECT = "autocompress"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def autocompress_quantizers() -> Sequence[type[Quantizer]]:
    """Called once when plugins are loaded; returns quantizer classes (config group `quantizer`)."""
    raise NotImplementedError


@hookspec
def autocompress_pruners() -> Sequence[type[Pruner]]:
    """Called once when plugins are loaded; returns pruner classes (config group `pruner`)."""
    raise NotImplementedError


@hookspec
def autocompress_observers() -> Sequence[type[Observer]]:
    """Called once when plugins are loaded; returns observer classes (config group `observer`)."""
    raise NotImplementedError


@hookspec
def autocompress_recoveries() -> Sequence[type[Recovery]]:
    """Called once when plugins are loaded; returns recovery classes (config group `recover`)."""
    raise NotImplementedError


@hookspec
def autocompress_metrics() -> Sequence[type[Metric]]:
    """Called once when plugins are loaded; returns metric classes (config group `metric`)."""
    raise NotImplementedError


@hookspec
def autocompress_targets() -> Sequence[type[Target]]:
    """Called once when plugins are loaded; returns target classes (config group `target`)."""
    raise NotImplementedError


@hookspec
def autocompress_samplers() -> Sequence[type[Sampler]]:
    """Called once when plugins are loaded; returns sampler classes (config group `sampler`)."""
    raise NotImplementedError


@hookspec
def autocompress_trackers() -> Sequence[type[Tracker]]:
    """Called once when plugins are loaded; returns tracker classes (config group `tracking`).

    A configured tracker is registered as a plugin for the run, so its methods implement the three hooks below.
    """
    raise NotImplementedError


@hookspec
def autocompress_search_started(study: StudyContext, records: Sequence[TrialRecord]) -> None:
    """Called when a search starts or resumes, after the FP32 baseline is measured.

    Args:
        study: names, budget, device, versions and the baseline.
        records: every trial that earlier runs finished, so that a tracker can add what it missed.
    """


@hookspec
def autocompress_trial_finished(study: StudyContext, record: TrialRecord) -> None:
    """Called once for each trial after it is stored, whatever its end: complete, pruned or failed."""


@hookspec
def autocompress_search_finished(study: StudyContext, result: SearchResult) -> str | None:
    """Called once when the result folder is written; may return a line for the person, such as where to look."""
