"""Image files, and zips of them."""

from __future__ import annotations

import io
import struct
import warnings
import zipfile
import zlib
from random import Random

import numpy as np
from PIL import Image

from autocompress.inputs.images import ImageFolder, ImageSettings, open_image_folder
from tests.fuzz.mutation import mutated_bytes
from tests.fuzz.scratch_file import scratch_file, scratch_folder
from tests.fuzz.target import Target

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
SETTINGS = ImageSettings(resize=6, crop=4, mean=[0.5, 0.5, 0.5], std=[0.2, 0.2, 0.2])
NAMES = (
    "../x/a.png",
    "/abs/a.png",
    "a/../../b.png",
    "..\\w\\a.png",
    "C:\\a\\b.png",
    "a/b.png",
    "b/b.PNG",
    "a//b.png",
    "a/\0.png",
    "",
)


def encoded(format: str, mode: str = "RGB") -> bytes:
    stream = io.BytesIO()
    pixels = np.arange(8 * 7 * 3, dtype=np.uint8).reshape(8, 7, 3)
    Image.fromarray(pixels).convert(mode).save(stream, format)
    return stream.getvalue()


def read_image(data: bytes) -> None:
    folder = ImageFolder(scratch_folder(), ["a/b.png"], ["a"], np.zeros(1, np.int64), lambda _: data)
    pixels = folder.load(0, SETTINGS)
    assert pixels.shape == (3, 4, 4) and pixels.dtype == np.float32 and np.isfinite(pixels).all()


def read_zip(data: bytes) -> None:
    folder = open_image_folder(scratch_file("images.zip", data))
    assert len(folder.names) == len(set(folder.names)) == len(folder.labels)
    assert not {"..", "/"} & set(folder.classes)
    for index in range(min(3, len(folder.names))):
        folder.load(index, SETTINGS)


def mutated_image(data: bytes, random: Random) -> bytes:
    """PNG's parts get their checksums again."""
    changed = mutated_bytes(data, random)
    if not changed.startswith(b"\x89PNG\r\n\x1a\n") or random.random() < 0.3:
        return changed
    fixed, at = bytearray(changed[:8]), 8
    while at + 12 <= len(changed):
        (length,) = struct.unpack_from(">I", changed, at)
        body = changed[at + 4 : at + 8 + min(length, len(changed))]
        fixed += struct.pack(">I", max(0, len(body) - 4)) + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + length
    return bytes(fixed)


def mutated_zip(data: bytes, random: Random) -> bytes:
    """Often a whole zip with odd names or contents."""
    if random.random() < 0.4:
        return mutated_bytes(data, random)
    stream = io.BytesIO()
    how = random.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with warnings.catch_warnings(), zipfile.ZipFile(stream, "w", how) as archive:
        warnings.simplefilter("ignore")  # a name may come twice
        for _ in range(random.randint(0, 4)):
            entry = zipfile.ZipInfo("x")
            entry.filename = random.choice(NAMES)
            entry.external_attr = random.choice((0, 0o120777 << 16, 0o010666 << 16))
            archive.writestr(entry, random.choice(SEEDS))
    content = stream.getvalue()
    return mutated_bytes(content, random) if random.random() < 0.3 else content


def archive() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as made:
        made.writestr("cat/a.png", encoded("PNG"))
        made.writestr("dog/b.jpg", encoded("JPEG"))
    return stream.getvalue()


SEEDS = [*map(encoded, FORMATS), *(encoded("PNG", mode) for mode in ("L", "P", "1", "RGBA", "LA"))]
IMAGES = Target(SEEDS, read_image, mutated_image, runs=50_000)
ZIPS = Target([archive()], read_zip, mutated_zip, runs=40_000)
