"""What is done to each layer: a value that can be saved, read back and applied exactly."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from autocompress.errors import PolicyError
from autocompress.guarding.whole_file import write_whole
from autocompress.plain import from_fields

VERSION = 1
INTEGER_BITS = 8
"""Activations of so many bits have integer kernels."""

FLOAT_BITS = 32
TENSOR_BITS = (INTEGER_BITS, 16, FLOAT_BITS)

UNSTRUCTURED = "unstructured"

Precision = Literal["integer", "dynamic", "float"]
Activation = Literal["static", "dynamic", "float"]


def _check_removal(sparsity: float, threshold: float | None) -> None:
    if not 0 <= sparsity <= 1:
        raise PolicyError(f"sparsity {sparsity}: expected a share, 0 to 1")
    if threshold is not None and not math.isfinite(threshold):
        raise PolicyError(f"threshold {threshold}: expected a finite score, or null for none")


@dataclass(frozen=True)
class LayerPolicy:
    """What is done to one layer.

    Attributes:
        quantizer: None keeps the weights in float.
        bits: of the weights.
        pruner: ranks the weights; None removes none.
        sparsity: share of the weights set to zero; with a threshold, the share that it is expected to reach.
        structure: `unstructured`, or `n:m`: of each m neighbouring inputs the n best stay, whatever `sparsity` says.
        threshold: remove every weight whose score is not above it, whatever share that is.
        activation: `static`: integer with a fixed range; `dynamic`: with a range found at run time; `float`: the weight is only
            stored in codes.
    """

    quantizer: str | None = None
    bits: int = FLOAT_BITS
    pruner: str | None = None
    sparsity: float = 0.0
    structure: str = UNSTRUCTURED
    threshold: float | None = None
    activation: Activation = "static"

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= FLOAT_BITS:
            raise PolicyError(f"bits {self.bits:g}: expected 1 to {FLOAT_BITS}")
        _check_removal(self.sparsity, self.threshold)

    @property
    def prunes(self) -> bool:
        """Whether single weights are removed."""
        return self.sparsity > 0 or self.threshold is not None or self.structure != UNSTRUCTURED

    @property
    def decision(self) -> LayerPolicy:
        """The same without a sparsity that follows from structure or threshold."""
        follows = self.threshold is not None or self.structure != UNSTRUCTURED
        return replace(self, sparsity=0.0) if follows else self


@dataclass(frozen=True)
class ChannelPolicy:
    """Channels of one dependency group.

    Attributes:
        pruner: ranks the channels.
        sparsity: share of the channels that is removed; with a threshold, the share that it is expected to reach.
        threshold: remove the channels whose score is not above it, whatever share that is.
    """

    pruner: str | None = None
    sparsity: float = 0.0
    threshold: float | None = None

    def __post_init__(self) -> None:
        _check_removal(self.sparsity, self.threshold)

    @property
    def prunes(self) -> bool:
        """Whether channels are removed."""
        return self.sparsity > 0 or self.threshold is not None

    @property
    def decision(self) -> ChannelPolicy:
        """The same without a sparsity that follows from the threshold."""
        return self if self.threshold is None else replace(self, sparsity=0.0)


@dataclass(frozen=True)
class Policy:
    """Decisions for a whole model.

    Attributes:
        layers: layer name to its weight policy; a layer that is not named stays in float.
        channels: channel group name to the share removed; a group that is not named is kept whole.
        ops: name of an operator without weights to its precision: `integer` quantizes its inputs, `dynamic` (a product of two
            activations) finds their ranges at run time; not named: integer when all its inputs are quantized anyway.
        tensors: activation tensor to its bits, 8, 16 or 32 (float): rounded even where nothing integer reads it; not named: 8
            where something does. Only 8 bits have integer kernels: what reads more computes in float.
        observers: quantized activation tensor to the observer that gives its range, where that is not the configured one.
    """

    layers: Mapping[str, LayerPolicy] = field(default_factory=dict)
    channels: Mapping[str, ChannelPolicy] = field(default_factory=dict)
    ops: Mapping[str, Precision] = field(default_factory=dict)
    tensors: Mapping[str, int] = field(default_factory=dict)
    observers: Mapping[str, str] = field(default_factory=dict)

    @property
    def prunes(self) -> bool:
        """Whether weights or channels are removed anywhere."""
        return any(layer.prunes for layer in self.layers.values()) or any(group.prunes for group in self.channels.values())

    @property
    def digest(self) -> str:
        """Short hash that is equal exactly when the decisions are."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for YAML and JSON. A policy without observers is written as before there were any: its digest stays."""
        return {
            "version": VERSION,
            "layers": {name: asdict(layer) for name, layer in self.layers.items()},
            "channels": {name: asdict(group) for name, group in self.channels.items()},
            "ops": dict(self.ops),
            "tensors": dict(self.tensors),
            **({"observers": dict(self.observers)} if self.observers else {}),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Policy:
        """Inverse of `to_dict`.

        Raises:
            PolicyError: the mapping is not a policy of this version.
        """
        if not isinstance(values, Mapping) or values.get("version") != VERSION:
            found = values.get("version") if isinstance(values, Mapping) else type(values).__name__
            raise PolicyError(f"not a policy of version {VERSION}: found version {found!r}")
        decisions = {entry.name: values[entry.name] for entry in fields(cls) if entry.name in values}
        try:
            return from_fields(cls, decisions)
        except ValueError as error:
            raise PolicyError(f"not a policy: {error}") from error


@dataclass(frozen=True)
class SavedPolicy:
    """A policy on disk, tied to the model it was found for and to the tensors that make it exact.

    Attributes:
        model: hash of the FP32 graph (`BaseGraph.digest`).
        state_sha256: hash of the file with codes, ranges, kept channels and masks beside the policy.
        artifact_sha256: hash of the model file that policy and state give under the same versions.
    """

    policy: Policy
    model: str
    state_sha256: str
    artifact_sha256: str

    def save(self, path: Path) -> None:
        """Write YAML that a person can read and edit."""
        header = {"model": self.model, "state_sha256": self.state_sha256, "artifact_sha256": self.artifact_sha256}
        write_whole(path, yaml.safe_dump({**header, **self.policy.to_dict()}, sort_keys=False))


def _read_mapping(path: Path) -> dict[str, Any]:
    parse = json.loads if path.suffix == ".json" else yaml.safe_load  # YAML takes the JSON number 1e-05 for a word
    try:
        values = parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise PolicyError(f"policy {path}: no such file") from error
    except OSError as error:
        raise PolicyError(f"policy {path}: {error.strerror}") from error
    except Exception as error:  # PyYAML also passes on whatever its constructors meet, for example for `!!bool x`
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise PolicyError(f"policy {path}: not YAML or JSON: {reason}") from error
    if not isinstance(values, dict):
        raise PolicyError(f"policy {path}: expected a mapping, found {type(values).__name__}")
    return values


def _decisions(path: Path, values: Mapping[str, Any]) -> Policy:
    try:
        return Policy.from_dict(values)
    except PolicyError as error:
        raise PolicyError(f"policy {path}: {error}") from error


def load_policy(path: Path) -> Policy:
    """Read the decisions of a YAML or JSON policy file, saved by a search or written by hand.

    Raises:
        PolicyError: no such file, or not a policy.
    """
    return _decisions(path, _read_mapping(path))


def load_saved_policy(path: Path) -> SavedPolicy:
    """Read a policy that a search saved, with its hashes.

    Raises:
        PolicyError: no such file, not a policy, or one without the hashes (then it is a seed, not a result).
    """
    values = _read_mapping(path)
    hashes = ("model", "state_sha256", "artifact_sha256")
    missing = [name for name in hashes if not isinstance(values.get(name), str)]
    if missing:
        raise PolicyError(f"policy {path}: no {', '.join(missing)}: expected a policy.yaml that a search saved")
    return SavedPolicy(_decisions(path, values), *(values[name] for name in hashes))
