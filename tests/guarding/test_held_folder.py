"""A folder has one process at a time, whatever became of the last one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from autocompress.errors import ConfigError
from autocompress.guarding.held_folder import held_folder

HOLD = """
import sys
from pathlib import Path
from autocompress.guarding.held_folder import held_folder

with held_folder(Path(sys.argv[1])):
    print(flush=True)
    input()
"""


def test_a_second_process_is_told_which_one_has_it(tmp_path: Path) -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "new")], stdin=pipe, stdout=pipe) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(ConfigError, match=f"new: process {other.pid} is at work in it; wait for that one, or set another"):
            held_folder(tmp_path / "new").__enter__()
        other.kill()
    with held_folder(tmp_path / "new"):
        assert (tmp_path / "new/.lock").read_text() == f"{os.getpid()}\n"
    with held_folder(tmp_path / "new"):
        pass
