"""Hydra's side: schema, component groups, and the way from a `DictConfig` to plain dataclasses. `DictConfig` ends here."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, cast, get_args

import hydra
from hydra import compose, initialize_config_module
from hydra.conf import HydraConf
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from autocompress.budget import Budget
from autocompress.choices.space_settings import SpaceSettings
from autocompress.components import Components, Metric, Observer, Sampler, Target
from autocompress.errors import AutocompressError, ConfigError
from autocompress.guarding.masking import mask_files, masked, masked_values
from autocompress.inputs.data import DataSettings
from autocompress.inputs.models import ModelSettings
from autocompress.measuring.device import TimingSettings
from autocompress.prediction.effects import SensitivitySettings
from autocompress.probing.capability_probe import ProbeSettings
from autocompress.record import Objective
from autocompress.registry import KINDS, Registry, wrong_value
from autocompress.searching.loop import Goal, SearchSettings
from autocompress.settings import Settings
from autocompress.studies.storage import StudySettings
from autocompress.suggestion import nearest
from autocompress.trials.trial import TrialSettings

CONFIG_MODULE = "autocompress.conf"

OmegaConf.register_new_resolver("masked", masked, replace=True)  # on import, since a launcher's processes need it too

CROSS_ENTROPY = "torch.nn.functional:cross_entropy"


@dataclass
class BudgetSettings:
    """Limits of the answer; null: no limit. See `autocompress.Budget`."""

    size_bytes: float | None = None
    size_ratio: float | None = None
    latency_ms: float | None = None
    latency_ratio: float | None = None
    accuracy_drop: float | None = None
    memory_bytes: float | None = None
    load_ms: float | None = None
    latency_percentile: float = 50.0


@dataclass
class BaseSchema:
    """Keys that every search has. Components are mappings from their name to their own fields."""

    quantizer: dict[str, Any] = field(default_factory=dict)
    pruner: dict[str, Any] = field(default_factory=dict)
    recover: dict[str, Any] = field(default_factory=dict)
    observer: dict[str, Any] = field(default_factory=dict)
    metric: dict[str, Any] = field(default_factory=dict)
    target: dict[str, Any] = field(default_factory=dict)
    sampler: dict[str, Any] = field(default_factory=dict)
    tracking: dict[str, Any] = field(default_factory=dict)
    objective: str = "accuracy"
    budget: BudgetSettings = field(default_factory=BudgetSettings)
    search: SearchSettings = field(default_factory=SearchSettings)
    space: SpaceSettings = field(default_factory=SpaceSettings)
    trial: TrialSettings = field(default_factory=TrialSettings)
    timing: TimingSettings = field(default_factory=TimingSettings)
    sensitivity: SensitivitySettings = field(default_factory=SensitivitySettings)
    probe: ProbeSettings = field(default_factory=ProbeSettings)
    study: StudySettings = field(default_factory=StudySettings)


@dataclass
class JobSchema(BaseSchema):
    """A job of the command line: a search, or its tables of sensitivity, with a model and data by configuration.

    Attributes:
        loss: 'module:function' of (outputs, targets), for pruners that ask for gradients and for fine-tuning.
    """

    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    loss: str = CROSS_ENTROPY


@dataclass
class ApplySchema(JobSchema):
    """`autocompress apply`: the policy to build again."""

    policy: str = MISSING


@dataclass
class EvaluateSchema(JobSchema):
    """`autocompress evaluate`: the file to measure."""

    artifact: str = MISSING


SCHEMAS = {
    "base_schema": BaseSchema,
    "search_schema": JobSchema,
    "sensitivity_schema": JobSchema,
    "probe_schema": JobSchema,
    "worker_schema": JobSchema,
    "apply_schema": ApplySchema,
    "evaluate_schema": EvaluateSchema,
}


def register(registry: Registry) -> None:
    """Make schemas, components and plugins' config folders known to Hydra."""
    store = ConfigStore.instance()
    # Hydra copies its sources for each group that it lists, and all that is stored with them: seconds for help and completion.
    ConfigStore.__deepcopy__ = lambda self, _: self  # type: ignore[attr-defined]
    for name, schema in SCHEMAS.items():
        store.store(name=name, node=schema)
    for (kind, name), registered in registry.components.items():
        package = f"{kind}.{name}"
        store.store(name=name, group=kind, node=registered.component, package=package, provider=registered.plugin.distribution)
    _PluginConfigs.folders = list(_plugin_configs(registry))
    Plugins.instance().register(_PluginConfigs)


