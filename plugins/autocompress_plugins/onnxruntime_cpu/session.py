"""Runs a file in ONNX Runtime. Self-contained: standard library, numpy and onnxruntime only.

The process that measures executes this file without autocompress, and a remote device can do the same.
"""

from __future__ import annotations

import difflib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime

INTEGER_OPERATORS = frozenset(
    {"MatMulInteger", "MatMulIntegerToFloat", "ConvInteger", "MatMulNBits", "QGemm", "DynamicQuantizeMatMul"}
)

CPU = "CPUExecutionProvider"
SUFFIX = "ExecutionProvider"

ProviderOptions = Mapping[str, Mapping[str, Any]]


def version() -> str:
    """The runtime's name and version."""
    return f"onnxruntime {onnxruntime.__version__}"


def load(
    path: str, threads: int, optimize: bool, providers: Sequence[str], provider_options: ProviderOptions | None = None
) -> Callable[[Sequence[Any]], list[Any]]:
    """Open a model file with the runtime's default options.

    Args:
        threads: threads of one inference.
        optimize: False switches graph optimization off, to check the optimizer's work.
        providers: execution providers in order of preference.
        provider_options: provider to its own options.

    Returns:
        A function from the input arrays, in the graph's order, to the output arrays.

    Raises:
        ValueError: a provider is not there.
        RuntimeError: a provider did not start, or the preferred one computes no node of the file.
    """
    session = _open(path, _options(threads, optimize, providers), providers, provider_options or {})
    names = [value.name for value in session.get_inputs()]

    def run(inputs: Sequence[Any]) -> list[Any]:
        return list(session.run(None, dict(zip(names, inputs, strict=True))))

    return run


def integer_nodes(
    path: str, inputs: Sequence[Any], providers: Sequence[str], provider_options: ProviderOptions | None = None
) -> list[str]:
    """Names of the nodes that the optimized graph computed in integers while it ran `inputs`, from the runtime's profile."""
    with tempfile.TemporaryDirectory() as folder:
        options = _options(1, optimize=True, providers=providers)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = _open(path, options, providers, provider_options or {})
        session.run(None, dict(zip([value.name for value in session.get_inputs()], inputs, strict=True)))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    kernels = [event for event in events if event.get("name", "").endswith("_kernel_time")]
    return [_node_name(event["name"]) for event in kernels if _is_integer(event["args"]["op_name"])]


def check_providers(providers: Sequence[str]) -> None:
    """Make sure that the installed runtime has them; it would run on the CPU instead, with a warning only.

    Raises:
        ValueError: none is named, or one is not there.
    """
    available = onnxruntime.get_available_providers()
    listed = f"{version()} has {', '.join(available)} here"
    if not providers:
        raise ValueError(f"providers: none is named; {listed}")
    for name in providers:
        if name not in available:
            raise ValueError(f"providers: '{name}' is not available; {listed}{_nearest(name)}")


def _nearest(name: str) -> str:
    """The runtime's name that was probably meant, also one that this build lacks; empty when there is none, or it was meant."""
    every = onnxruntime.get_all_providers()
    words = {known.lower(): known for known in every} | {known.removesuffix(SUFFIX).lower(): known for known in every}
    found = difflib.get_close_matches(name.lower(), words, n=1)
    return f"; did you mean {words[found[0]]}?" if found and words[found[0]] != name else ""


def _node_name(event: str) -> str:
    """Name that the file gave to the node; the runtime appends `_token_<n>` when it rewrites one."""
    return event.removesuffix("_kernel_time").split("_token_", 1)[0]


def _is_integer(operator: str) -> bool:
    return operator.startswith("QLinear") or operator in INTEGER_OPERATORS


def _open(
    path: str, options: onnxruntime.SessionOptions, providers: Sequence[str], provider_options: ProviderOptions
) -> onnxruntime.InferenceSession:
    check_providers(providers)
    own = [dict(provider_options.get(name, {})) for name in providers]
    # By default Python's session takes the CPU instead where a provider fails, at the start or in a run.
    session = onnxruntime.InferenceSession(path, options, list(providers), own, enable_fallback=0)
    idle = sorted(set(providers) - set(session.get_providers()))
    if idle:
        raise RuntimeError(f"providers: {', '.join(idle)} did not start; the session has {', '.join(session.get_providers())}")
    if providers[0] != CPU:
        _check_share(session, providers[0])
    return session


def _check_share(session: onnxruntime.InferenceSession, provider: str) -> None:
    """The runtime gives every node that a provider refuses to the next one; a figure would be the next one's alone."""
    used = {part.ep_name for part in session.get_provider_graph_assignment_info()}
    if provider not in used:
        raise RuntimeError(f"providers: {provider} computes no node of the file; all are left to {', '.join(sorted(used))}")


def _options(threads: int, optimize: bool, providers: Sequence[str]) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if CPU not in providers:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    if providers[:1] != [CPU]:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return options
