"""A file is replaced as a whole: what stops in the middle leaves the old one."""

from __future__ import annotations

from pathlib import Path

import pytest

from autocompress.whole_file import write_whole


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
