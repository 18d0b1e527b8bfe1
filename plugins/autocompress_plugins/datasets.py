"""Small data sets that need no network, as `module:function` factories of (train, test), each (inputs, targets)."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autocompress.errors import DataError

Part = tuple[NDArray[np.float32], NDArray[np.int64]]
"""Inputs of shape (N, 1, height, width) or (N, columns), and class numbers of shape (N,)."""

TABLES = ("breast_cancer", "digits", "wine")
"""Tables that scikit-learn brings along."""

MOST_BYTES = 1 << 30
"""Of one file, unpacked."""

PARTS = ("train", "t10k")
"""What MNIST's files call the training and the test part."""


def digits(test_size: int = 1000, seed: int = 0) -> tuple[Part, Part]:
    """The 1,797 digits in scikit-learn, enlarged from 8x8 to 32x32 and standardised; 10 classes.

    Args:
        test_size: examples of the test part, drawn with the classes in proportion.

    Raises:
        DataError: a part of that size cannot have all classes.
    """
    import torch
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels.astype(np.float32)).reshape(-1, 1, 8, 8) / 16
    inputs = torch.nn.functional.interpolate((images - 0.305) / 0.376, size=32, mode="bilinear").numpy()  # (1797, 1, 32, 32)
    train, test = _split(labels, test_size, seed)
    return (inputs[train], labels[train]), (inputs[test], labels[test])


def table(name: str = "breast_cancer", test_size: int = 300, seed: int = 0) -> tuple[Part, Part]:
    """A table of numbers with a class for each row: breast_cancer (569 rows, 30 columns, 2 classes), wine (178, 13, 3), digits.

    Each column has mean 0 and standard deviation 1 on the training part; one that is constant there is left at 0.

    Args:
        test_size: rows of the test part, drawn with the classes in proportion.

    Raises:
        DataError: there is no such table, or a part of that size cannot have all classes.
    """
    from sklearn import datasets

    if name not in TABLES:
        raise DataError(f"data.kwargs.name: no table '{name}'; expected one of {', '.join(TABLES)}")
    columns, labels = getattr(datasets, f"load_{name}")(return_X_y=True)
    train, test = _split(labels, test_size, seed)
    mean, deviation = columns[train].mean(axis=0), columns[train].std(axis=0)
    inputs = ((columns - mean) / np.where(deviation > 0, deviation, 1.0)).astype(np.float32)
    return (inputs[train], labels[train]), (inputs[test], labels[test])


def _split(labels: NDArray[np.int64], test_size: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of the training and of the test part."""
    from sklearn.model_selection import train_test_split

    try:
        train, test = train_test_split(np.arange(len(labels)), test_size=test_size, stratify=labels, random_state=seed)
    except ValueError as error:
        raise DataError(f"data.kwargs.test_size={test_size}: {error}") from None
    return train, test


def idx_images(folders: Sequence[str], root: str = ".", mean: float = 0.0, std: float = 1.0) -> tuple[Part, Part]:
    """MNIST or a data set in its format, from the first folder that has its four files, packed with gzip or not.

    Args:
        folders: where to look, relative to `root`.
        mean, std: of pixel / 255.

    Raises:
        DataError: no folder has the files, or one of them is damaged.
    """
    places = [Path(root).expanduser() / folder for folder in folders]
    for place in places:
        if all(_find(place, name) for part in PARTS for name in _names(part)):
            train, test = (_read_part(place, part, mean, std) for part in PARTS)
            return train, test
    files, looked = " and ".join(f"{name}[.gz]" for part in PARTS for name in _names(part)), ", ".join(map(str, places))
    remedy = (
        "apt-get install dataset-fashion-mnist, or torchvision.datasets.FashionMNIST(ROOT, download=True) and data.root=ROOT"
    )
    raise DataError(f"data: no complete MNIST or Fashion-MNIST in {looked}; expected {files}; get them: {remedy}")


def _names(part: str) -> tuple[str, str]:
    return f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"


def _find(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _read_part(folder: Path, part: str, mean: float, std: float) -> Part:
    images, labels = (_read_idx(folder, name, axes) for name, axes in zip(_names(part), (3, 1), strict=True))
    if len(images) != len(labels):
        raise DataError(f"data: {folder}: {len(images)} {part} images and {len(labels)} labels; expected as many of each")
    inputs = images[:, None].astype(np.float32)  # (N, 1, height, width)
    inputs -= 255 * mean
    inputs /= 255 * std
    return inputs, labels.astype(np.int64)


def _read_idx(folder: Path, name: str, axes: int) -> NDArray[np.uint8]:
    """One file: two zero bytes, the type (8: bytes), the number of axes, their lengths (big endian), the values."""
    path = _find(folder, name)
    assert path is not None
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            header = file.read(4 + 4 * axes)
            if header[:4] != bytes((0, 0, 8, axes)):
                raise ValueError(f"it begins with {header[:4].hex(' ')}; expected bytes on {axes} axes: 00 00 08 {axes:02x}")
            shape = np.frombuffer(header, ">u4", axes, offset=4).tolist()
            count = math.prod(shape)
            content = file.read(min(count, MOST_BYTES) + 1)
        if len(content) != count:
            raise ValueError(f"{len(content)} values or more; expected {' x '.join(map(str, shape))}")
        return np.frombuffer(content, np.uint8).reshape(shape)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"data: {path} is not a complete IDX file ({error}); fetch it again") from None
