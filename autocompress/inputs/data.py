"""The data of a job: where examples come from, and which of them are for what."""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from autocompress.bounds import check_seed
from autocompress.errors import ConfigError, DataError
from autocompress.inputs.factories import call_factory
from autocompress.inputs.images import ImageFolder, ImageSettings, check_image_settings, open_image_folder, to_input
from autocompress.task import Examples, input_type

REST = -1
"""As a size: all examples that the other sets leave."""


@dataclass
class DataSettings:
    """Which data, from exactly one of `torchvision`, `folder_test` (with or without `folder_train`) and `factory`.

    Calibration and training examples come from the training part, search and report from the test part; where there is
    only one part, all four come from it. No two of them share an example.

    Attributes:
        name: names the study and the output folder.
        root: folder that relative paths start from.
        torchvision: name of a class in torchvision.datasets, kept under `root`.
        download: let torchvision fetch it.
        folder_train, folder_test: directory or zip of class/name.jpg.
        factory: 'module:function' that returns (train, test), each (inputs, targets) as arrays or a dataset of such pairs;
            train may be None.
        kwargs: arguments of the torchvision class or the factory.
        image: from image to input; arrays and tensors are taken as they are.
        calibration_size, search_size, report_size, train_size: numbers of examples; -1: all that are left, 0: none.
        seed: of the permutation that all sets are taken from.
    """

    name: str = "data"
    root: str = "."
    torchvision: str | None = None
    download: bool = False
    folder_train: str | None = None
    folder_test: str | None = None
    factory: str | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)
    image: ImageSettings = field(default_factory=ImageSettings)
    calibration_size: int = 128
    search_size: int = 500
    report_size: int = REST
    train_size: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Splits:
    """Disjoint sets of examples, each in random order; `train` is None when no training was asked for."""

    calibration: Examples
    search: Examples
    report: Examples
    train: Examples | None = None

    @property
    def digest(self) -> str:
        """Short hash of all values."""
        sets = (self.calibration, self.search, self.report, self.train)
        return hashlib.sha256("|".join(part.digest for part in sets if part).encode()).hexdigest()[:16]


def load_splits(settings: DataSettings) -> Splits:
    """Read just the examples that the sets need.

    Raises:
        ConfigError: not exactly one source, sizes that are no sizes, or image settings that no image can satisfy.
        DataError: a source is missing, empty, broken or too small.
    """
    _check_sizes(settings)
    check_image_settings(settings.image)
    train, test = _open_sources(settings)
    sizes = {name: int(getattr(settings, f"{name}_size")) for name in ("calibration", "search", "report", "train")}
    if train is None:
        return Splits(**_take(test, sizes, settings.seed))
    from_train = _take(train, {name: sizes[name] for name in ("calibration", "train")}, settings.seed)
    return Splits(**from_train, **_take(test, {name: sizes[name] for name in ("search", "report")}, settings.seed))


def stratified_permutation(labels: NDArray[np.generic], seed: int) -> NDArray[np.int64]:
    """A random order in which every prefix has the classes in proportion, each to within one example.

    Args:
        labels: shape (N, ...); anything but one integer for each example is permuted without regard to classes.

    Returns:
        Indices, shape (N,).
    """
    random = np.random.default_rng(seed)
    position = random.random(len(labels))
    if labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer):
        for label in np.unique(labels):
            members = np.flatnonzero(labels == label)
            # One member falls into each of as many equal parts of [0, 1) as the class has members.
            position[members] = (random.permutation(len(members)) + position[members]) / len(members)
    return np.argsort(position, kind="stable")


class _Source(Protocol):
    """Examples that are read by index."""

    @property
    def name(self) -> str: ...

    @property
    def labels(self) -> NDArray[np.generic]:
        """To stratify by, shape (N, ...)."""

    def read(self, indices: NDArray[np.int64]) -> Examples: ...


@dataclass(frozen=True)
class _Arrays:
    """Arrays or tensors in memory: inputs (N, ...), targets (N, ...)."""

    name: str
    inputs: NDArray[np.generic]
    labels: NDArray[np.generic]

    def read(self, indices: NDArray[np.int64]) -> Examples:
        return _examples(self.name, self.inputs[indices], self.labels[indices])


