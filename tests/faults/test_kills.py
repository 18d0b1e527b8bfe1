"""A search that is killed at any moment goes on where it was: `tests.faults.kills` in its short form."""

from __future__ import annotations

import json
import os
import random
import signal
from pathlib import Path

import pytest

from tests.faults.kills import MOMENTS, SIGNS, accounts, killed
from tests.faults.nursery import SMALL, Nursery

KILLS = int(os.environ.get("AUTOCOMPRESS_KILLS", "3"))
SEED = int(os.environ.get("AUTOCOMPRESS_KILLS_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)


def test_killed_searches_lose_and_double_nothing(home: Nursery, tmp_path: Path) -> None:
    dice = random.Random(SEED)
    kills = [
        ("SIGKILL", dice.choice(["trials", "logging"])),
        *[(dice.choice(SIGNS), dice.choice([*MOMENTS])) for _ in range(KILLS - 1)],
    ]
    print(f"AUTOCOMPRESS_KILLS_SEED={SEED}: {kills}")  # noqa: T201  (shown when it fails)
    tally = killed(home, tmp_path / "search", SEED, kills)
    assert tally.faults == [], f"AUTOCOMPRESS_KILLS_SEED={SEED}: {kills}"
    assert tally.trials >= 2


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_search_ends_with_the_best_so_far(home: Nursery, tmp_path: Path, sign: signal.Signals) -> None:
    search = home.start(tmp_path, "search", *SMALL, "objective=size", "search.trials=40", "search.finalists=1")
    while "[2/40]" not in search.log and home.poll(search, 0.02) is None:
        pass
    search.send(sign)
    assert home.wait(search) == 130
    assert search.log.splitlines()[-1] == "autocompress: interrupted; the same command resumes"
    assert json.loads((tmp_path / "out/result.json").read_text())["status"] == "interrupted"
    assert (tmp_path / "out/best/README.md").is_file()
    assert search.orphans() == []
    assert accounts(tmp_path) == ([], [])
