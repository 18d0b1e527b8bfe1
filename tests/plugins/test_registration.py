"""Each module registers by its entry point alone, and costs nothing until it is used."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

from autocompress.registry import load_registry

COMPONENTS = {
    "affine": [("quantizer", "int4"), ("quantizer", "int8")],
    "sparse": [("pruner", "sparse")],
    "importance": [("pruner", "importance")],
    "stability": [("pruner", "stability")],
    "minmax": [("observer", "minmax")],
    "percentile": [("observer", "percentile")],
    "mse": [("observer", "mse")],
    "moving_average": [("observer", "moving_average")],
    "entropy": [("observer", "entropy")],
    "global_range": [("observer", "global")],
    "accuracy": [("metric", "accuracy")],
    "top5": [("metric", "top5")],
    "agreement": [("metric", "agreement")],
    "kl": [("metric", "kl")],
    "f1": [("metric", "f1")],
    "mean_iou": [("metric", "mean_iou")],
    "squared_error": [("metric", "squared_error")],
    "ssh": [("target", "ssh")],
    "cosine": [("metric", "cosine")],
    "function": [("metric", "function")],
    "onnxruntime_cpu": [("target", "onnxruntime")],
    "openvino_cpu": [("target", "openvino")],
    "tpe": [("sampler", "tpe")],
    "random_search": [("sampler", "random")],
    "nsgaii": [("sampler", "nsgaii")],
    "gp": [("sampler", "gp")],
    "grid": [("sampler", "grid")],
}


TENSOR_KINDS = {"quantizer", "pruner", "recover"}


@pytest.mark.parametrize("module", COMPONENTS)
def test_module_registers_its_components(module: str) -> None:
    registry = load_registry([EntryPoint(module, f"autocompress_plugins.{module}", "autocompress")])
    assert [plugin.problem for plugin in registry.plugins] == [None]
    assert sorted(registry.components) == COMPONENTS[module]


def test_what_needs_no_tensors_is_loaded_without_torch_and_optuna() -> None:
    """Quantizers, pruners and recoveries compute with tensors; all other kinds must not cost the seconds that torch takes."""
    light = [module for module, found in COMPONENTS.items() if not {kind for kind, _ in found} & TENSOR_KINDS]
    imports = "; ".join(f"import autocompress_plugins.{module}" for module in light)
    code = f"import sys; {imports}; print(sorted({{'torch', 'optuna'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
