from __future__ import annotations

import gzip
import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from autocompress.errors import AutocompressError, ConfigError, DataError
from autocompress.inputs.data import DataSettings, Splits, load_splits, stratified_permutation
from autocompress.inputs.images import ImageSettings
from autocompress.inputs.models import ModelSettings

CONF = Path(__file__).parents[2] / "conf"
REAL = Path(os.environ.get("AUTOCOMPRESS_DATA") or Path(__file__).parents[3] / "shared" / "data")
SMALL = {"calibration_size": 4, "search_size": 6, "report_size": 8}


def write_zip(path: Path, counts: dict[str, int]) -> Path:
    """Images of one pixel whose red value tells them apart."""
    with zipfile.ZipFile(path, "w") as archive:
        for label, (name, count) in enumerate(counts.items()):
            for index in range(count):
                stream = io.BytesIO()
                Image.new("RGB", (1, 1), (index, label, 0)).save(stream, "PNG")
                archive.writestr(f"{name}/{index:04}.png", stream.getvalue())
    return path


def identities(splits: Splits, name: str) -> set[tuple[int, ...]]:
    return {tuple(np.rint(255 * one).astype(int).ravel()) for one in getattr(splits, name).inputs}


def refusal(kind: type[AutocompressError], settings: DataSettings) -> str:
    with pytest.raises(kind) as raised:
        load_splits(settings)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_every_prefix_has_the_classes_in_proportion() -> None:
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    order = stratified_permutation(labels, seed=3)
    assert sorted(order) == list(range(100))
    for end in (10, 37, 50, 99):
        shares = np.bincount(labels[order[:end]], minlength=3) - np.asarray([0.6, 0.3, 0.1]) * end
        assert np.abs(shares).max() <= 1.5
    assert (np.diff(order) != 1).any()
    np.testing.assert_array_equal(order, stratified_permutation(labels, seed=3))
    assert (order != stratified_permutation(labels, seed=4)).any()


def test_targets_that_are_no_classes_are_permuted_plainly() -> None:
    assert sorted(stratified_permutation(np.zeros((5, 2)), seed=0)) == [0, 1, 2, 3, 4]


def test_two_folders_keep_training_and_test_apart(tmp_path: Path) -> None:
    write_zip(tmp_path / "train.zip", {"ant": 20, "bee": 10})
    write_zip(tmp_path / "test.zip", {"ant": 16, "bee": 8})
    settings = DataSettings(root=str(tmp_path), folder_train="train.zip", folder_test="test.zip", train_size=-1, **SMALL)
    splits = load_splits(settings)
    assert splits.train is not None
    assert [len(part) for part in (splits.calibration, splits.train, splits.search, splits.report)] == [4, 26, 6, 8]
    assert not identities(splits, "calibration") & identities(splits, "train")
    assert not identities(splits, "search") & identities(splits, "report")
    assert splits.search.targets.tolist().count(0) == 4
    assert splits.search.inputs.dtype == np.float32
    assert splits.digest == load_splits(settings).digest


def test_one_folder_serves_all_sets(tmp_path: Path) -> None:
    write_zip(tmp_path / "all.zip", {"ant": 20, "bee": 10})
    splits = load_splits(DataSettings(folder_test=str(tmp_path / "all.zip"), train_size=-1, **SMALL))
    sets = [identities(splits, name) for name in ("calibration", "search", "report", "train")]
    assert [len(one) for one in sets] == [4, 6, 8, 12]
    assert len(set.union(*sets)) == 30


def test_only_images_that_are_needed_are_decoded(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "all.zip", {"ant": 18})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("bee/broken.png", b"")
    order = stratified_permutation(np.asarray([0] * 18 + [1]), seed=0)
    sizes = {"calibration_size": 1, "search_size": 1, "report_size": int(np.flatnonzero(order == 18)[0]) - 2}
    load_splits(DataSettings(folder_test=str(path), **sizes))
    assert "bee/broken.png" in refusal(DataError, DataSettings(folder_test=str(path), calibration_size=1, search_size=1))


