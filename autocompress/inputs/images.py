"""Image folders, as directories or zips, and how an image becomes a model's input."""

from __future__ import annotations

import io
import math
import os
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from autocompress.errors import ConfigError, DataError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
MOST_BYTES = 1 << 28
"""Of one image file; a zip of a few kilobytes can hold gigabytes."""


class Interpolation(Enum):
    """How a resized pixel is computed; PIL filters the image first where it shrinks."""

    nearest = Image.Resampling.NEAREST
    bilinear = Image.Resampling.BILINEAR
    bicubic = Image.Resampling.BICUBIC


@dataclass
class ImageSettings:
    """From image to input, in the order of the fields.

    Attributes:
        grayscale: one channel instead of three.
        resize: pixels of the short side, the aspect ratio kept; 0: as it is.
        interpolation: of `resize`.
        crop: side of the central square in pixels; 0: all of it.
        mean: of each channel after division by 255; empty: 0.
        std: of each channel after division by 255; empty: 1.
    """

    grayscale: bool = False
    resize: int = 0
    interpolation: Interpolation = Interpolation.bilinear
    crop: int = 0
    mean: list[float] = field(default_factory=list)
    std: list[float] = field(default_factory=list)


def check_image_settings(settings: ImageSettings) -> None:
    """Refuse settings that no image can satisfy.

    Raises:
        ConfigError: a negative size, a mean or std of the wrong length or not finite, or a std that is not positive.
    """
    channels = 1 if settings.grayscale else 3
    for name, values in (("mean", settings.mean), ("std", settings.std)):
        if len(values) not in (0, 1, channels):
            raise ConfigError(f"data.image.{name}: {len(values)} values; expected one for each of {channels} channels, or none")
    if not all(0 < value < math.inf for value in settings.std):
        raise ConfigError(f"data.image.std: {list(settings.std)}; expected positive numbers")
    if not all(math.isfinite(value) for value in settings.mean):
        raise ConfigError(f"data.image.mean: {list(settings.mean)}; expected finite numbers")
    if settings.resize < 0 or settings.crop < 0:
        raise ConfigError(f"data.image: resize={settings.resize} crop={settings.crop}; expected pixels, or 0 for none")


def to_input(image: Image.Image, settings: ImageSettings) -> NDArray[np.float32]:
    """The model's input for one image: float32, shape (channels, height, width).

    Raises:
        ValueError: the image is smaller than the crop, has more than 8 bits a channel, or is so long that resizing it
            would take more pixels than `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    if image.mode[0] in "IF":  # PIL would clip these to white without a word
        raise ValueError(f"pixels of mode '{image.mode}'; expected 8 bits a channel")
    image = _cropped(_resized(image.convert("L" if settings.grayscale else "RGB"), settings), settings.crop)
    pixels = np.atleast_3d(np.asarray(image, dtype=np.float32)) / np.float32(255)  # (height, width, channels)
    return normalised(pixels.transpose(2, 0, 1), settings.mean, settings.std)


def normalised(inputs: NDArray[np.float32], mean: Sequence[float], std: Sequence[float]) -> NDArray[np.float32]:
    """(inputs - mean) / std for inputs (..., channels, height, width); an empty list leaves that step out."""
    shift, scale = (np.asarray(values or [neutral], np.float32)[:, None, None] for values, neutral in ((mean, 0), (std, 1)))
    return np.ascontiguousarray((inputs - shift) / scale)


def _resized(image: Image.Image, settings: ImageSettings) -> Image.Image:
    """The long side rounds down, as torchvision's Resize does, so that published accuracies are reproduced."""
    short = min(image.size)
    if settings.resize in (0, short):
        return image
    width, height = (settings.resize * side // short for side in image.size)
    if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
        raise ValueError(f"{image.width}x{image.height} pixels would become {width}x{height} by data.image.resize")
    return image.resize((width, height), settings.interpolation.value)


def _cropped(image: Image.Image, side: int) -> Image.Image:
    if not side:
        return image
    if min(image.size) < side:
        raise ValueError(f"{image.width}x{image.height} pixels, smaller than data.image.crop={side}; set data.image.resize")
    left, top = round((image.width - side) / 2), round((image.height - side) / 2)
    return image.crop((left, top, left + side, top + side))


@dataclass(frozen=True)
class ImageFolder:
    """Labelled images that are decoded one at a time, when they are read.

    Attributes:
        path: the directory or zip.
        names: of the files, relative to `path`, sorted.
        classes: names of the classes in alphabetical order; a label is an index into them.
        labels: int64, shape (N,).
        read: the bytes of a name.
    """

    path: Path
    names: Sequence[str]
    classes: Sequence[str]
    labels: NDArray[np.int64]
    read: Callable[[str], bytes]

    def load(self, index: int, settings: ImageSettings) -> NDArray[np.float32]:
        """Input number `index`: float32, shape (channels, height, width).

        Raises:
            DataError: the file is not an image, is cut short, or does not fit the settings.
        """
        name = self.names[index]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with Image.open(io.BytesIO(self.read(name))) as image:
                    return to_input(image, settings)
        except UnidentifiedImageError:  # its own message shows a memory address
            reason = "not an image that PIL knows"
        except Exception as error:  # of a damaged file, whatever zipfile or the decoder meets: struct.error, IndexError, ...
            reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"data: {self.path}: {name!r} cannot be used: {reason}; repair or remove it")


