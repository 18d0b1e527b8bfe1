"""What every component promises, as tests: subclass a contract, give one fixture, and run pytest.

::

    from autocompress.testing import QuantizerContract

    class TestPowerOfTwo(QuantizerContract):
        @pytest.fixture
        def quantizer(self):
            return PowerOfTwo()

There is a contract for each kind of component; the fixture is named after the kind. The bundled components are held to the same
contracts, and `autocompress plugins --check NAME` runs them on whatever is installed. `make_layer` and `make_stats` serve tests
of a component's own numbers; `make_study`, `make_records` and `make_result` those of a tracker. What `__all__` names is part of
the plugin API and changes by its version only: see `autocompress.PLUGIN_API`. A minor version may add promises.
"""

from __future__ import annotations

import pytest

_CONTRACTS = ("quantizers", "pruners", "recoveries", "observers", "metrics", "targets", "samplers", "trackers", "round_trip")
# Before they are imported, so that a broken promise shows its values in anybody's test run.
pytest.register_assert_rewrite(*(f"{__name__}.{contract}" for contract in _CONTRACTS))

# ruff: noqa: E402
from autocompress.testing.layers import GRADIENT_EXAMPLES, make_layer, make_stats
from autocompress.testing.metrics import MetricContract
from autocompress.testing.observers import ObserverContract
from autocompress.testing.pruners import PrunerContract
from autocompress.testing.quantizers import QuantizerContract
from autocompress.testing.recoveries import RecoveryContract
from autocompress.testing.round_trip import check_settings
from autocompress.testing.samplers import SamplerContract
from autocompress.testing.studies import make_records, make_result, make_study
from autocompress.testing.targets import TargetContract
from autocompress.testing.trackers import TrackerContract

__all__ = [
    "GRADIENT_EXAMPLES",
    "MetricContract",
    "ObserverContract",
    "PrunerContract",
    "QuantizerContract",
    "RecoveryContract",
    "SamplerContract",
    "TargetContract",
    "TrackerContract",
    "check_settings",
    "make_layer",
    "make_records",
    "make_result",
    "make_stats",
    "make_study",
]
