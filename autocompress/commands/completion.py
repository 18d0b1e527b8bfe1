"""Tab completion of what Hydra does not know: verbs, and the flags of those that are not Hydra's."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout, suppress
from importlib import import_module
from typing import Any

from autocompress.errors import ConfigError
from autocompress.suggestion import nearest

FLAG = "-sc"
"""Hydra's: `-sc install=SHELL` prints what the shell shall evaluate, which then asks with `-sc query=SHELL`."""


def answered(arguments: Sequence[str], jobs: Sequence[str], commands: Mapping[str, str]) -> bool:
    """Complete the line that a shell has put into the environment, or install; False: Hydra shall, of its own options.

    Args:
        jobs: verbs whose arguments Hydra reads.
        commands: the other verbs, with the module whose `main` takes the arguments.
    """
    if len(arguments) < 2 or arguments[0] not in (FLAG, "--shell-completion"):
        return False
    action, _, shell = arguments[1].partition("=")
    if action == "install":
        return _installed(shell)
    words = os.environ.get("COMP_LINE", "").split(" ")
    found = _words(words, jobs, commands)
    if found is None:
        _strip_verb(words)
        return False
    sys.stdout.write(("\n" if shell == "fish" else " ").join(found) + "\n")
    return True


def _words(words: Sequence[str], jobs: Sequence[str], commands: Mapping[str, str]) -> list[str] | None:
    """The words that the last one may become; None: that is for Hydra to say."""
    if len(words) == 2:
        verbs = [verb for verb in (*jobs, *commands) if verb.startswith(words[1])]
        return verbs or None
    if len(words) > 2 and words[1] in commands:
        return [flag for flag in _flags(commands[words[1]]) if flag.startswith(words[-1])]
    return None


def _flags(module: str) -> list[str]:
    """Those that the command's own help lists."""
    printed = io.StringIO()
    with redirect_stdout(printed), suppress(SystemExit):
        import_module(module).main(["--help"])
    return sorted(set(re.findall(r"(?<!\S)--[a-z][\w-]*", printed.getvalue().replace("[", " ").replace(",", " "))))


def _strip_verb(words: Sequence[str]) -> None:
    """Hydra completes the line from the environment and knows no verbs."""
    if len(words) > 2 and "=" not in words[1] and not words[1].startswith("-"):
        shorter = " ".join([words[0], *words[2:]])
        point = int(os.environ.get("COMP_POINT", len(os.environ["COMP_LINE"])))
        os.environ["COMP_LINE"] = shorter
        os.environ["COMP_POINT"] = str(max(0, point - len(words[1]) - 1))


def _installed(shell: str) -> bool:
    """Hydra's own scripts, without what a search needs: a shell evaluates this each time it starts."""
    from hydra._internal.core_plugins.bash_completion import BashCompletion
    from hydra._internal.core_plugins.fish_completion import FishCompletion
    from hydra._internal.core_plugins.zsh_completion import ZshCompletion

    shells: Mapping[str, Any] = {"bash": BashCompletion, "fish": FishCompletion, "zsh": ZshCompletion}
    if shell not in shells:
        raise ConfigError(f"{FLAG} install={shell}: expected one of {', '.join(shells)}{nearest(shell, shells)}")
    shells[shell](None).install()
    return True
