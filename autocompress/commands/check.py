"""One line of `autocompress doctor`: what was found, and what to do about it."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

NAME_WIDTH = 10
STATE_WIDTH = 4
LEAST_WIDTH = 50


@dataclass(frozen=True)
class Check:
    """What a check found.

    Attributes:
        advice: what to do; empty: nothing, it is in order.
        usable: whether searches run as it is; advice is then a remark.
    """

    name: str
    found: str
    advice: str = ""
    usable: bool = True

    @property
    def state(self) -> str:
        """`OK`, `note` or `FAIL`."""
        return ("note" if self.usable else "FAIL") if self.advice else "OK"

    def lines(self, width: int) -> str:
        """For a terminal of that width."""
        said = f"{self.found}: {self.advice}" if self.advice else self.found
        begin, later = f"{self.state:<{STATE_WIDTH}}  {self.name:<{NAME_WIDTH}}  ", " " * (STATE_WIDTH + NAME_WIDTH + 4)
        wrapper = textwrap.TextWrapper(width, begin, later, break_long_words=False, break_on_hyphens=False)
        return wrapper.fill(said)


def guarded(name: str, check: Callable[[], Check]) -> Check:
    """The check's answer; one that raises has failed, and says so like the others."""
    start = monotonic()
    try:
        return check()
    except Exception as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        return Check(name, said, f"mend this ({monotonic() - start:.1f} s)", usable=False)


def terminal_width() -> int:
    """Columns for text."""
    return max(LEAST_WIDTH, min(120, shutil.get_terminal_size((100, 24)).columns))