@dataclass(frozen=True)
class _Dataset:
    """Anything with a length and (input, target) items, as torch and torchvision have them."""

    name: str
    items: Any
    image: ImageSettings

    @property
    def labels(self) -> NDArray[np.generic]:
        """Most of torchvision's classes keep all labels in one of two attributes, which saves decoding every image."""
        kept = getattr(self.items, "targets", getattr(self.items, "labels", None))
        return _numeric(self.name, [self._item(index)[1] for index in range(len(self.items))] if kept is None else kept)

    def read(self, indices: NDArray[np.int64]) -> Examples:
        pairs = [self._item(int(index)) for index in indices]
        inputs = [self._input(one) for one, _ in pairs]
        return _examples(self.name, _stack(self.name, inputs), _numeric(self.name, [target for _, target in pairs]))

    def _item(self, index: int) -> tuple[Any, Any]:
        item = self.items[index]
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            raise DataError(f"{self.name}: item {index} is {type(item).__name__}; expected a pair (input, target)")
        return item[0], item[1]

    def _input(self, one: Any) -> NDArray[Any]:
        if not isinstance(one, Image.Image):
            return _numeric(self.name, one)
        try:
            return to_input(one, self.image)
        except ValueError as error:
            raise DataError(f"{self.name}: an image cannot be used: {error}") from None


@dataclass(frozen=True)
class _Images:
    """A folder of images."""

    name: str
    folder: ImageFolder
    image: ImageSettings

    @property
    def labels(self) -> NDArray[np.generic]:
        return self.folder.labels

    def read(self, indices: NDArray[np.int64]) -> Examples:
        inputs = [self.folder.load(int(index), self.image) for index in indices]
        return _examples(self.name, _stack(self.name, inputs), self.folder.labels[indices])


def _examples(name: str, inputs: NDArray[np.generic], targets: NDArray[np.generic]) -> Examples:
    """Inputs as models take them and, where targets are class numbers, int64 targets: what losses and metrics take."""
    numbers = inputs.astype(input_type(inputs), copy=False)
    if not np.isfinite(numbers).all():
        raise DataError(f"{name}: inputs contain NaN or infinity; expected finite numbers")
    return Examples(numbers, targets.astype(np.int64) if np.issubdtype(targets.dtype, np.integer) else targets)


def _numeric(name: str, values: ArrayLike) -> NDArray[np.generic]:
    """As an array of numbers or truth values."""
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:  # of several shapes, or a tensor that numpy cannot take
        raise DataError(f"{name}: no array can be made of it: {' '.join(str(error).split())}") from error
    if array.dtype.kind not in "biuf":
        raise DataError(f"{name}: values of type {array.dtype}; expected real numbers")
    return array


def _stack(name: str, inputs: Sequence[NDArray[Any]]) -> NDArray[np.generic]:
    shapes = sorted({one.shape for one in inputs})
    if len(shapes) > 1:
        given = " and ".join(map(str, shapes[:2]))
        raise DataError(f"{name}: inputs differ in shape: {given}; expected one: set data.image.resize and .crop")
    return np.stack(inputs)


def _check_sizes(settings: DataSettings) -> None:
    check_seed("data", settings.seed)
    for name, least in (("calibration", 1), ("search", 1), ("report", 1), ("train", 0)):
        size = getattr(settings, f"{name}_size")
        if size < least and size != REST:
            raise ConfigError(f"data.{name}_size={size}: expected at least {least}, or {REST} for all that are left")


def _take(source: _Source, sizes: Mapping[str, int], seed: int) -> dict[str, Examples]:
    """Consecutive parts of one permutation; a part of size 0 is left out."""
    labels = source.labels  # read once: it may have to decode every example
    if not len(labels):
        raise DataError(f"{source.name}: no examples; expected at least one for each of {', '.join(sizes)}")
    order = stratified_permutation(labels, seed)
    ends = np.cumsum(_lengths(source.name, sizes, len(labels)))
    parts = zip(sizes, np.split(order[: ends[-1]], ends[:-1]), strict=True)
    return {name: source.read(indices) for name, indices in parts if len(indices)}


def _lengths(name: str, sizes: Mapping[str, int], count: int) -> list[int]:
    written = " + ".join(f"{part}_size={size}" for part, size in sizes.items() if size)
    if list(sizes.values()).count(REST) > 1:
        raise ConfigError(f"data: {written}: expected at most one {REST} among sets that are taken from the same {name}")
    left = count - sum(size for size in sizes.values() if size != REST)
    if left < (REST in sizes.values()):
        raise DataError(f"{name}: {count} examples are too few for {written}; make one of these smaller")
    return [left if size == REST else size for size in sizes.values()]