SOURCES = """
import numpy as np, torch
from PIL import Image
from torch.utils.data import TensorDataset

def arrays(count=20):
    part = (np.arange(count * 3.0).reshape(count, 3), np.arange(count) % 2)
    return part, part

def mixed():
    pixels = [(Image.new("L", (2, 2), index), index % 2) for index in range(20)]
    return pixels, TensorDataset(torch.zeros(20, 3, 2, 2), torch.arange(20))

def ragged():
    return arrays()[0], [(np.zeros(index), 0) for index in range(20)]

def infinite():
    return arrays()[0], (np.full((20, 3), np.inf), np.zeros(20))

def uneven():
    return arrays()[0], (np.zeros((20, 3)), np.zeros(19))

def single():
    return arrays()[0]

def alone():
    return None, arrays()[0]

def unpaired():
    return None, [1] * 20

def small():
    return None, [(Image.new("L", (2, 2)), 0)] * 20

def words():
    return None, (np.asarray(["a", "b"] * 10), np.arange(20))

def jagged():
    return None, ([[1], [1, 2]], [0, 1])

def number():
    return None, (np.float32(1), 3)

def worded():
    return None, [(np.zeros(3), "cat")] * 30

def generator():
    return arrays()[0], (pair for pair in [])

def numbers(kind):
    return None, (np.arange(40).reshape(20, 2).astype(kind), np.arange(20) % 2)
"""


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"sources_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(SOURCES)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_a_factory_may_return_arrays(sources: str) -> None:
    splits = load_splits(DataSettings(factory=f"{sources}:arrays", kwargs={"count": 30}, search_size=6, calibration_size=4))
    assert splits.search.inputs.shape == (6, 3)
    assert len(splits.report) == 24
    assert splits.train is None


@pytest.mark.parametrize(
    ("kind", "kept"),
    [("int64", "int64"), ("int32", "int64"), ("uint8", "float32"), ("float64", "float32"), ("bool", "float32")],
)
def test_token_ids_are_kept_and_all_else_becomes_float32(sources: str, kind: str, kept: str) -> None:
    splits = load_splits(DataSettings(factory=f"{sources}:numbers", kwargs={"kind": kind}, calibration_size=4, search_size=6))
    assert splits.search.inputs.dtype == splits.calibration.inputs.dtype == np.dtype(kept)


def test_a_factory_may_return_one_set_for_all(sources: str) -> None:
    splits = load_splits(DataSettings(factory=f"{sources}:alone", calibration_size=4, search_size=6))
    assert [len(part) for part in (splits.calibration, splits.search, splits.report)] == [4, 6, 10]


def test_a_factory_may_return_datasets_of_images_or_tensors(sources: str) -> None:
    splits = load_splits(DataSettings(factory=f"{sources}:mixed", image=ImageSettings(std=[0.5] * 3), **SMALL))
    assert splits.calibration.inputs.shape == (4, 3, 2, 2)
    assert splits.calibration.inputs.max() == pytest.approx(splits.calibration.inputs.max(axis=(1, 2, 3)).max())
    assert splits.search.inputs.shape == (6, 3, 2, 2)
    assert splits.search.targets.dtype == np.int64


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("ragged", ["test", "differ in shape", "data.image.resize"]),
        ("infinite", ["test", "infinity"]),
        ("uneven", ["20 inputs and 19 targets"]),
        ("single", ["train", "ndarray", "pair of arrays"]),
        ("unpaired", ["item", "int", "pair (input, target)"]),
        ("small", ["2x2 pixels", "data.image.crop=3"]),
        ("generator", ["generator", "dataset with a length"]),
        ("words", ["test", "values of type", "expected real numbers"]),
        ("jagged", ["test", "no array can be made of it"]),
        ("number", ["test", "a single number"]),
        ("worded", ["test", "values of type", "expected real numbers"]),
    ],
)
def test_a_factorys_wrong_answer_is_explained(sources: str, function: str, words: list[str]) -> None:
    message = refusal(DataError, DataSettings(factory=f"{sources}:{function}", image=ImageSettings(crop=3), **SMALL))
    assert all(word in message for word in words), message


