"""Target `openvino`: OpenVINO on this machine's CPU."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from autocompress import Activation, Capabilities, Target, hookimpl
from autocompress.errors import ConfigError

RUNTIME = "openvino"

ACTIVATIONS: dict[str, tuple[Activation, ...]] = {
    "conv1d": ("static", "float"),
    "conv2d": ("static", "float"),
    "depthwise": ("static", "float"),
    "conv_transpose": ("float",),
    "linear": ("static", "float"),
    "embedding": ("float",),
}
"""Kinds of layers whose weights may have codes, and how they compute then."""

INTEGER_OPS = frozenset({"MatMul"})
"""What else it computes in integers needs no range of its own: it joins what stands between two quantizers to one operator.

Measured on shufflenet_v2_x1_0: 0.43 of FP32 so, 0.65 with a range for each `Concat`; ranges for `Add`, `Mul` and pools change
nothing.
"""

FUSED_OPS = frozenset({"Sigmoid", "Mul", "HardSigmoid", "HardSwish", "Gelu", "Erf", "Tanh", "LayerNormalization"})
"""Activation functions, and what they are written with: it computes them on a convolution's sums. A layer norm reads floats.

Measured with every layer integer: efficientnet_b0 0.64 of FP32 so, 0.79 with a range before each of them; mobilenet_v3_small
0.45 and 0.52. Without a range before `Add` or `Concat` as well, resnet18 gains nothing and shufflenet_v2_x1_0 loses.
"""

JOINING_OPS = frozenset({"Concat"})
"""With one scale for all, it copies bytes, and a pool behind it needs no new range: squeezenet1_1 0.33 of FP32 so, 0.34 with a
scale for each; shufflenet_v2_x1_0, where one reads half of what the one before it gives, 0.487 with one scale for the whole
chain of them and 0.508 without.
"""

CENTRED = frozenset({"linear", "MatMul"})
"""Signed codes without a zero point: only then the products of an attention and its softmax are one integer kernel. A search
of vit_b_16 ends at 0.28 of FP32 so, at 0.31 without. A convolution that reads the same grid keeps it unsigned: behind a
`Concat` of signed codes OpenVINO 2026.4 computes convolutions wrongly.
"""

PASSTHROUGH_OPS = frozenset({"MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split"})


@dataclass
class OpenVino(Target):
    """OpenVINO's CPU plugin for least latency, with float32 for what is not integer.

    Attributes:
        threads: threads of one inference when latency is measured.

    Raises:
        ConfigError: OpenVINO is not installed.
    """

    name = "openvino"

    threads: int = 1

    def __post_init__(self) -> None:
        if importlib.util.find_spec(RUNTIME) is None:
            raise ConfigError("target.openvino: OpenVINO is not installed; add it with: pip install 'autocompress[openvino]'")

    def capabilities(self) -> Capabilities:
        """INT8 kernels for convolutions and products; INT4 and codebooks expand to INT8 at load, packed sparse do not run.

        Float operators between quantized tensors stay float by themselves.
        """
        return Capabilities(
            containers=dict.fromkeys(ACTIVATIONS, (4, 8)),
            integer_ops=INTEGER_OPS,
            fused_ops=FUSED_OPS,
            joining_ops=JOINING_OPS,
            passthrough_ops=PASSTHROUGH_OPS,
            moves_codes=True,
            centred=CENTRED,
            activations=ACTIVATIONS,
            codebooks=True,
            minimum_runtime={"openvino": "2026.4.1"},
            barriers=False,
        )

    @property
    def session_file(self) -> Path:
        """The self-contained module beside this one."""
        return Path(__file__).with_name("session.py")

    @property
    def run_file(self) -> Path:
        """OpenVINO's own API, as a user calls it."""
        return Path(__file__).with_name("run_model.py")


@hookimpl
def autocompress_targets() -> list[type[Target]]:
    """The runtime of the extra `openvino`."""
    return [OpenVino]