class _PluginConfigs(SearchPathPlugin):
    """Adds the `conf` folder that a plugin's package may carry."""

    folders: list[str] = []  # noqa: RUF012  (Hydra creates the instance itself, so the class has to carry them)

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in self.folders:
            search_path.append(provider="autocompress-plugin", path=f"pkg://{folder}")


def _plugin_configs(registry: Registry) -> Iterator[str]:
    modules = [getattr(plugin, "__name__", "") for plugin in registry.manager.get_plugins()]
    for package in dict.fromkeys(name.split(".")[0] for name in modules):
        is_package = hasattr(sys.modules.get(package), "__path__")  # a plugin may be a single module
        if package != "autocompress" and is_package and (files(package) / "conf" / "__init__.py").is_file():
            yield f"{package}.conf"


def compose_settings(overrides: Sequence[str], registry: Registry) -> Settings:
    """Settings for a search from Python: the packaged defaults with Hydra overrides, without model and data.

    Raises:
        ConfigError: as on the command line, in one line.
    """
    register(registry)
    try:
        with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
            return search_settings(composed("base", overrides, registry), registry, Path())
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error, registry)) from error


def composed(name: str, overrides: Sequence[str], registry: Registry) -> DictConfig:
    """A primary config with overrides; Hydra is initialized.

    Raises:
        ConfigError: it cannot be composed.
    """
    try:
        return compose(name, overrides=list(overrides))
    except Exception as error:  # Hydra also passes on what odd values lead it to: a TypeError for `pruner=[null]`
        raise ConfigError(explain(error, registry)) from error


@dataclass(frozen=True)
class Job:
    """One invocation of the command line, free of Hydra.

    Attributes:
        label: what sets a job of a sweep apart from the others; empty: it is the only one.
        loss: address of a function of (outputs, targets).
        policy, artifact: the file that `apply` or `evaluate` was given.
    """

    settings: Settings
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    loss: str = CROSS_ENTROPY
    policy: Path | None = None
    artifact: Path | None = None
    label: str = ""


def hydra_main(verb: str, run: Callable[[Job], None], registry: Registry) -> None:
    """Let Hydra read the command line and run the job, or each job of a sweep; a job that fails does not stop the sweep.

    Raises:
        AutocompressError: the first of our own errors. Kept until Hydra has ended, which would print around it.
    """
    errors: list[AutocompressError] = []
    begun: list[DictConfig] = []

    def job(config: DictConfig) -> None:
        begun.append(config)
        hydra_config = HydraConfig.get()
        _mask_written(hydra_config)
        try:
            run(replace(job_from(config, registry), label=_label(hydra_config)))
        except AutocompressError as error:
            if hydra_config.mode == RunMode.MULTIRUN:
                raise  # a launcher's process of its own; Hydra hands it on when all jobs have run
            errors.append(error)

    try:
        hydra.main(version_base="1.3", config_path=f"pkg://{CONFIG_MODULE}", config_name=verb)(job)()
    except Exception as error:
        if begun or isinstance(error, (AutocompressError, OSError)):
            raise
        raise ConfigError(explain(error, registry)) from error  # as in `composed`
    if errors:
        raise errors[0]


def _mask_written(config: HydraConf) -> None:
    """What Hydra has written of the configuration by now: the job's, and by its first job the sweep's."""
    if config.output_subdir is not None:
        mask_files(Path(config.runtime.output_dir, config.output_subdir))
    if config.mode == RunMode.MULTIRUN and config.job.num == 0:
        mask_files(Path(config.sweep.dir))


class Masking(Callback):
    """Hydra prints what a job that failed was told."""

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Called before that."""
        job_return.overrides = masked_values(job_return.overrides)


def _label(config: HydraConf) -> str:
    """A sweep's job by its number and its own settings."""
    return f"#{config.job.num} {masked(config.job.override_dirname)}" if config.mode == RunMode.MULTIRUN else ""


