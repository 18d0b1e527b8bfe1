"""Target `onnxruntime`: ONNX Runtime on this machine's CPU."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from autocompress import Activation, Capabilities, Target, hookimpl

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


@dataclass
class OnnxRuntime(Target):
    """ONNX Runtime with its default session options.

    Attributes:
        threads: threads of one inference when latency is measured.
        providers: execution providers in order of preference.
    """

    name = "onnxruntime"

    threads: int = 1
    providers: list[str] = field(default_factory=lambda: ["CPUExecutionProvider"])

    def capabilities(self) -> Capabilities:
        """INT8 kernels for convolutions and matrix products; INT4, codebooks and packed sparse weights expand to INT8 at load.

        Transposed convolutions and embeddings have none: their weights are only stored in codes.
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
        return {"providers": list(self.providers)}


@hookimpl
def autocompress_targets() -> list[type[Target]]:
    """The target that every installation has."""
    return [OnnxRuntime]
