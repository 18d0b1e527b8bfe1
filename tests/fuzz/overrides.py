"""Words of the command line, as Hydra composes them, for a search from Python and from the command line."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

from hydra import initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from autocompress.config import CONFIG_MODULE, JobSchema, composed, explain, job_from, register, search_settings
from autocompress.errors import ConfigError
from autocompress.registry import Registry, load_registry
from tests.fuzz.mutation import mutated_lines
from tests.fuzz.target import Target

GROUPS = (
    "quantizer",
    "pruner",
    "recover",
    "observer",
    "metric",
    "target",
    "sampler",
    "tracking",
    "+experiment",
    "hydra",
    "defaults",
)
VALUES = (
    *(
        "null",
        "0",
        "-1",
        "1",
        "2.5",
        "1e999",
        "-1e999",
        "nan",
        "inf",
        "true",
        "''",
        "' '",
        "[]",
        "{}",
        "[null]",
        "[[1]]",
        "{a: 1}",
    ),
    *(
        "9" * 400,
        "a",
        "a.b",
        "a,b",
        "1,2",
        "int8",
        "[int8]",
        "[int8,int4]",
        "sparse",
        "[sparse]",
        "minmax",
        "tpe",
        "onnxruntime",
    ),
    *(
        "???",
        "${objective}",
        "${missing}",
        "${oc.env:HOME}",
        "${budget}",
        "${",
        "'unclosed",
        "[unclosed",
        "{unclosed",
        "range(1,3)",
    ),
    *(
        "../../etc/passwd",
        "digits",
        "pareto",
        "size",
        "accuracy",
        "glob(*)",
        "2:4",
        "'2:4'",
        "é",
        "\\",
        "{size_ratio: x}",
        "1000000000000",
    ),
)


@cache
def registry() -> Registry:
    return load_registry()


@cache
def keys() -> tuple[str, ...]:
    """Of the whole schema, and of components."""
    components = (
        f"{kind}.{name}.{field}" for (kind, name), one in registry().components.items() for field in _fields(one.component)
    )
    settings = OmegaConf.to_container(OmegaConf.structured(JobSchema))
    return (*_names(settings), *components, *GROUPS, "unknown", "budget.unknown", "")


def _names(settings: object, prefix: str = "") -> Iterator[str]:
    for name, value in settings.items() if isinstance(settings, dict) else ():
        yield f"{prefix}{name}"
        yield from _names(value, f"{prefix}{name}.")


def _fields(component: type) -> tuple[str, ...]:
    return tuple(getattr(component, "__dataclass_fields__", {}))


def hydra() -> None:
    """Started once for many inputs, which makes them several times as fast, unless somebody else ended it."""
    if not GlobalHydra.instance().is_initialized():
        register(registry())
        initialize_config_module(CONFIG_MODULE, version_base="1.3")


def read(data: bytes) -> None:
    """The first line says whether it is for a search from Python or for a job of the command line."""
    hydra()
    way, *words = data.decode(errors="replace").split("\n")
    try:
        if way == "job":
            job_from(composed("search", words, registry()), registry(), Path("/x"))
        else:
            search_settings(composed("base", words, registry()), registry(), Path())
    except (HydraException, OmegaConfBaseException) as error:  # what the command line does with them, and `compose_settings`
        text = explain(error, registry())
        assert text and "\n" not in text
        raise ConfigError(text) from error


SEEDS = [
    b"base\nobjective=latency\nbudget.accuracy_drop=0.01\nsearch.trials=3",
    b"base\nquantizer=[int8,int4]\npruner=[sparse]\nspace.structures=['2:4']",
    b"job\n+experiment=digits\nbudget.size_ratio=0.5\ntracking=[]",
    b"job\nmodel.factory=a:b\ndata.factory=c:d\ndata.image.mean=[0.5]\nsampler=tpe",
]
OVERRIDES = Target(SEEDS, read, mutated_lines(keys(), VALUES), runs=24_000)
