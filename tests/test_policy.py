"""Policies on disk: exact, comparable by their digest, and refused in one line when they are not policies."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from autocompress import ChannelPolicy, LayerPolicy, Policy
from autocompress.errors import PolicyError
from autocompress.policy import FLOAT_BITS, INTEGER_BITS, TENSOR_BITS, SavedPolicy, load_policy, load_saved_policy

POLICY = Policy(
    # names that YAML would read as a number, a truth value and nothing, were they not quoted
    layers={
        "0": LayerPolicy("int8", 8),
        "on": LayerPolicy("int4", 4, "sparse", 1 / 3),
        "null": LayerPolicy(None, 32, "sparse", 1e-05),
        "körper.1:": LayerPolicy(),
    },
    channels={"stem": ChannelPolicy("importance", 0.1 + 0.2)},
    ops={"n7": "float"},
    observers={"relu_1": "percentile", "y": "minmax"},
)
SAVED = SavedPolicy(POLICY, model="1" * 64, state_sha256="2e5", artifact_sha256="ab")


def write(folder: Path, text: str, name: str = "policy.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_saved_policy_survives_the_disk(tmp_path: Path) -> None:
    SAVED.save(tmp_path / "policy.yaml")
    assert load_saved_policy(tmp_path / "policy.yaml") == SAVED
    assert load_policy(tmp_path / "policy.yaml") == POLICY


def test_json_is_read_as_exactly(tmp_path: Path) -> None:
    path = write(
        tmp_path, json.dumps({"model": "m", "state_sha256": "s", "artifact_sha256": "a", **POLICY.to_dict()}), "policy.json"
    )
    assert load_policy(path) == POLICY
    assert load_saved_policy(path) == SavedPolicy(POLICY, "m", "s", "a")


def test_what_is_left_out_is_the_default(tmp_path: Path) -> None:
    path = write(tmp_path, "version: 1\nlayers: {head: {quantizer: int8, bits: 8}}\n")
    assert load_policy(path) == Policy({"head": LayerPolicy("int8", 8)})


def test_policy_from_before_structures_is_read(tmp_path: Path) -> None:
    """The keys that the first release wrote."""
    lines = [
        "version: 1",
        "layers: {head: {quantizer: int8, bits: 8, pruner: sparse, sparsity: 0.5}}",
        "channels: {stem: {pruner: sparse, sparsity: 0.25}}",
        "ops: {n7: float}",
    ]
    expected = Policy({"head": LayerPolicy("int8", 8, "sparse", 0.5)}, {"stem": ChannelPolicy("sparse", 0.25)}, {"n7": "float"})
    assert load_policy(write(tmp_path, "\n".join(lines))) == expected


def test_structure_survives_the_disk_and_says_so_without_quotes(tmp_path: Path) -> None:
    policy = Policy({"head": LayerPolicy("int8", 8, "sparse", 0.5, "2:4"), "stem": LayerPolicy(pruner="sparse", threshold=0.1)})
    SavedPolicy(policy, "m", "s", "a").save(tmp_path / "policy.yaml")
    assert load_policy(tmp_path / "policy.yaml") == policy
    path = write(tmp_path, "version: 1\nlayers: {head: {pruner: sparse, structure: 2:4}}")
    with pytest.raises(PolicyError, match="layers: head: structure: 124; expected text: YAML needs quotes"):
        load_policy(path)


@pytest.mark.parametrize(
    ("layer", "prunes"),
    [
        (LayerPolicy(), False),
        (LayerPolicy("int8", 8, "sparse"), False),
        (LayerPolicy(pruner="sparse", sparsity=0.1), True),
        (LayerPolicy(pruner="sparse", threshold=0.0), True),
        (LayerPolicy(pruner="sparse", structure="2:4"), True),
    ],
)
def test_what_prunes(layer: LayerPolicy, prunes: bool) -> None:
    assert layer.prunes == Policy({"head": layer}).prunes == prunes


def test_share_that_follows_is_no_decision() -> None:
    by_share, by_score = LayerPolicy(pruner="sparse", sparsity=0.3), LayerPolicy(pruner="sparse", sparsity=0.3, threshold=1.0)
    assert by_share.decision == by_share
    assert by_score.decision == replace(by_score, sparsity=0.0)
    assert LayerPolicy(pruner="sparse", sparsity=0.5, structure="2:4").decision.sparsity == 0
    assert ChannelPolicy("sparse", 0.3).decision == ChannelPolicy("sparse", 0.3)
    assert ChannelPolicy("sparse", 0.3, 1.0).decision == ChannelPolicy("sparse", 0.0, 1.0)


def test_digest_is_equal_exactly_when_the_decisions_are() -> None:
    reordered = replace(POLICY, layers=dict(reversed(list(POLICY.layers.items()))))
    assert list(reordered.layers) != list(POLICY.layers)
    assert reordered.digest == POLICY.digest
    others = [
        Policy(),
        replace(POLICY, ops={}),
        replace(POLICY, observers={}),
        replace(POLICY, channels={"stem": ChannelPolicy("importance", 0.3)}),
        replace(POLICY, layers={**POLICY.layers, "0": LayerPolicy("int8", 7)}),
        replace(POLICY, layers={**POLICY.layers, "on": LayerPolicy("int4", 4, "sparse", 0.3333)}),
    ]
    assert len({policy.digest for policy in [POLICY, *others]}) == 1 + len(others)


def test_digest_of_a_policy_without_observers_is_what_it_was_before_there_were_any() -> None:
    assert Policy({"stem": LayerPolicy("int8", 8)}, ops={"n7": "float"}).digest == "6560b3aed7415ac6"


MALFORMED = {
    "empty": "",
    "text": "just words",
    "list": "- 1\n- 2\n",
    "broken": "version: 1\nlayers: {head: [unclosed\n",
    "tag": "!!python/object/apply:os.system ['true']",
    "no version": "layers: {}",
    "other version": "version: 2",
    "layers are a list": "version: 1\nlayers: [head]",
    "layers are nothing": "version: 1\nlayers:",
    "a layer is a word": "version: 1\nlayers: {head: int8}",
    "unknown key": "version: 1\nlayers: {head: {quantiser: int8}}",
    "unknown channel key": "version: 1\nchannels: {head: {bits: 8}}",
    "ops are a word": "version: 1\nops: float",
    "ops are a list": "version: 1\nops: [a, b]",
    "bits are a word": "version: 1\nlayers: {head: {quantizer: int8, bits: eight}}",
    "bits are a fraction": "version: 1\nlayers: {head: {quantizer: int8, bits: 7.5}}",
    "bits are a truth value": "version: 1\nlayers: {head: {quantizer: int8, bits: on}}",
    "too many bits": "version: 1\nlayers: {head: {quantizer: int8, bits: 64}}",
    "share above one": "version: 1\nlayers: {head: {pruner: sparse, sparsity: 1.5}}",
    "share is no number": "version: 1\nlayers: {head: {pruner: sparse, sparsity: .nan}}",
    "share of channels below nothing": "version: 1\nchannels: {head: {pruner: sparse, sparsity: -0.5}}",
    "threshold is infinite": "version: 1\nlayers: {head: {pruner: sparse, threshold: .inf}}",
    "unknown activation": "version: 1\nlayers: {head: {quantizer: int8, bits: 8, activation: fast}}",
    "unknown precision": "version: 1\nops: {n7: fp8}",
    "a name is a number": "version: 1\nlayers: {0: {quantizer: int8, bits: 8}}",
    "a day": "version: 1\nobservers: {y: 2026-01-01}",
    "tag of nothing": "!!bool x",
    "tag of an empty number": "version: !!int ''",
    "deep": "[" * 4000,
    "bomb": "a: &a [x,x,x,x,x,x,x,x]\n"
    + "".join(
        f"{b}: &{b} [*{a},*{a},*{a},*{a},*{a},*{a},*{a},*{a}]\n"
        for a, b in zip("abcdefghijklmno", "bcdefghijklmnop", strict=True)
    )
    + "version: 1\nops: {n7: *p}",
}


@pytest.mark.parametrize("text", MALFORMED.values(), ids=MALFORMED)
def test_malformed_file_is_told_in_one_line(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(PolicyError) as caught:
        load_policy(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_binary_file_is_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_bytes(b"\x08\x0a\xff\xfe\x00")
    with pytest.raises(PolicyError, match=r"policy\.yaml: not YAML or JSON"):
        load_policy(path)


def test_broken_json_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"policy\.json: not YAML or JSON"):
        load_policy(write(tmp_path, '{"version": 1,\n', "policy.json"))


def test_missing_file_and_folder_are_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"absent\.yaml: no such file"):
        load_policy(tmp_path / "absent.yaml")
    with pytest.raises(PolicyError, match="Is a directory"):
        load_policy(tmp_path)


def test_version_that_was_found_is_named(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="not a policy of version 1: found version 2"):
        load_policy(write(tmp_path, "version: 2"))


def test_policy_without_hashes_is_no_result(tmp_path: Path) -> None:
    path = write(tmp_path, "version: 1\nmodel: abc\n")
    assert load_policy(path) == Policy()
    with pytest.raises(PolicyError, match=r"no state_sha256, artifact_sha256: expected a policy\.yaml that a search saved"):
        load_saved_policy(path)


def test_widths_are_those_of_the_types_in_a_file() -> None:
    """A float32 has 32 bits; kernels compute with bytes, and what is rounded more finely has two of them."""
    assert (INTEGER_BITS, FLOAT_BITS) == (8, 32)
    assert TENSOR_BITS == (8, 16, 32)


def test_what_removes_channels() -> None:
    assert not ChannelPolicy().prunes
    assert ChannelPolicy("importance", 0.5).prunes
    assert ChannelPolicy("importance", threshold=0.1).prunes


def test_the_ends_of_what_is_possible_are_possible() -> None:
    everything = LayerPolicy("binary", 1, "sparse", 1.0)
    assert (everything.bits, everything.sparsity) == (1, 1.0)
    assert ChannelPolicy("sparse", 1.0).sparsity == 1.0


def test_hashes_stand_above_the_decisions(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    SAVED.save(path)
    assert path.read_text(encoding="utf-8").splitlines()[0].startswith("model: ")