def _open_sources(settings: DataSettings) -> tuple[_Source | None, _Source]:
    """The training part, if there is one, and the test part."""
    folder = settings.folder_test or settings.folder_train
    sources = {"torchvision": settings.torchvision, "folder_test": folder, "factory": settings.factory}
    given = [f"data.{name}={value}" for name, value in sources.items() if value]
    if len(given) != 1:
        found = " and ".join(given) or "no source"
        raise ConfigError(f"data: {found}; expected exactly one of data.torchvision, data.folder_test and data.factory")
    if settings.torchvision:
        return _from_torchvision(settings.torchvision, settings)
    if settings.factory:
        return _from_factory(settings.factory, settings)
    return _from_folders(settings)


def _from_folders(settings: DataSettings) -> tuple[_Source | None, _Source]:
    paths = {"folder_train": settings.folder_train, "folder_test": settings.folder_test}
    parts = [_images(f"data.{key}", path, settings) for key, path in paths.items() if path]
    if len(parts) == 1:
        return None, parts[0]
    train, test = parts
    if train.folder.classes != test.folder.classes:
        odd = sorted(set(train.folder.classes) ^ set(test.folder.classes))[:3]
        raise DataError(f"data: {train.name} and {test.name} differ in classes ({', '.join(odd)}); expected the same")
    return train, test


def _images(key: str, written: str, settings: DataSettings) -> _Images:
    path = Path(settings.root).expanduser() / written
    if not path.exists():
        hint = "" if os.environ.get("AUTOCOMPRESS_DATA") else " (which is not set)"
        remedy = f"expected a directory or zip of class/name.jpg: set AUTOCOMPRESS_DATA{hint}, data.root or {key}"
        raise DataError(f"{key}: {path} does not exist; {remedy}")
    return _Images(f"data {path}", open_image_folder(path), settings.image)


def _from_factory(factory: str, settings: DataSettings) -> tuple[_Source | None, _Source]:
    answer = call_factory("data.factory", factory, settings.kwargs)
    if not isinstance(answer, (tuple, list)) or len(answer) != 2:
        raise DataError(f"data.factory: {factory} returned {type(answer).__name__}; expected a pair (train, test)")
    train = None if answer[0] is None else _source(f"data {factory} train", answer[0], settings)
    return train, _source(f"data {factory} test", answer[1], settings)


def _source(name: str, part: Any, settings: DataSettings) -> _Source:
    if isinstance(part, (tuple, list)) and len(part) == 2:
        return _arrays(name, *part)
    if hasattr(part, "__getitem__") and hasattr(part, "__len__") and not hasattr(part, "__array__"):
        return _Dataset(name, part, settings.image)
    raise DataError(f"{name}: {type(part).__name__}; expected a pair of arrays (inputs, targets), or a dataset with a length")


def _arrays(name: str, inputs: ArrayLike, targets: ArrayLike) -> _Source:
    source = _Arrays(name, _numeric(name, inputs), _numeric(name, targets))
    if not source.inputs.ndim or not source.labels.ndim:
        raise DataError(f"{name}: a single number; expected arrays of inputs and targets, one of each for each example")
    if len(source.inputs) != len(source.labels):
        raise DataError(f"{name}: {len(source.inputs)} inputs and {len(source.labels)} targets; expected as many of each")
    return source


def _from_torchvision(name: str, settings: DataSettings) -> tuple[_Source, _Source]:
    from torchvision import datasets  # slow to import, and not every data set needs it

    if name not in datasets.__all__:
        close = ", ".join(get_close_matches(name, datasets.__all__, n=3)) or "none"
        raise DataError(f"data.torchvision: no data set '{name}'; close names: {close}; all: torchvision.datasets")
    train, test = (_torchvision_part(getattr(datasets, name), training, settings) for training in (True, False))
    return train, test


def _torchvision_part(dataset: Any, training: bool, settings: DataSettings) -> _Source:
    """The classes of torchvision call the part either `train=True` or `split="train"`."""
    parameters = inspect.signature(dataset).parameters
    part = "train" if training else "test"
    switch: dict[str, Any] = {"train": training} if "train" in parameters else {"split": part} if "split" in parameters else {}
    if not switch:
        raise DataError(f"data.torchvision: {dataset.__name__} has no training and test part; use data.factory")
    if "download" in parameters:
        switch["download"] = settings.download
    try:
        items = dataset(str(Path(settings.root).expanduser()), **switch | settings.kwargs)
    except (RuntimeError, OSError, ValueError, TypeError, ImportError) as error:
        remedy = "set data.root, or data.download=true with a network"
        raise DataError(f"data.torchvision: {dataset.__name__} in {settings.root}: {error}; {remedy}") from None
    return _Dataset(f"data {dataset.__name__} {part}", items, settings.image)