def job_from(config: DictConfig, registry: Registry, folder: Path | None = None) -> Job:
    """The job that a composed configuration describes; its folder is Hydra's unless one is given."""
    settings = search_settings(config, registry, folder or Path(HydraConfig.get().runtime.output_dir))
    schema = cast(JobSchema, OmegaConf.to_object(config))
    paths = {name: Path(getattr(schema, name)) for name in ("policy", "artifact") if hasattr(schema, name)}
    return Job(settings, schema.model, schema.data, schema.loss, paths.get("policy"), paths.get("artifact"))


def search_settings(config: DictConfig, registry: Registry, folder: Path) -> Settings:
    """Validate everything, and leave Hydra behind.

    Raises:
        ConfigError: a mandatory value is open, or a value is not allowed; all open keys are named together.
    """
    _require_values(config)
    _refuse_unknown(config, registry)
    values = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    _require_types(OmegaConf.structured(OmegaConf.get_type(config)), values)
    schema = cast(BaseSchema, OmegaConf.to_object(config))
    if schema.objective not in get_args(Objective):
        raise ConfigError(f"objective='{schema.objective}': expected one of {', '.join(get_args(Objective))}")
    return Settings(
        goal=Goal(cast(Objective, schema.objective), Budget(**asdict(schema.budget))),
        components=_components(schema, registry),
        search=schema.search,
        space=schema.space,
        trial=schema.trial,
        timing=schema.timing,
        sensitivity=schema.sensitivity,
        probe=schema.probe,
        folder=folder,
        plain=cast(Mapping[str, Any], masked_values(values)),
        study=schema.study,
    )


def _require_values(config: DictConfig) -> None:
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ConfigError(f"no value for {', '.join(missing)}: set it on the command line, for example {missing[0]}=VALUE")


def _refuse_unknown(config: DictConfig, registry: Registry) -> None:
    """Hydra's `+key=value` adds what nothing would read."""
    schema = OmegaConf.structured(OmegaConf.get_type(config))
    known = set(_keys(schema))
    free = tuple(f"{key}." for key in known if _is_free(OmegaConf.select(schema, key)))
    unknown = [key for key in _keys(config) if key not in known and not key.startswith(free)]
    if unknown:
        raise ConfigError(_unknown_key(unknown[0], registry))


def _require_types(schema: DictConfig, values: Mapping[str, Any]) -> None:
    """Hydra does not look at what an interpolation such as `search=${objective}` gives to a section or a list."""
    for key, value in values.items():
        try:
            OmegaConf.update(schema, key, value)
        except OmegaConfBaseException as error:
            inside = error.full_key not in (None, "", key)
            raise ConfigError(wrong_value(error) if inside else _wrong_override(f"{key}={value}", str(error))) from error


def _is_free(node: Any) -> bool:
    """Whether it is a mapping with any keys, such as components and arguments of the user's functions."""
    return isinstance(node, DictConfig) and OmegaConf.get_type(node) is dict


def _components(schema: BaseSchema, registry: Registry) -> Components:
    return Components(
        quantizers=_several(schema, "quantizer", registry),
        pruners=_several(schema, "pruner", registry),
        observer=cast(Observer, _one(schema, "observer", registry)),
        metric=cast(Metric, _one(schema, "metric", registry)),
        target=cast(Target, _one(schema, "target", registry)),
        sampler=cast(Sampler, _one(schema, "sampler", registry)),
        recoveries=tuple(_several(schema, "recover", registry).values()),
        searched_observers=_searched_observers(schema, registry),
        trackers=tuple(_several(schema, "tracking", registry).values()),
    )


def _several(schema: BaseSchema, kind: str, registry: Registry) -> dict[str, Any]:
    return {name: _instance(kind, name, values, registry) for name, values in getattr(schema, kind).items()}


def _searched_observers(schema: BaseSchema, registry: Registry) -> dict[str, Observer]:
    """Those of `search.observers` besides the configured one, with their default settings."""
    names = [name for name in dict.fromkeys(schema.search.observers) if name not in schema.observer]
    return {name: cast(Observer, _instance("observer", name, {}, registry)) for name in names}


def _instance(kind: str, name: str, values: Any, registry: Registry) -> Any:
    """Hydra gives an instance when the group file is the dataclass itself, a mapping when the user wrote YAML."""
    return values if isinstance(values, registry.component(kind, name)) else registry.create(kind, name, values)