def write_idx(folder: Path, part: str, images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> None:
    for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
        header = bytes([0, 0, 8, values.ndim]) + np.asarray(values.shape, ">u4").tobytes()
        (folder / f"{part}-{kind}-ubyte").write_bytes(header + values.astype(np.uint8).tobytes())


@pytest.fixture
def mnist_root(tmp_path: Path) -> Path:
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part, count in (("train", 12), ("t10k", 20)):
        images = np.arange(count * 784).reshape(count, 28, 28) % 256
        write_idx(folder, part, images, np.arange(count) % 2)
    return tmp_path


def test_a_torchvision_data_set_by_name(mnist_root: Path) -> None:
    image = ImageSettings(grayscale=True, mean=[0.5], std=[0.5])
    splits = load_splits(DataSettings(torchvision="MNIST", root=str(mnist_root), image=image, **SMALL))
    assert splits.search.inputs.shape == (6, 1, 28, 28)
    assert splits.search.targets.tolist().count(1) == 3


def test_idx_files_are_found_packed_or_not(mnist_root: Path) -> None:
    raw = mnist_root / "MNIST" / "raw"
    packed = raw / "train-images-idx3-ubyte"
    (raw / f"{packed.name}.gz").write_bytes(gzip.compress(packed.read_bytes()))
    packed.unlink()
    kwargs = {"root": str(mnist_root), "folders": ["nowhere", "MNIST/raw"], "mean": 0.5, "std": 0.5}
    settings = DataSettings(factory="autocompress_plugins.datasets:idx_images", kwargs=kwargs, **SMALL)
    splits = load_splits(settings)
    assert splits.calibration.inputs.shape == (4, 1, 28, 28)
    assert splits.search.inputs.min() == -1
    assert splits.search.inputs.max() == 1

    (raw / f"{packed.name}.gz").write_bytes(b"cut")
    assert "not a complete IDX file" in refusal(DataError, settings)
    (raw / f"{packed.name}.gz").unlink()
    message = refusal(DataError, settings)
    assert "apt-get install dataset-fashion-mnist" in message
    assert "download=True" in message


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("labels-idx1", bytes([0, 0, 8, 0]), "expected bytes on 1 axes: 00 00 08 01"),
        ("labels-idx1", bytes([0, 0, 13, 1, 0, 0, 0, 4]) + bytes(16), "it begins with 00 00 0d 01"),
        ("labels-idx1", bytes([0, 0, 8, 1, 255, 255, 255, 255]) + bytes(9), "9 values or more; expected 4294967295"),
        ("images-idx3", bytes([0, 0, 8, 3]) + b"\xff" * 12, "0 values or more; expected 4294967295 x 4294967295 x 4294967295"),
        ("images-idx3", bytes([0, 0, 8, 3]) + bytes([0, 0, 0, 1] * 3) + bytes(5), "2 values or more; expected 1 x 1 x 1"),
        ("images-idx3", b"", "it begins with ; expected"),
    ],
    ids=["no axis", "floats", "short", "huge", "long", "empty"],
)
@pytest.mark.parametrize("packed", [False, True])
def test_an_idx_file_of_another_form_is_refused(mnist_root: Path, name: str, content: bytes, words: str, packed: bool) -> None:
    path = mnist_root / "MNIST" / "raw" / f"train-{name}-ubyte"
    path.unlink()
    path.with_name(path.name + ".gz" * packed).write_bytes(gzip.compress(content) if packed else content)
    kwargs = {"folders": ["MNIST/raw"], "root": str(mnist_root)}
    settings = DataSettings(factory="autocompress_plugins.datasets:idx_images", kwargs=kwargs, **SMALL)
    assert words in refusal(DataError, settings)


def test_digits_need_no_file() -> None:
    splits = load_splits(_configured("digits"))
    assert splits.train is not None
    assert [len(part) for part in (splits.calibration, splits.train, splits.search, splits.report)] == [128, 669, 400, 600]
    assert splits.report.inputs.shape == (600, 1, 32, 32)
    assert abs(splits.train.inputs.mean()) < 0.05
    assert np.bincount(splits.report.targets).min() >= 57


