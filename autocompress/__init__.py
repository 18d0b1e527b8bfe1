"""Automated compression search: the most accurate model file that fits the budget on the machine it will run on.

Names are loaded on first use, so that the command line and the measuring process start without torch.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autocompress.artifact import Artifact as Artifact
    from autocompress.budget import Budget as Budget
    from autocompress.budget import Latency as Latency
    from autocompress.budget import Measurement as Measurement
    from autocompress.building.recovery import Recoverable as Recoverable
    from autocompress.components import Capabilities as Capabilities
    from autocompress.components import CompressedLayer as CompressedLayer
    from autocompress.components import Metric as Metric
    from autocompress.components import Observer as Observer
    from autocompress.components import Pruner as Pruner
    from autocompress.components import QuantizedTensor as QuantizedTensor
    from autocompress.components import Quantizer as Quantizer
    from autocompress.components import Recovery as Recovery
    from autocompress.components import Sampler as Sampler
    from autocompress.components import Target as Target
    from autocompress.components import Tracker as Tracker
    from autocompress.errors import AutocompressError as AutocompressError
    from autocompress.guarding.masking import masked as masked
    from autocompress.hookspecs import hookimpl as hookimpl
    from autocompress.inputs.factories import call_factory as call_factory
    from autocompress.inputs.factories import load_function as load_function
    from autocompress.network.graph import Layer as Layer
    from autocompress.network.graph import LayerPair as LayerPair
    from autocompress.plugin_loading.plugin_api import PLUGIN_API as PLUGIN_API
    from autocompress.policy import Activation as Activation
    from autocompress.policy import ChannelPolicy as ChannelPolicy
    from autocompress.policy import LayerPolicy as LayerPolicy
    from autocompress.policy import Policy as Policy
    from autocompress.problem import Costs as Costs
    from autocompress.problem import Effect as Effect
    from autocompress.problem import Problem as Problem
    from autocompress.quality import Quality as Quality
    from autocompress.record import SearchResult as SearchResult
    from autocompress.record import StudyContext as StudyContext
    from autocompress.record import TrialRecord as TrialRecord
    from autocompress.registry import load_registry as load_registry
    from autocompress.reporting.answer import answer as answer
    from autocompress.reporting.curves import Course as Course
    from autocompress.reporting.curves import Curves as Curves
    from autocompress.reporting.curves import study_curves as study_curves
    from autocompress.reporting.figure import Figure as Figure
    from autocompress.reporting.figures import study_figures as study_figures
    from autocompress.reporting.report import comparison as comparison
    from autocompress.reporting.trial_names import trial_name as trial_name
    from autocompress.run import search as search
    from autocompress.synthetic import SyntheticProblem as SyntheticProblem
    from autocompress.task import Examples as Examples
    from autocompress.task import Task as Task
    from autocompress.tensors.codebook import kernel_levels as kernel_levels
    from autocompress.tensors.codebook import lloyd_max as lloyd_max
    from autocompress.tensors.codebook import nearest as nearest
    from autocompress.tensors.compensation import compensate as compensate
    from autocompress.tensors.compress import CompressedModel as CompressedModel
    from autocompress.tensors.folding import folded_norms as folded_norms
    from autocompress.tensors.grid import Grid as Grid
    from autocompress.tensors.grid import RowStatistics as RowStatistics
    from autocompress.tensors.grid import check_bits as check_bits
    from autocompress.tensors.grid import positive_scale as positive_scale
    from autocompress.tensors.histogram import Histogram as Histogram
    from autocompress.tensors.information import divergence as divergence
    from autocompress.tensors.rows import ScaleRows as ScaleRows
    from autocompress.tensors.stats import LayerStats as LayerStats
    from autocompress.transport import Transport as Transport

_HOMES = {
    "artifact": ("Artifact",),
    "budget": ("Budget", "Latency", "Measurement"),
    "components": (
        *("Capabilities", "CompressedLayer", "Metric", "Observer", "Pruner", "QuantizedTensor", "Quantizer", "Recovery"),
        *("Sampler", "Target", "Tracker"),
    ),
    "tensors.codebook": ("kernel_levels", "lloyd_max", "nearest"),
    "tensors.compensation": ("compensate",),
    "tensors.compress": ("CompressedModel",),
    "reporting.answer": ("answer",),
    "reporting.curves": ("Course", "Curves", "study_curves"),
    "errors": ("AutocompressError",),
    "inputs.factories": ("call_factory", "load_function"),
    "reporting.figure": ("Figure",),
    "reporting.figures": ("study_figures",),
    "tensors.folding": ("folded_norms",),
    "guarding.masking": ("masked",),
    "network.graph": ("Layer", "LayerPair"),
    "tensors.grid": ("Grid", "RowStatistics", "check_bits", "positive_scale"),
    "tensors.histogram": ("Histogram",),
    "hookspecs": ("hookimpl",),
    "tensors.information": ("divergence",),
    "plugin_loading.plugin_api": ("PLUGIN_API",),
    "policy": ("Activation", "ChannelPolicy", "LayerPolicy", "Policy"),
    "problem": ("Costs", "Effect", "Problem"),
    "quality": ("Quality",),
    "record": ("SearchResult", "StudyContext", "TrialRecord"),
    "building.recovery": ("Recoverable",),
    "registry": ("load_registry",),
    "tensors.rows": ("ScaleRows",),
    "run": ("search",),
    "tensors.stats": ("LayerStats",),
    "synthetic": ("SyntheticProblem",),
    "task": ("Examples", "Task"),
    "transport": ("Transport",),
    "reporting.report": ("comparison",),
    "reporting.trial_names": ("trial_name",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME)  # noqa: PLE0605  (a list of str; the linter cannot see through the comprehension)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'autocompress' has no attribute {name!r}", name=name, obj=sys.modules[__name__])
    return getattr(import_module(f"autocompress.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