def _one(schema: BaseSchema, kind: str, registry: Registry) -> Any:
    found = _several(schema, kind, registry)
    if len(found) != 1:
        raise ConfigError(
            f"{kind}: expected exactly one, found {', '.join(found) or 'none'}; available: {', '.join(registry.names(kind))}"
        )
    return next(iter(found.values()))


def explain(error: Exception, registry: Registry) -> str:
    """Hydra's and OmegaConf's errors in one line."""
    text = " ".join(f"{error} {error.__cause__ or ''}".split()).split(" Config search path:")[0]
    option = re.search(r"Could not (?:find|load) '([\w/]+)/([^'/]+)'(?: Available options in '[^']*': (.*))?", text)
    if option:
        return _unknown_option(option[1], option[2], (option[3] or "").split(), registry)
    key = re.search(r"Could not override '([^'@]+)", text)
    if key:
        return _unknown_key(key[1], registry)
    unread = re.search(
        r"^Error parsing override '(.*?)' missing EQUAL|^(?:Error parsing override )?(.*) See https://hydra", text
    )
    if unread:
        return _unread(unread[1] or "", unread[2] or "")
    wrong = re.search(r"^Error merging override (\S+) (.*?)( value: .*)? full_key: ", text)
    return _wrong_override(wrong[1], wrong[2]) if wrong else text


def _unread(word: str, problem: str) -> str:
    """What to write instead of an argument that is no override."""
    if word:
        return f"'{word}' is no option; expected KEY=VALUE, or +experiment={word} for a packaged experiment of that name"
    return (
        f"an argument cannot be read: {problem}; close brackets and quotes, and quote the argument for the shell: 'KEY=[A,B]'"
    )


def _wrong_override(override: str, problem: str) -> str:
    """What is wrong with a value, beside the override as it was written."""
    key = override.partition("=")[0]
    inner = [name for name in _keys(OmegaConf.structured(JobSchema)) if name.startswith(f"{key}.")]
    return f"{override}: {key} has options of its own: {', '.join(inner)}" if inner else f"{override}: {problem}"


def _unknown_option(group: str, name: str, known: Sequence[str], registry: Registry) -> str:
    """What to write instead of an option that a group does not have."""
    if group in KINDS:
        return str(registry.unknown(group, name))
    return f"{group} '{name}' is not there; available: {', '.join(known) or 'none'}{nearest(name, known)}"


def _unknown_key(key: str, registry: Registry) -> str:
    """What to write instead of a key that does not exist."""
    groups = _optional_groups()
    if key in groups:
        return f"{key} has no default to override: write +{key}=NAME"
    options = list(_component_keys(registry))
    known = [*_keys(OmegaConf.structured(JobSchema)), *options]
    if key in options:
        kind, name = key.split(".")[:2]
        return f"{key} is an option of {kind} '{name}', which is not in use: choose it with {kind}={name}"
    meant = nearest(key, [*known, *(f"+{group}" for group in groups)])
    beside = [name for name in known if name.rpartition(".")[0] == key.rpartition(".")[0]]
    guess = meant or (f"; keys beside it: {', '.join(beside)}" if beside else "")
    return f"unknown config key '{key}'{guess} (all keys: autocompress search --cfg job)"


def _optional_groups() -> list[str]:
    """Groups of the packaged configuration that are no keys themselves."""
    known = {entry.name for entry in fields(JobSchema)}
    folders = [folder.name for folder in files(CONFIG_MODULE).iterdir() if folder.is_dir()]
    return sorted(name for name in folders if name not in known and not name.startswith("_"))


def _component_keys(registry: Registry) -> Iterator[str]:
    """Every field of every component."""
    for (kind, name), registered in registry.components.items():
        yield from (f"{kind}.{name}.{entry.name}" for entry in fields(cast(Any, registered.component)))


def _keys(config: DictConfig, prefix: str = "") -> Iterator[str]:
    for key in config:
        yield f"{prefix}{key!s}"
        if not OmegaConf.is_missing(config, key) and isinstance(config[key], DictConfig):
            yield from _keys(config[key], f"{prefix}{key!s}.")
