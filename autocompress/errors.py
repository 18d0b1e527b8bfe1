"""Every error that is explained to the user: one root, each refining a builtin.

The command line prints these as one line, with exit status 2 for what was given (ValueError, LookupError), else 1; any other
exception keeps its traceback.
A message says who, where, what was given, what was expected and what to do.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from autocompress.suggestion import closest


class AutocompressError(Exception):
    """Root of all errors raised on purpose by autocompress."""


class ConfigError(AutocompressError, ValueError):
    """A setting is missing, unknown or contradictory."""


class UnknownComponentError(AutocompressError, KeyError):
    """A component was asked for by a name that no loaded plugin registers.

    Attributes:
        problems: what kept plugins from being loaded, one of which may have brought it.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], problems: Iterable[str] = ()) -> None:
        self.kind, self.name, self.known, self.problems = kind, name, tuple(sorted(known)), tuple(problems)
        close = closest(name, self.known)
        guess = f" Did you mean '{close}'?" if close else ""
        unused = "".join(f" Not in use: {problem}." for problem in self.problems)
        super().__init__(f"{kind} '{name}' is not registered; available: {', '.join(self.known) or 'none'}.{guess}{unused}")

    def __str__(self) -> str:
        return str(self.args[0])

    def __reduce__(self) -> tuple[type[UnknownComponentError], tuple[str, str, tuple[str, ...], tuple[str, ...]]]:
        """Pickled, as between the processes of a sweep, with what it was made from."""
        return type(self), (self.kind, self.name, self.known, self.problems)


class PluginError(AutocompressError, TypeError):
    """A plugin broke the contract of the hook or component that it implements."""


class ExportError(AutocompressError, ValueError):
    """The model cannot be turned into the graph that everything else edits."""


class ModelError(AutocompressError, ValueError):
    """The model or its weights cannot be built as configured."""


class DataError(AutocompressError, ValueError):
    """A data set is empty, unreadable or does not fit the model."""


class PolicyError(AutocompressError, ValueError):
    """A policy does not fit the model, or its file is not a policy."""


class BudgetError(AutocompressError, ValueError):
    """A budget is zero, negative or contradictory."""


class RuntimeCrashError(AutocompressError, RuntimeError):
    """The runtime's process ended or answered with an error; carries what it said."""


class UnreachableError(AutocompressError, ConnectionError):
    """The machine that a target's runtime runs on cannot be used. It says nothing about a candidate, so it ends the search."""


class ConnectionLostError(UnreachableError):
    """It is away for now: the same request may succeed later."""


class DisturbedError(UnreachableError):
    """Something else removed or changed a file that a search works with. What was measured of it is worth nothing.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"{path}: something else removed or changed this file while it was in use; finished trials are kept; the same "
            "command makes it again"
        )


class CheckError(AutocompressError, ArithmeticError):
    """A candidate file failed a check: it did not load, is not finite, or disagrees with itself."""


class StorageError(AutocompressError, ConnectionError):
    """The database of the studies cannot be reached."""
