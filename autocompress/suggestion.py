"""What a mistyped name was meant to be."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def closest(given: str, known: Iterable[str]) -> str | None:
    """The known name that is most like the given one, or the only one that it begins."""
    names = list(known)
    begun = [name for name in names if name.startswith(given)]
    return next(iter(get_close_matches(given, names, n=1)), begun[0] if len(begun) == 1 else None)


def nearest(given: str, known: Iterable[str]) -> str:
    """`; did you mean 'search'?`, the end of a message; empty where no known name is close."""
    close = closest(given, known)
    return f"; did you mean '{close}'?" if close else ""
