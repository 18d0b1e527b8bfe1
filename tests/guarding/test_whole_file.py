"""A file is replaced as a whole: what stops in the middle leaves the old one."""

from __future__ import annotations

from pathlib import Path

import pytest

from autocompress.guarding.whole_file import begun_folder, put_in_place, write_whole


@pytest.mark.parametrize(("content", "stored"), [("1 \u00b5s\n", "1 \u00b5s\n".encode()), (b"\xff\x00", b"\xff\x00")])
def test_text_and_bytes_are_written_as_they_are(tmp_path: Path, content: str | bytes, stored: bytes) -> None:
    path = write_whole(tmp_path / "new" / "file.json", content)
    assert path.read_bytes() == stored
    assert list(path.parent.iterdir()) == [path]


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_whole(tmp_path / "file.json", "old")

    def stopped(self: Path, content: bytes) -> int:
        self.touch()
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", stopped)
    with pytest.raises(OSError, match="disk full"):
        write_whole(path, "new")
    assert path.read_text() == "old"


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    for name in ("first", "second"):
        partial = begun_folder(tmp_path / "best")
        assert list(partial.iterdir()) == []
        (partial / name).write_text(name)
        assert put_in_place(partial) == tmp_path / "best"
        assert [path.name for path in tmp_path.rglob("*")] == ["best", name]


@pytest.mark.parametrize("after", ["folder", "partial"])
def test_what_stops_between_two_renames_is_mended_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    (begun_folder(tmp_path / "best") / "file").write_text("old")
    put_in_place(tmp_path / "best.partial")
    (begun_folder(tmp_path / "best") / "file").write_text("new")
    rename = Path.rename

    def stopped(self: Path, target: Path) -> Path:
        done = rename(self, target)
        if (self.suffix == ".partial") == (after == "partial"):
            raise KeyboardInterrupt
        return done

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", stopped)
        put_in_place(tmp_path / "best.partial")
    (begun_folder(tmp_path / "best") / "file").write_text("newest")
    put_in_place(tmp_path / "best.partial")
    assert [path.read_text() for path in tmp_path.rglob("*") if path.is_file()] == ["newest"]
