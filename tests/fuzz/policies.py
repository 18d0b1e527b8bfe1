"""Policy files: what is read is written, and read again, as the same decisions."""

from __future__ import annotations

import json

import yaml

from autocompress import ChannelPolicy, LayerPolicy, Policy
from autocompress.policy import SavedPolicy, load_policy, load_saved_policy
from tests.fuzz.mutation import mutated_bytes, mutated_json
from tests.fuzz.scratch_file import scratch_file, scratch_folder
from tests.fuzz.target import Target

POLICY = Policy(
    layers={
        "0": LayerPolicy("int8", 8, "sparse", 1 / 3, activation="dynamic"),
        "stem.on": LayerPolicy("int4", 4, "sparse", 0.5, "2:4"),
        "head": LayerPolicy(None, 32, "sparse", threshold=1e-05),
    },
    channels={"stem": ChannelPolicy("importance", 0.25), "a": ChannelPolicy("importance", threshold=0.5)},
    ops={"n7": "float"},
    tensors={"t3": 16},
    observers={"t1": "percentile"},
)
CONTENT = {"model": "1" * 64, "state_sha256": "2e5", "artifact_sha256": "ab", **POLICY.to_dict()}


def read_json(data: bytes) -> None:
    path = scratch_file("policy.json", data)
    policy = load_policy(path)
    assert Policy.from_dict(json.loads(json.dumps(policy.to_dict()))) == policy
    assert len(policy.digest) == 16
    load_saved_policy(path)


def read_yaml(data: bytes) -> None:
    policy = load_policy(scratch_file("policy.yaml", data))
    SavedPolicy(policy, "a", "b", "c").save(scratch_folder() / "again.yaml")
    assert load_policy(scratch_folder() / "again.yaml") == policy


POLICY_JSON = Target([json.dumps(CONTENT).encode(), b'{"version": 1}'], read_json, mutated_json, runs=220_000)
POLICY_YAML = Target(
    [yaml.safe_dump(CONTENT).encode(), b"version: 1\nlayers: {a: &x {bits: 8, quantizer: int8}, b: *x}\n"],
    read_yaml,
    mutated_bytes,
    runs=50_000,
)
