"""A stranger's quantizer that misbehaves in four bits, as the environment says; a tracker that does so at each trial."""

import os
import sys
import time
from dataclasses import dataclass

from autocompress_plugins.affine import Int4

from autocompress import Tracker, hookimpl

FAULTS = {
    "hang": lambda: time.sleep(1e6),
    "exit": lambda: os._exit(7),
    "raise": lambda: (_ for _ in ()).throw(SystemExit(3)),
    "print": lambda: sys.stdout.write("a stranger was here\n"),
    "fork": lambda: None if os.fork() else time.sleep(0.2),
}


@dataclass
class Strange(Int4):
    """INT4."""

    name = "strange"

    def quantize(self, *arguments, **more):
        FAULTS[os.environ.get("STRANGE", "print")]()
        return super().quantize(*arguments, **more)


@dataclass
class Loud(Tracker):
    """Never lets a trial pass."""

    name = "loud"

    @hookimpl
    def autocompress_trial_finished(self):
        raise SystemExit(5)


@hookimpl
def autocompress_quantizers():
    return [Strange]


@hookimpl
def autocompress_trackers():
    return [Loud]
