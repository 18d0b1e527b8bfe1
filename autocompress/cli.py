"""The command line: a verb, then Hydra."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from autocompress.commands.completion import answered
from autocompress.commands.help_cache import print_help
from autocompress.errors import AutocompressError, ConfigError
from autocompress.guarding.disk import is_unwritable
from autocompress.guarding.interruption import listen
from autocompress.guarding.masking import masked
from autocompress.suggestion import nearest

DEFAULT_VERB = "search"
JOBS = ("search", "worker", "sensitivity", "probe", "apply", "evaluate")
"""Verbs whose arguments Hydra reads."""

COMMANDS = {
    "report": "autocompress.reporting.report_html",
    "sync": "autocompress.commands.sync",
    "plugins": "autocompress.commands.plugin_list",
    "new-plugin": "autocompress.commands.new_plugin",
    "doctor": "autocompress.commands.doctor",
}
"""Verbs with plain arguments: the module whose `main` takes them and returns the exit status."""

VERBS = (*JOBS, *COMMANDS)

_format_warning = warnings.formatwarning

FAILURE, MISTAKE, INTERRUPTED, BROKEN_PIPE = 1, 2, 130, 141
"""Exit statuses, besides 0 for an answer; the last two are 128 and the signal, as shells count."""

UNWRITTEN = (
    "finished trials are kept; make room or set other folders (hydra.run.dir, XDG_CACHE_HOME, TMPDIR), then the same command "
    "resumes"
)

OVERVIEW = """autocompress: the most accurate model file that fits your budget on the machine it will run on.

examples
  autocompress search +experiment=digits    the embedded default, no data needed
  autocompress search +experiment=cifar10_resnet20 objective=latency budget.accuracy_drop=0.01 search.trials=40
  autocompress doctor                       whether everything that a search needs is there and works
  autocompress VERB --help                  more examples, then groups and options

searching
  search                                    find the best file for a model within a budget; the same command resumes
  worker study.storage=URL ...              helps a search with the same settings, from any machine
  sensitivity                               what each option of each layer costs and saves alone
  probe                                     what compressing gains on this device, whatever the model

files
  apply policy=PATH                         build a file again from a saved policy and its state
  evaluate artifact=PATH                    accuracy, size and latency of any ONNX file

around it
  report FOLDER                             report.html of a search, finished or not
  sync [FOLDER]                             gives trackers that were out of reach what they missed
  plugins                                   components, their settings and where they come from, and what did not load
  new-plugin NAME                           a package for a component of your own, ready to install and test
  doctor                                    versions, processor, runtime, timing noise, disk: each line OK or what to do

options are KEY=VALUE, as in any Hydra application; also --cfg job, -m, --config-dir
tab completion: eval "$(autocompress -sc install=bash)"; zsh alike; fish: autocompress -sc install=fish | source
exit status: 0 an answer was given, 1 a failure, 2 a mistake in the input, 130 interrupted (the same command resumes)
"""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run a verb; our own and Hydra's errors become one line and a status of their own, anything else keeps its traceback."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["help"] and len(arguments) > 1:
        arguments = [arguments[1], "--help"]
    if not arguments or arguments[0] in {"help", "--help", "-h", "--version"}:
        sys.stdout.write(f"{_version()}\n" if arguments == ["--version"] else OVERVIEW)
        sys.exit(0)
    listen()
    sys.excepthook = _traceback
    verb, rest = _split(arguments)
    if verb in JOBS:
        # So that model.factory=my_file:net is found; last, so that no file of a stranger's stands in for what is installed.
        sys.path.append(str(Path.cwd()))
    sys.exit(_run(verb, rest))


def _version() -> str:
    from importlib.metadata import version

    return version("autocompress")


def _split(arguments: list[str]) -> tuple[str, list[str]]:
    """The verb, and what Hydra shall see. A verb that is left out is `search`, so that Hydra's own flags work alone."""
    if arguments[0].startswith("-") or "=" in arguments[0]:
        return DEFAULT_VERB, arguments
    return arguments[0], arguments[1:]


def _run(verb: str, arguments: Sequence[str]) -> int:
    try:
        return _answer(verb, arguments)
    except AutocompressError as error:
        return _fail(str(error), _status(error))
    except KeyboardInterrupt:
        return _fail("interrupted; the same command resumes", status=INTERRUPTED)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except OSError as error:
        if not is_unwritable(error):
            raise
        return _fail(f"{error.strerror}: {error.filename or 'a file'}; {UNWRITTEN}", FAILURE)


def _answer(verb: str, arguments: Sequence[str]) -> int:
    if verb not in VERBS:
        raise ConfigError(f"unknown verb '{verb}'; expected one of {', '.join(VERBS)}{nearest(verb, VERBS)}")
    if answered(arguments, JOBS, COMMANDS):
        return 0
    if list(arguments) in (["--help"], ["-h"]):
        return print_help(verb, lambda: _done(verb, arguments))
    return _done(verb, arguments)


def _done(verb: str, arguments: Sequence[str]) -> int:
    return int(import_module(COMMANDS[verb]).main(arguments)) if verb in COMMANDS else _run_job(verb, arguments)


def _run_job(verb: str, arguments: Sequence[str]) -> int:
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from autocompress import config
    from autocompress.registry import load_registry
    from autocompress.verbs import run_verb

    warnings.formatwarning = _warning
    sys.argv = [sys.argv[0], *arguments]
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    registry = load_registry()
    config.register(registry)
    try:
        config.hydra_main(verb, lambda job: run_verb(verb, job, registry), registry)
    except (HydraException, OmegaConfBaseException) as error:
        return _fail(config.explain(error, registry))
    return 0


def _status(error: AutocompressError) -> int:
    """What was given is wrong, or what it needs does not work: then the same command may succeed later."""
    return MISTAKE if isinstance(error, (ValueError, LookupError)) else FAILURE


def _warning(message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None) -> str:
    """Ours without the place in the code, which says nothing to a user."""
    if issubclass(category, AutocompressError):
        return f"warning: {_line(str(message))}\n"
    return masked(_format_warning(message, category, filename, lineno, line))


def _traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Python's own, without secrets."""
    sys.stderr.write(masked("".join(traceback.format_exception(kind, error, trace))))


def _line(text: str) -> str:
    """Without secrets."""
    return masked(" ".join(text.split()))


def _fail(message: str, status: int = MISTAKE) -> int:
    sys.stderr.write(f"autocompress: {_line(message)}\n")
    return status
