from __future__ import annotations

import pytest
from autocompress_plugins.onnxruntime_cpu import OnnxRuntime

from autocompress import Target
from autocompress.testing import TargetContract


class TestOnnxRuntime(TargetContract):
    @pytest.fixture
    def target(self) -> Target:
        return OnnxRuntime()
