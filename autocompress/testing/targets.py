"""The contract of `Target`."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import pytest
import torch

from autocompress.components import (
    Target,
)
from autocompress.measuring.runner import load_module
from autocompress.policy import Activation
from autocompress.testing.batches import normal
from autocompress.testing.convolution_file import INPUT_STEP, INPUT_ZERO, OUTPUT_STEP, write_convolution
from autocompress.testing.round_trip import check_settings


class TargetContract:
    """The promises of `Target`: what it says about its runtime, and what its session module does with a file."""

    @pytest.fixture
    def target(self) -> Target:
        """The component under test."""
        raise NotImplementedError("a subclass of TargetContract gives the fixture `target`")

    @pytest.fixture
    def session(self, target: Target) -> Any:
        """The session module."""
        return load_module(str(target.session_file))

    def test_capabilities_name_what_exists(self, target: Target) -> None:
        """Bits that can be stored, operators of ONNX, and each operator in one role."""
        found = target.capabilities()
        assert all(bits and set(bits) <= set(range(2, 9)) for bits in found.containers.values())
        assert all(onnx.defs.has(name) for name in found.integer_ops | found.passthrough_ops)
        assert not found.integer_ops & found.passthrough_ops
        assert all(set(ways) <= set(get_args(Activation)) for ways in found.activations.values())
        assert {*found.activations, *found.group_sizes} <= set(found.containers)

    def test_options_are_json(self, target: Target) -> None:
        """They travel to the measuring process."""
        assert json.loads(json.dumps(target.options())) == target.options()
        assert target.threads >= 1

    def test_session_file_is_self_contained(self, target: Target) -> None:
        """It is loaded without torch and without autocompress, as on another device."""
        code = (
            "import importlib.util, sys; spec = importlib.util.spec_from_file_location('session', sys.argv[1]); "
            "spec.loader.exec_module(importlib.util.module_from_spec(spec)); "
            "print(sorted({'torch', 'autocompress'} & set(sys.modules)))"
        )
        command = [sys.executable, "-P", "-c", code, str(target.session_file)]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"

    def test_version_names_the_runtime(self, session: Any) -> None:
        """Name and version, two words."""
        name, version = session.version().split()
        assert name
        assert version[0].isdigit()

    @pytest.mark.parametrize("optimize", [True, False])
    @pytest.mark.parametrize("integer", [True, False])
    def test_computes_what_the_file_says(
        self, target: Target, session: Any, tmp_path: Path, integer: bool, optimize: bool
    ) -> None:
        """For any number of examples and threads; integers within one step of the output."""
        kernel = torch.from_numpy(write_convolution(tmp_path / "conv.onnx", integer=integer))
        for count, threads in ((1, 1), (5, 2)):
            run = session.load(str(tmp_path / "conv.onnx"), threads, optimize, **target.options())
            inputs = normal(count, 4, 6, 6)
            values = torch.from_numpy(inputs)
            if integer:
                values = torch.fake_quantize_per_tensor_affine(values, INPUT_STEP, INPUT_ZERO, 0, 255)
            expected = torch.nn.functional.conv2d(values, kernel, padding=1).relu()
            (outputs,) = run([inputs])
            limit = 255 * OUTPUT_STEP if integer else math.inf
            np.testing.assert_allclose(outputs, expected.clamp(max=limit), atol=1.01 * OUTPUT_STEP if integer else 1e-4)

    def test_tells_which_nodes_compute_in_integers(self, target: Target, session: Any, tmp_path: Path) -> None:
        """The quantized convolution does, by the name that the file gives it; the float one does not."""
        for integer in (True, False):
            write_convolution(tmp_path / "conv.onnx", integer=integer)
            names = session.integer_nodes(str(tmp_path / "conv.onnx"), [normal(1, 4, 6, 6)], **target.options())
            assert ("conv" in names) == integer, f"integer nodes: {names}"

    def test_a_broken_file_is_an_error(self, target: Target, session: Any, tmp_path: Path) -> None:
        """Not the end of the process."""
        (tmp_path / "broken.onnx").write_bytes(b"no model")
        with pytest.raises(Exception, match=r"."):
            session.load(str(tmp_path / "broken.onnx"), 1, True, **target.options())

    def test_settings_survive_a_round_trip(self, target: Target) -> None:
        """The fields can be configured, and stored as JSON."""
        check_settings(target)
