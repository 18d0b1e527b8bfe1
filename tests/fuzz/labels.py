"""Images and labels in MNIST's format, packed and not."""

from __future__ import annotations

import gzip
import struct
import zlib
from random import Random

import numpy as np
from autocompress_plugins.datasets import idx_images

from tests.fuzz.mutation import mutated_bytes
from tests.fuzz.scratch_file import scratch_file, scratch_folder
from tests.fuzz.target import Target

PACKED = b"\x1f\x8b"


def idx(*shape: int, kind: int = 8) -> bytes:
    count = int(np.prod(shape))
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, kind, len(shape), *shape) + bytes(value % 10 for value in range(count))


def read(data: bytes) -> None:
    """The first byte says which of the files it is."""
    names = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
    mine = data[0] % 2 if data else 0
    for place, (name, valid) in enumerate(zip(names, (idx(4, 3, 3), idx(4)), strict=True)):
        content = data[1:] if place == mine else valid
        for part in ("train", "t10k"):
            stem = name.replace("train", part)
            for suffix in ("", ".gz"):
                (scratch_folder() / f"{stem}{suffix}").unlink(missing_ok=True)
            scratch_file(stem + (".gz" if content.startswith(PACKED) else ""), content)
    train, test = idx_images([str(scratch_folder())])
    for inputs, labels in (train, test):
        assert inputs.shape[0] == labels.shape[0] and inputs.ndim == 4 and labels.ndim == 1
        assert inputs.dtype == np.float32 and labels.dtype == np.int64


def mutate(data: bytes, random: Random) -> bytes:
    """A header's numbers are replaced by others; what is packed is changed within."""
    if data[1:3] == PACKED and random.random() < 0.7:
        try:
            return data[:1] + gzip.compress(mutate(b"\0" + gzip.decompress(data[1:]), random)[1:], 1)
        except (OSError, EOFError, ValueError, zlib.error):
            return mutated_bytes(data, random)
    if random.random() < 0.5:
        return mutated_bytes(data, random)
    axes = random.choice((0, 1, 2, 3, 4, 40, 255))
    sizes = [random.choice((0, 1, 3, 4, 36, 2**16, 2**31, 2**32 - 1)) for _ in range(min(axes, 5))]
    return data[:1] + struct.pack(f">BBBB{len(sizes)}I", 0, 0, random.choice((8, 9, 13, 14, 0)), axes, *sizes) + data[17:]


SEEDS = [b"\0" + idx(4, 3, 3), b"\1" + idx(4), b"\0" + gzip.compress(idx(4, 3, 3)), b"\1" + gzip.compress(idx(4))]
LABELS = Target(SEEDS, read, mutate, runs=60_000)
