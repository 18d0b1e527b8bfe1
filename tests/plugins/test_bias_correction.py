"""Bias correction against means of every layer, taken in the module and its twin with batch norm in place."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from autocompress_plugins.bias_correction import BiasCorrection
from torch import Tensor, nn

from autocompress import LayerPolicy, Policy, QuantizedTensor, Recoverable, Recovery
from autocompress.display.progress import Progress
from autocompress.errors import ConfigError
from autocompress.policy import ChannelPolicy
from autocompress.tensors.compress import LayerDatabase
from autocompress.testing import RecoveryContract
from autocompress.trials.trial import Bench


class TestBiasCorrection(RecoveryContract):
    @pytest.fixture
    def recovery(self) -> Recovery:
        return BiasCorrection()


INT4 = LayerPolicy("int4", 4)


@pytest.fixture
def make(bench: Bench, tmp_path: Path) -> Callable[[Policy], Recoverable]:
    """A finalist without moment matching, which would leave less to correct."""
    components = replace(bench.components, recoveries=())
    database = LayerDatabase(bench.graph, bench.calibration, components, bench.groups)
    plain = replace(bench, components=components, database=database)
    return lambda policy: plain.recoverable(policy, tmp_path, 0, Progress(io.StringIO()))


def means(module: nn.Module, candidate: Recoverable, images: int) -> dict[str, Tensor]:
    """Mean of every channel of every layer."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        return lambda _, __, output: found.update({name: output.transpose(0, 1).flatten(1).mean(1)})

    hooks = [module.get_submodule(name).register_forward_hook(keep(name)) for name in candidate.graph.layers]
    with torch.no_grad():
        module(torch.from_numpy(candidate.task.sets["calibration"].inputs[:images]))
    for hook in hooks:
        hook.remove()
    return found


def worst(candidate: Recoverable, images: int) -> float:
    expected, found = (means(module, candidate, images) for module in (candidate.task.model, candidate.twin()))
    return max(float((found[name] - expected[name]).abs().max()) for name in expected)


def test_every_layer_has_the_mean_of_fp32(make: Callable[[Policy], Recoverable]) -> None:
    candidate = make(Policy(dict.fromkeys(("stem.0", "inner.0", "outer.0", "depthwise.0", "pointwise", "head"), INT4)))
    corrected = replace(candidate, compressed=BiasCorrection(images=100).recover(candidate))
    assert worst(candidate, 100) > 0.1
    assert worst(corrected, 100) < 0.01  # the file's biases are whole steps of the sums that they are added to


def test_only_biases_move(make: Callable[[Policy], Recoverable]) -> None:
    candidate = make(Policy({"inner.0": INT4, "head": INT4}))
    corrected = BiasCorrection().recover(candidate)
    assert list(corrected.layers) == ["inner.0", "head"]
    for name, layer in candidate.compressed.layers.items():
        before, after = layer.weight, corrected.layers[name].weight
        assert isinstance(before, QuantizedTensor)
        assert isinstance(after, QuantizedTensor)
        assert torch.equal(before.codes, after.codes)
        assert torch.equal(before.scale, after.scale)
        assert layer.bias is not None
        assert not torch.equal(layer.bias, corrected.layers[name].bias)
    assert corrected.ranges == candidate.compressed.ranges


def test_a_candidate_with_fewer_channels(make: Callable[[Policy], Recoverable]) -> None:
    """What is left of FP32 is the reference."""
    policy = Policy(dict.fromkeys(("inner.0", "outer.0"), INT4), {"inner.0": ChannelPolicy("sparse", 0.5)})
    candidate = make(policy)
    corrected = BiasCorrection().recover(candidate)
    bias = corrected.layers["inner.0"].bias
    assert bias is not None
    assert bias.shape == (16,)
    before = candidate.compressed.layers["inner.0"].bias
    assert before is not None
    assert (bias - before).abs().max() > 1e-3


def test_no_images_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"recover\.bias_correction\.images=0: expected at least 1"):
        BiasCorrection(images=0)
