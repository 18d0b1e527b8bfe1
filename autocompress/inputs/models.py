"""The model to compress: a torchvision net by name or a factory of the user's own, with its weights."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from autocompress.bounds import check_seed
from autocompress.errors import ConfigError, ModelError
from autocompress.inputs.factories import call_factory


@dataclass
class ModelSettings:
    """Which model, exactly one of `torchvision` and `factory`.

    Attributes:
        name: names the study and the output folder.
        torchvision: a name that `torchvision.models.list_models()` lists.
        weights: with `torchvision`, one of its named weights, for example 'DEFAULT'; none: random.
        factory: 'module:function' that returns an nn.Module.
        kwargs: arguments of the torchvision builder or the factory.
        state_dict: file of named tensors, .safetensors or readable by `torch.load(weights_only=True)`.
        train_epochs: with no `state_dict`, train a baseline for so long on `data.train_size` examples.
        seed: of the initial weights and of the training.
    """

    name: str = "model"
    torchvision: str | None = None
    weights: str | None = None
    factory: str | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)
    state_dict: str | None = None
    train_epochs: int = 0
    seed: int = 0


def build_model(settings: ModelSettings) -> nn.Module:
    """The model in eval mode with its weights; the same settings give the same weights.

    Raises:
        ConfigError: not exactly one of torchvision and factory, or the factory cannot be called as configured.
        ModelError: an unknown torchvision name or weights, weights that cannot be read, or that do not fit.
    """
    check_seed("model", settings.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = _construct(settings)
    if settings.state_dict:
        load_weights(model, Path(settings.state_dict))
    return model.eval()


def _construct(settings: ModelSettings) -> nn.Module:
    if bool(settings.torchvision) == bool(settings.factory):
        given = "both are set" if settings.factory else "neither is set"
        raise ConfigError(f"model: {given}; expected exactly one of model.torchvision=NAME and model.factory=module:function")
    if settings.torchvision:
        return _from_torchvision(settings.torchvision, settings.weights, settings.kwargs)
    if settings.weights:
        raise ConfigError(
            f"model.weights: '{settings.weights}' needs model.torchvision; for a factory set model.state_dict=PATH"
        )
    return _from_factory(str(settings.factory), settings.kwargs)


def _from_factory(factory: str, kwargs: Mapping[str, Any]) -> nn.Module:
    model = call_factory("model.factory", factory, kwargs)
    if not isinstance(model, nn.Module):
        raise ModelError(f"model.factory: {factory} returned {type(model).__name__}; expected a torch.nn.Module")
    return model


def _from_torchvision(name: str, weights: str | None, kwargs: Mapping[str, Any]) -> nn.Module:
    from torchvision import models  # slow to import, and not every model needs it

    if name not in models.list_models():
        close = ", ".join(get_close_matches(name, models.list_models(), n=3)) or "none"
        raise ModelError(f"model.torchvision: no model '{name}'; close names: {close}; all: torchvision.models.list_models()")
    if weights:
        known = [weight.name for weight in models.get_model_weights(name)]
        if weights not in ("DEFAULT", *known):
            raise ModelError(f"model.weights: '{name}' has no weights '{weights}'; available: DEFAULT, {', '.join(known)}")
    try:
        with _weights_only():
            model: nn.Module = models.get_model(name, weights=weights, **kwargs)
        return model
    except TypeError as error:
        raise ModelError(f"model.kwargs: torchvision's '{name}' cannot take {dict(kwargs)}: {error}") from None
    except OSError as error:  # urllib's errors are OSErrors
        reason = f"cannot download '{weights}' of '{name}': {error}"
        raise ModelError(f"model.weights: {reason}; expected a network, or model.weights=null model.state_dict=PATH") from None
    except pickle.UnpicklingError:
        folder = Path(torch.hub.get_dir(), "checkpoints")
        raise ModelError(
            f"model.weights: '{weights}' of '{name}' in {folder} holds more than tensors; remove the file"
        ) from None


@contextmanager
def _weights_only() -> Iterator[None]:
    """Torchvision calls `torch.load` as if its files could be trusted, also those that lie in the cache unchecked."""
    variable = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(variable)
    os.environ[variable] = "1"
    try:
        yield
    finally:
        os.environ.pop(variable) if before is None else os.environ.update({variable: before})


def load_weights(model: nn.Module, path: Path) -> None:
    """Copy the tensors in the file into the model.

    Also understood: a dictionary with the state dict under 'state_dict', and names that begin with 'module.' (DataParallel).

    Raises:
        ModelError: the file cannot be read safely, or its names or shapes are not the model's; the model is unchanged.
    """
    given = _named_tensors(path)
    expected = model.state_dict()
    # Files older than this counter lack it, and eval mode never reads it.
    missing = [name for name in expected if name not in given and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in given if name not in expected]
    shapes = [
        f"{name} is {tuple(given[name].shape)}, expected {tuple(expected[name].shape)}"
        for name in expected
        if name in given and given[name].shape != expected[name].shape
    ]
    if missing or unexpected or shapes:
        faults = [_some("missing", missing), _some("unexpected", unexpected), _some("shape of", shapes)]
        what = "; ".join(filter(None, faults))
        raise ModelError(f"model.state_dict: {path} does not fit {type(model).__name__}: {what}; is it another model's file?")
    model.load_state_dict(given, strict=False)


def _named_tensors(path: Path) -> dict[str, Tensor]:
    content = _read(path)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(_is_entry(name, value) for name, value in content.items()):
        raise ModelError(f"model.state_dict: {path} holds {type(content).__name__}; expected what model.state_dict() returns")
    consume_prefix_in_state_dict_if_present(content, "module.")
    return content


def _is_entry(name: object, value: object) -> bool:
    """Whether it is a tensor under a name, real, dense and with values, as parameters are."""
    if not isinstance(name, str) or not isinstance(value, Tensor):
        return False
    return value.layout == torch.strided and value.device.type == "cpu" and not (value.is_complex() or value.is_quantized)


def _read(path: Path) -> Any:
    if not path.is_file():
        raise ModelError(f"model.state_dict: {path} is not there; expected a file: set model.state_dict (or AUTOCOMPRESS_DATA)")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of a damaged file, whatever the unpickler meets: KeyError, IndexError, UnicodeDecodeError, ...
        kind = type(error).__name__
        raise ModelError(f"model.state_dict: {path} is no file of plain tensors ({kind}); save model.state_dict()") from None


def _some(label: str, names: Iterable[str], shown: int = 3) -> str:
    """The first few names: `missing a, b, c (and 4 more)`; empty when there is none."""
    listed = list(names)
    more = f" (and {len(listed) - shown} more)" if len(listed) > shown else ""
    return f"{label} {', '.join(listed[:shown])}{more}" if listed else ""
