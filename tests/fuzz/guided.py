"""One reader under atheris: inputs guided by which lines of autocompress, its plugins and PyYAML they reach.

`python -m tests.fuzz` starts it for each reader; it ends with the number of inputs read in a file, or with the input that broke
something in another.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path
from random import Random

import atheris

with atheris.instrument_imports(include=["autocompress", "autocompress_plugins", "yaml"]):
    from autocompress.errors import AutocompressError
    from tests.fuzz.targets import TARGETS

LIMITS = ("-max_len=8192", "-timeout=60", "-rss_limit_mb=6000", "-print_final_stats=0", "-verbosity=0")
OWN_MUTATIONS = 0.7
"""Share of inputs that the reader's own mutation makes; the others are libFuzzer's."""


def main() -> None:
    """Arguments: the reader, the number of inputs, the seed, and the folder for what is left: `inputs`, or `crash-*`."""
    name, runs, seed, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    warnings.simplefilter("ignore")
    target, count = TARGETS[name], 0

    def one(data: bytes) -> None:
        nonlocal count
        count += 1
        if count == runs:
            (folder / "inputs").write_text(str(count))
        try:
            target.read(data)
        except AutocompressError as error:
            assert "\n" not in str(error), f"more than a line: {error}"

    def mutate(data: bytes, most: int, chosen: int) -> bytes:
        random = Random(chosen)
        made = target.mutate(bytes(data), random) if random.random() < OWN_MUTATIONS else atheris.Mutate(data, most)
        return bytes(made[:most])

    with tempfile.TemporaryDirectory() as corpus:
        for place, valid in enumerate(target.seeds):
            Path(corpus, str(place)).write_bytes(valid)
        options = [*LIMITS, f"-runs={runs}", f"-seed={seed}", f"-artifact_prefix={folder}/", corpus]
        atheris.Setup([sys.argv[0], *options], one, custom_mutator=mutate)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
