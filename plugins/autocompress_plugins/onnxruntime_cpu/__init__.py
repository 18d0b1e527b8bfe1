"""Target `onnxruntime`: ONNX Runtime on this machine, by default on its CPU."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autocompress import Activation, Capabilities, Target, hookimpl
from autocompress.errors import ConfigError

INTEGER_OPS = frozenset(
    {
        "Add",
        "Mul",
        "MatMul",
        "Concat",
        "GlobalAveragePool",
        "AveragePool",
        "LeakyRelu",
        "Sigmoid",
        "Softmax",
        "HardSigmoid",
        "HardSwish",
    }
)
ACTIVATIONS: dict[str, tuple[Activation, ...]] = {
    "conv1d": ("static", "float"),
    "conv2d": ("static", "float"),
    "depthwise": ("static", "float"),
    "conv_transpose": ("float",),
    "linear": ("static", "dynamic", "float"),
    "embedding": ("float",),
}
"""Kinds of layers whose weights may have codes, and how they compute then."""

PASSTHROUGH_OPS = frozenset({"MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split"})

DEFAULT_PROVIDER = "CPUExecutionProvider"


@dataclass
class OnnxRuntime(Target):
    """ONNX Runtime with its default session options.

    Attributes:
        threads: threads of one inference when latency is measured.
        providers: execution providers in order of preference, as the runtime names them. Each must be there and start, and the
            first must compute some node of a file. What the others cannot compute is left to the CPU only where
            `CPUExecutionProvider` is listed, and is an error otherwise.
        provider_options: provider to its own options, for example `{CUDAExecutionProvider: {device_id: 1}}`.

    Raises:
        ConfigError: a provider that the installed runtime does not have, or options of one that is not listed.
    """

    name = "onnxruntime"

    threads: int = 1
    providers: list[str] = field(default_factory=lambda: [DEFAULT_PROVIDER])
    provider_options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unused = sorted(set(self.provider_options) - set(self.providers))
        if unused:
            listed = ", ".join(self.providers) or "none"
            raise ConfigError(f"target.onnxruntime.provider_options: '{unused[0]}' is not among the providers: {listed}")
        if list(self.providers) != [DEFAULT_PROVIDER]:
            self._check_providers()

    def _check_providers(self) -> None:
        from autocompress_plugins.onnxruntime_cpu.session import check_providers

        try:
            check_providers(self.providers)
        except ValueError as error:
            raise ConfigError(f"target.onnxruntime.{error}") from error

    def capabilities(self) -> Capabilities:
        """Those of the CPU: INT8 kernels for convolutions and products; INT4, codebooks, sparse weights expand to INT8 at load.

        Transposed convolutions and embeddings have no such kernel: their weights are only stored in codes.
        """
        return Capabilities(
            containers=dict.fromkeys(ACTIVATIONS, (4, 8)),
            integer_ops=INTEGER_OPS,
            passthrough_ops=PASSTHROUGH_OPS,
            packed_sparse=True,
            activations=ACTIVATIONS,
            codebooks=True,
            group_sizes=frozenset({"linear"}),
            # Tried: 1.22.1 has no Cast from INT4; 1.23.2 and later give the same outputs as 1.31.1.
            minimum_runtime={"onnxruntime": "1.23.2"},
        )

    @property
    def session_file(self) -> Path:
        """The self-contained module beside this one."""
        return Path(__file__).with_name("session.py")

    def options(self) -> dict[str, object]:
        """Keyword arguments of the session module's functions."""
        return {"providers": list(self.providers), "provider_options": dict(self.provider_options)}


@hookimpl
def autocompress_targets() -> list[type[Target]]:
    """The target that every installation has."""
    return [OnnxRuntime]