def open_image_folder(path: Path) -> ImageFolder:
    """List a directory or zip of `class/name.jpg`; nothing is extracted or decoded yet.

    Links of a directory are followed, but for those that lead back to a folder that they lie in.

    Raises:
        DataError: it is neither, holds no image in a class folder, or is a zip with absolute or parent paths.
    """
    names, read = _zip_files(path) if path.is_file() else _directory_files(path)
    parts = {name: PurePosixPath(name).parts for name in names}
    images = sorted(name for name in names if PurePosixPath(name).suffix.lower() in SUFFIXES and not _hidden(parts[name]))
    depth = _shared_depth([parts[name] for name in images])
    images = [name for name in images if len(parts[name]) > depth + 1]
    if not images:
        raise DataError(f"data: {path} holds no images; expected class/name.jpg in it ({len(names)} files seen)")
    folders = [parts[name][depth] for name in images]
    classes = sorted(set(folders))
    index = {name: label for label, name in enumerate(classes)}
    return ImageFolder(path, images, classes, np.asarray([index[folder] for folder in folders], np.int64), read)


def _zip_files(path: Path) -> tuple[list[str], Callable[[str], bytes]]:
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # zipfile passes on what a damaged directory leads it to: struct.error, NotImplementedError, ...
        raise DataError(f"data: {path} is not a readable zip: {error}; expected a zip of class/name.jpg") from None
    entries = {entry.filename: entry for entry in archive.infolist() if entry.filename and not entry.is_dir()}
    outside = [name for name in entries if name.startswith("/") or ".." in PurePosixPath(name).parts]
    if outside:
        raise DataError(f"data: {path} holds {outside[0]!r}, a path that leads out of it; expected class/name.jpg within it")

    def read(name: str) -> bytes:
        _check_size(entries[name].file_size)
        return archive.read(entries[name])

    return list(entries), read


def _directory_files(path: Path) -> tuple[list[str], Callable[[str], bytes]]:
    names = []
    for folder, inner, files in os.walk(path, followlinks=True):
        inner[:] = [name for name in inner if not _leads_back(Path(folder) / name, path)]
        names += [(Path(folder) / file).relative_to(path).as_posix() for file in files]

    def read(name: str) -> bytes:
        if not (path / name).is_file():
            raise ValueError("not a regular file")  # a pipe or a device would never end
        _check_size((path / name).stat().st_size)
        return (path / name).read_bytes()

    return names, read


def _leads_back(folder: Path, root: Path) -> bool:
    """Whether it is a link to a folder that it lies in, which would hold every image again and again."""
    if not folder.is_symlink():
        return False
    above = [parent.resolve() for parent in folder.parents if parent.is_relative_to(root)]
    return any(parent.is_relative_to(folder.resolve()) for parent in above)


def _check_size(size_bytes: int) -> None:
    if size_bytes > MOST_BYTES:
        raise ValueError(f"{size_bytes:,} bytes; expected at most {MOST_BYTES:,} for one image")


def _hidden(parts: tuple[str, ...]) -> bool:
    """Zips made on macOS carry a shadow of each file."""
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def _shared_depth(paths: Sequence[tuple[str, ...]]) -> int:
    """Folders above the classes: zipping a folder keeps the folder's own name on top of everything."""
    depth = 0
    while paths and all(len(path) > depth + 2 for path in paths) and len({path[depth] for path in paths}) == 1:
        depth += 1
    return depth
