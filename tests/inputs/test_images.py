from __future__ import annotations

import io
import os
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from autocompress.errors import ConfigError, DataError
from autocompress.inputs.images import ImageSettings, Interpolation, check_image_settings, open_image_folder, to_input


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    random = np.random.default_rng(0)
    return Image.fromarray(random.integers(256, size=(height, width, 3), dtype=np.uint8)).convert(mode)


def encoded(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize("size", [(300, 201), (201, 300), (64, 64), (37, 90)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_preprocessing_is_that_of_torchvision(size: tuple[int, int], interpolation: str) -> None:
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    expected = transforms.Compose(
        [
            transforms.Resize(48, transforms.InterpolationMode(interpolation)),
            transforms.CenterCrop(33),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )(picture(*size))
    settings = ImageSettings(resize=48, interpolation=Interpolation[interpolation], crop=33, mean=mean, std=std)
    torch.testing.assert_close(torch.from_numpy(to_input(picture(*size), settings)), expected)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK", "1"])
def test_every_eight_bit_mode_becomes_the_configured_channels(mode: str) -> None:
    assert to_input(picture(5, 4, mode), ImageSettings()).shape == (3, 4, 5)
    assert to_input(picture(5, 4, mode), ImageSettings(grayscale=True, mean=[0.5], std=[2.0])).shape == (1, 4, 5)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        (ImageSettings(mean=[0.1, 0.2]), "data.image.mean"),
        (ImageSettings(grayscale=True, std=[1.0, 1.0, 1.0]), "data.image.std"),
        (ImageSettings(std=[1.0, 0.0, 1.0]), "positive"),
        (ImageSettings(crop=-1), "crop=-1"),
    ],
)
def test_impossible_settings_are_refused(settings: ImageSettings, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        check_image_settings(settings)


def zipped(path: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("cat/b.png", "ant/z.png", "cat/a.PNG", "bee/deep/c.png", "cat/.hidden.png", "ant/notes.txt"):
            archive.writestr(f"{prefix}{name}", encoded(picture(6, 6)))
        archive.writestr(f"__MACOSX/{prefix}cat/._b.png", b"shadow")
        archive.mkdir(f"{prefix}empty")
    return path


@pytest.mark.parametrize("prefix", ["", "pets/"])
def test_a_zip_and_the_same_directory_give_the_same_images(tmp_path: Path, prefix: str) -> None:
    path = zipped(tmp_path / "pets.zip", prefix)
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "extracted")
    folders = [open_image_folder(path), open_image_folder(tmp_path / "extracted")]
    for folder in folders:
        assert folder.classes == ["ant", "bee", "cat"]
        assert [Path(name).name for name in folder.names] == ["z.png", "c.png", "a.PNG", "b.png"]
        assert folder.labels.tolist() == [0, 1, 2, 2]
    first, second = (folder.load(3, ImageSettings()) for folder in folders)
    np.testing.assert_array_equal(first, second)


def test_folders_without_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "flat.png").write_bytes(encoded(picture(4, 4)))
    with pytest.raises(DataError, match=r"holds no images; expected class/name\.jpg"):
        open_image_folder(tmp_path)
    (tmp_path / "text.zip").write_text("not a zip")
    with pytest.raises(DataError, match=r"text\.zip is not a readable zip"):
        open_image_folder(tmp_path / "text.zip")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"no image", "not an image"),
        (encoded(picture(40, 40))[:900], "truncated"),
        (encoded(Image.new("I;16", (8, 8))), "8 bits a channel"),
        (encoded(picture(3, 9)), "smaller than data.image.crop=8"),
    ],
)
def test_an_image_that_cannot_be_used_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "ant").mkdir()
    (tmp_path / "ant" / "bad.png").write_bytes(content)
    with pytest.raises(DataError, match=rf"'ant/bad\.png' cannot be used: .*{reason}") as raised:
        open_image_folder(tmp_path).load(0, ImageSettings(crop=8))
    assert "\n" not in str(raised.value)


def refused(path: Path, words: str, settings: ImageSettings | None = None) -> None:
    """Opening it, or reading one of its images, says so in one line."""
    with pytest.raises(DataError, match=words) as error:
        folder = open_image_folder(path)
        for index in range(len(folder.names)):
            folder.load(index, settings or ImageSettings())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["../secret/a.png", "/etc/a.png", "cat/../../a.png"])
def test_a_zip_with_paths_that_lead_out_of_it_is_refused(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "odd.zip", "w") as archive:
        archive.writestr("cat/a.png", encoded(picture(6, 6)))
        archive.writestr(name, encoded(picture(6, 6)))
    refused(tmp_path / "odd.zip", "a path that leads out of it")


def test_a_name_that_a_zip_holds_twice_is_one_image(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(tmp_path / "odd.zip", "w") as archive:
        for size in (5, 6):
            archive.writestr("cat/a.png", encoded(picture(size, size)))
    folder = open_image_folder(tmp_path / "odd.zip")
    assert folder.names == ["cat/a.png"]
    assert folder.load(0, ImageSettings()).shape == (3, 6, 6)


def test_a_zip_whose_image_unpacks_to_gigabytes_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autocompress.inputs.images.MOST_BYTES", 1 << 20)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("cat/a.png", bytes(1 << 21))
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda *_: pytest.fail("unpacked"))
    refused(tmp_path / "bomb.zip", "2,097,152 bytes; expected at most 1,048,576 for one image")


def header(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says to be so large."""
    whole = encoded(picture(1, 1))
    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    body = b"IHDR" + size + whole[24:29]
    return whole[:12] + body + zlib.crc32(body).to_bytes(4, "big") + whole[33:]


@pytest.mark.parametrize(("width", "height"), [(100_000, 1_000), (100_000, 100_000)])
def test_a_few_bytes_that_decode_to_gigabytes_are_refused(tmp_path: Path, width: int, height: int) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat/a.png").write_bytes(header(width, height))
    refused(tmp_path, "exceeds limit of|could be decompression bomb")


def test_a_long_image_that_resizing_would_blow_up_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    picture(1, 5000).save(tmp_path / "cat/a.png")
    refused(tmp_path, "1x5000 pixels would become 256x1280000", ImageSettings(resize=256, crop=224))


def test_links_that_lead_back_are_not_followed_and_others_are(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    root = tmp_path / "root"
    (root / "cat").mkdir(parents=True)
    picture(6, 6).save(root / "cat/a.png")
    picture(6, 6).save(tmp_path / "elsewhere/b.png")
    (root / "dog").symlink_to(tmp_path / "elsewhere")
    for link, to in {"cat/up": root, "cat/same": root / "cat", "elsewhere/across": root / "cat", "cat/top": tmp_path}.items():
        (tmp_path / link if link.startswith("else") else root / link).symlink_to(to)
    assert set(open_image_folder(root).names) == {"cat/a.png", "dog/b.png", "dog/across/a.png"}


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    """A pipe or a device would never end."""
    (tmp_path / "cat").mkdir()
    os.mkfifo(tmp_path / "cat/a.png")
    refused(tmp_path, "'cat/a.png' cannot be used: not a regular file")
    (tmp_path / "cat/a.png").unlink()
    (tmp_path / "cat/a.png").symlink_to("/dev/zero")
    refused(tmp_path, "'cat/a.png' cannot be used: not a regular file")


@pytest.mark.parametrize("field", ["mean", "std"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_settings_that_are_not_finite_are_refused(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"data.image.{field}"):
        check_image_settings(ImageSettings(**{field: [value, 1.0, 1.0]}))
