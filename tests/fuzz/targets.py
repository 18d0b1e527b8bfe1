"""All readers under test, by name."""

from __future__ import annotations

from collections.abc import Mapping

from tests.fuzz.budgets import BUDGET
from tests.fuzz.labels import LABELS
from tests.fuzz.onnx_files import ONNX
from tests.fuzz.overrides import OVERRIDES
from tests.fuzz.pictures import IMAGES, ZIPS
from tests.fuzz.plugin_metadata import PLUGINS
from tests.fuzz.policies import POLICY_JSON, POLICY_YAML
from tests.fuzz.read_back import JOURNAL, PROBE, RECORDS, SENSITIVITY, STUDIES
from tests.fuzz.target import Target
from tests.fuzz.weights import CHECKPOINT, SAFETENSORS, STATE

TARGETS: Mapping[str, Target] = {
    "policy_json": POLICY_JSON,
    "policy_yaml": POLICY_YAML,
    "budget": BUDGET,
    "overrides": OVERRIDES,
    "plugins": PLUGINS,
    "record": RECORDS,
    "study": STUDIES,
    "probe": PROBE,
    "sensitivity": SENSITIVITY,
    "journal": JOURNAL,
    "onnx": ONNX,
    "checkpoint": CHECKPOINT,
    "safetensors": SAFETENSORS,
    "state": STATE,
    "labels": LABELS,
    "images": IMAGES,
    "zips": ZIPS,
}
