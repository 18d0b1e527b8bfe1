"""Checkpoints for `model.state_dict`, and the state beside a saved policy."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from random import Random

import numpy as np
import safetensors.torch
import torch
from torch import nn

from autocompress.building.candidate import load_state, save_state
from autocompress.components import CompressedLayer, QuantizedTensor
from autocompress.inputs.models import load_weights
from autocompress.tensors.compress import CompressedModel
from autocompress.tensors.ranges import Range
from tests.fuzz.mutation import mutated_bytes, mutated_json
from tests.fuzz.scratch_file import scratch_file, scratch_folder
from tests.fuzz.target import Target

HEADER = 8
"""Bytes of the length of a safetensors header."""


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def saved(content: object) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def read_checkpoint(data: bytes) -> None:
    model = net()
    load_weights(model, scratch_file("weights.pt", data))
    assert all(part.dtype in (torch.float32, torch.int64) and part.device.type == "cpu" for part in model.state_dict().values())


def read_safetensors(data: bytes) -> None:
    load_weights(net(), scratch_file("weights.safetensors", data))


def read_state(data: bytes) -> None:
    load_state(scratch_file("state.safetensors", data))


def mutated_archive(data: bytes, random: Random) -> bytes:
    """The pickle within a zip, so that its checksum fits."""
    if random.random() < 0.2:
        return mutated_bytes(data, random)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as old:
            parts = [(entry.filename, old.read(entry)) for entry in old.infolist()]
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, NotImplementedError, EOFError, LookupError):
        return mutated_bytes(data, random)
    chosen = random.randrange(len(parts)) if parts and random.random() < 0.3 else 0
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as new:
        for place, (name, content) in enumerate(parts):
            new.writestr(name, mutated_bytes(content, random) if place == chosen else content)
    return stream.getvalue()


def mutated_tensors(data: bytes, random: Random) -> bytes:
    """The header of a safetensors file, so that its length fits."""
    length = int.from_bytes(data[:HEADER], "little")
    if random.random() < 0.3 or length > len(data):
        return mutated_bytes(data, random)
    header = mutated_json(data[HEADER : HEADER + length], random)
    return len(header).to_bytes(HEADER, "little") + header + data[HEADER + length :]


def state() -> bytes:
    codes = QuantizedTensor(torch.ones(2, 3, dtype=torch.int8), torch.ones(2), torch.zeros(2, dtype=torch.int8), 0, 8)
    layers = {
        "0": CompressedLayer(codes, torch.zeros(2), torch.ones(2, 3, dtype=torch.bool)),
        "1": CompressedLayer(torch.ones(2, 2), None),
    }
    path = scratch_folder() / "seed.safetensors"
    save_state(CompressedModel(layers, {"input": Range(0.1, 3)}, {"g": torch.tensor([0, 2])}), path)
    return path.read_bytes()


def odd() -> list[bytes]:
    """What is no state dict of plain float tensors."""
    model = net().state_dict()
    some: list[object] = [
        {"state_dict": model},
        {f"module.{name}": value for name, value in model.items()},
        {**model, "0.weight": torch.ones(2, 3, dtype=torch.complex64)},
        {**model, "0.weight": torch.ones(2, 3).to_sparse()},
        {**model, "0.weight": torch.ones(2, 3, device="meta")},
        {**model, "0.weight": torch.full((2, 3), float("nan"))},
        {**model, "0.weight": torch.ones(2, 3, dtype=torch.float16)},
        {**model, 3: torch.ones(1)},
        [model],
        {"0.weight": np.ones(3).tolist()},
    ]
    return [saved(model), *map(saved, some), pickle.dumps(model), json.dumps({"a": 1}).encode()]


CHECKPOINT = Target(odd(), read_checkpoint, mutated_archive, runs=30_000)
SAFETENSORS = Target([safetensors.torch.save(net().state_dict())], read_safetensors, mutated_tensors, runs=40_000)
STATE = Target([state()], read_state, mutated_tensors, runs=40_000)