def test_digits_refuse_a_part_without_all_classes() -> None:
    factory = "autocompress_plugins.datasets:digits"
    assert "test_size=1795" in refusal(DataError, DataSettings(factory=factory, kwargs={"test_size": 1795}))


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        (ConfigError, {}, ["no source", "data.torchvision", "data.folder_test", "data.factory"]),
        (ConfigError, {"torchvision": "MNIST", "factory": "a:b"}, ["data.torchvision=MNIST and data.factory=a:b"]),
        (ConfigError, {"folder_test": "x", "search_size": 0}, ["data.search_size=0"]),
        (ConfigError, {"folder_test": "x", "train_size": -2}, ["data.train_size=-2"]),
        (ConfigError, {"folder_test": "x", "image": ImageSettings(std=[0.0])}, ["data.image.std"]),
        (DataError, {"folder_test": "missing.zip"}, ["missing.zip does not exist", "AUTOCOMPRESS_DATA", "data.root"]),
        (DataError, {"torchvision": "FashionMINST"}, ["FashionMINST", "FashionMNIST"]),
        (DataError, {"torchvision": "Caltech101"}, ["Caltech101", "data.factory"]),
        (DataError, {"torchvision": "FashionMNIST", "root": "/nonexistent"}, ["/nonexistent", "data.download=true"]),
        (DataError, {"torchvision": "FashionMNIST", "kwargs": {"odd": 1}}, ["odd"]),
    ],
)
def test_wrong_settings_are_explained(kind: type[AutocompressError], settings: dict[str, Any], words: list[str]) -> None:
    message = refusal(kind, DataSettings(**settings))
    assert all(word in message for word in words), message


def test_too_few_examples_and_two_rests_are_refused(tmp_path: Path) -> None:
    path = str(write_zip(tmp_path / "all.zip", {"ant": 10, "bee": 7}))
    assert "17 examples are too few for calibration_size=4 + search_size=6" in refusal(
        DataError, DataSettings(folder_test=path, **SMALL)
    )
    assert "at most one -1" in refusal(ConfigError, DataSettings(folder_test=path, calibration_size=1, train_size=-1))


def test_folders_with_different_classes_are_refused(tmp_path: Path) -> None:
    train, test = write_zip(tmp_path / "a.zip", {"ant": 9, "bee": 9}), write_zip(tmp_path / "b.zip", {"ant": 9, "cow": 9})
    message = refusal(DataError, DataSettings(folder_train=str(train), folder_test=str(test), **SMALL))
    assert "bee, cow" in message


def _configured(data: str, model: str = "digits_net") -> Any:
    """The data settings of the packaged YAML, merged as Hydra does."""
    schema = {"model": OmegaConf.structured(ModelSettings), "data": OmegaConf.structured(DataSettings)}
    files = {"model": OmegaConf.load(CONF / "model" / f"{model}.yaml"), "data": OmegaConf.load(CONF / "data" / f"{data}.yaml")}
    return OmegaConf.to_object(OmegaConf.merge(schema, files).data)


@pytest.mark.parametrize(
    "data", [path.stem for path in (CONF / "data").glob("*.yaml") if path.stem not in ("image_folder", "table")]
)
def test_every_packaged_data_config_fits_the_schema(data: str) -> None:
    assert _configured(data).name == data


@pytest.mark.parametrize("model", [path.stem for path in (CONF / "model").glob("*.yaml") if path.stem != "torchvision"])
def test_every_packaged_model_config_fits_the_schema(model: str) -> None:
    schema = OmegaConf.structured(ModelSettings)
    assert OmegaConf.merge(schema, OmegaConf.load(CONF / "model" / f"{model}.yaml")).name == model


@pytest.mark.realdata
@pytest.mark.skipif(not (REAL / "cifar10-test.zip").is_file(), reason="set AUTOCOMPRESS_DATA")
@pytest.mark.parametrize(("data", "shape", "classes"), [("cifar10", (3, 32, 32), 10), ("imagenet_sample", (3, 224, 224), 1000)])
def test_real_data(data: str, shape: tuple[int, ...], classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOCOMPRESS_DATA", str(REAL))
    settings = _configured(data)
    settings.calibration_size, settings.search_size, settings.report_size = 10, 10, 20
    splits = load_splits(settings)
    assert splits.search.inputs.shape == (10, *shape)
    assert splits.report.targets.max() < classes
    assert torch.isfinite(torch.from_numpy(splits.report.inputs)).all()
