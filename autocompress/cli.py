"""The command line: a verb, then Hydra."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from autocompress.errors import AutocompressError
from autocompress.masking import masked

DEFAULT_VERB = "search"
JOBS = ("search", "worker", "sensitivity", "probe", "apply", "evaluate")
"""Verbs whose arguments Hydra reads."""

COMMANDS = {"plugins": "autocompress.plugin_list", "new-plugin": "autocompress.new_plugin"}
"""Verbs with plain arguments: the module whose `main` takes them and returns the exit status."""

VERBS = (*JOBS, *COMMANDS)

OVERVIEW = """autocompress: the most accurate model file that fits your budget on the machine it will run on.

  autocompress search +experiment=cifar10_resnet20 objective=latency budget.accuracy_drop=0.01 search.trials=40
  autocompress search +experiment=digits    the embedded default, no data needed
  autocompress worker study.storage=URL ... helps a search with the same settings, from any machine
  autocompress sensitivity +experiment=digits   what each option of each layer costs and saves alone
  autocompress probe                        what compressing gains on this device, whatever the model
  autocompress apply policy=PATH            build a file again from a saved policy and its state
  autocompress evaluate artifact=PATH       accuracy, size and latency of any ONNX file
  autocompress plugins                      components, where they come from, and load errors
  autocompress new-plugin NAME              a package for a component of your own, ready to install and test

  autocompress VERB --help                  groups and options; also --cfg job, -m, --config-dir
  eval "$(autocompress -sc install=bash)"   tab completion (bash, zsh, fish)
"""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run a verb; our own and Hydra's errors become one line and exit status 2, anything else keeps its traceback."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in {"help", "--version"}:
        sys.stdout.write(f"{_version() if arguments == ['--version'] else OVERVIEW}\n")
        sys.exit(0)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    verb, rest = _split(arguments)
    _strip_verb_from_completion()
    sys.path.insert(0, str(Path.cwd()))  # so that model.factory=my_file:net is found, as with `python -m`
    sys.exit(_run(verb, rest))


def _version() -> str:
    from importlib.metadata import version

    return version("autocompress")


def _split(arguments: list[str]) -> tuple[str, list[str]]:
    """The verb, and what Hydra shall see. A verb that is left out is `search`, so that Hydra's own flags work alone."""
    if arguments[0].startswith("-") or "=" in arguments[0]:
        return DEFAULT_VERB, arguments
    return arguments[0], arguments[1:]


def _strip_verb_from_completion() -> None:
    """Hydra completes the line from the environment and knows no verbs."""
    words = os.environ.get("COMP_LINE", "").split(" ")
    if len(words) > 2 and words[1] in VERBS:
        shorter = " ".join([words[0], *words[2:]])
        point = int(os.environ.get("COMP_POINT", len(os.environ["COMP_LINE"])))
        os.environ["COMP_LINE"] = shorter
        os.environ["COMP_POINT"] = str(max(0, point - len(words[1]) - 1))


def _run(verb: str, arguments: Sequence[str]) -> int:
    if verb not in VERBS:
        return _fail(f"unknown verb '{verb}'; expected one of {', '.join(VERBS)}")
    try:
        return int(import_module(COMMANDS[verb]).main(arguments)) if verb in COMMANDS else _run_job(verb, arguments)
    except AutocompressError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return _fail("interrupted; the same command resumes", status=130)


def _run_job(verb: str, arguments: Sequence[str]) -> int:
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from autocompress import config
    from autocompress.registry import load_registry
    from autocompress.verbs import run_verb

    sys.argv = [sys.argv[0], *arguments]
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    registry = load_registry()
    config.register(registry)
    try:
        config.hydra_main(verb, lambda job: run_verb(verb, job, registry), registry)
    except (HydraException, OmegaConfBaseException) as error:
        return _fail(config.explain(error, registry))
    return 0


def _fail(message: str, status: int = 2) -> int:
    sys.stderr.write(f"autocompress: {masked(' '.join(message.split()))}\n")
    return status
