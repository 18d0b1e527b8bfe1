from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import SqueezeNet1_1_Weights, squeezenet1_1

from autocompress.errors import AutocompressError, ConfigError, ModelError
from autocompress.inputs.models import ModelSettings, build_model

SIZES = {"in_features": 4, "out_features": 3}


def linear(**changes: Any) -> nn.Module:
    return build_model(ModelSettings(factory="torch.nn:Linear", kwargs=SIZES, **changes))


def refusal(kind: type[AutocompressError], **settings: Any) -> str:
    with pytest.raises(kind) as raised:
        build_model(ModelSettings(**settings))
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_factory_gives_the_same_weights_for_the_same_seed() -> None:
    torch.manual_seed(5)
    outside = torch.get_rng_state()
    first, again, other = linear(seed=1), linear(seed=1), linear(seed=2)
    assert torch.equal(first.weight, again.weight)
    assert not torch.equal(first.weight, other.weight)
    assert not first.training
    assert torch.equal(torch.get_rng_state(), outside)


def test_a_torchvision_model_by_name() -> None:
    model = build_model(ModelSettings(torchvision="squeezenet1_1", kwargs={"num_classes": 7}))
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 7)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_state_dict_is_loaded_from_either_format(tmp_path: Path, suffix: str) -> None:
    path, given = tmp_path / f"weights{suffix}", {"weight": torch.ones(3, 4), "bias": torch.zeros(3)}
    (torch.save if suffix == ".pt" else save_file)(given, path)
    assert torch.equal(linear(state_dict=str(path)).weight, given["weight"])


def test_common_wrappings_of_a_state_dict_are_understood(tmp_path: Path) -> None:
    wrapped = {"epoch": 3, "state_dict": {"module.weight": torch.ones(3, 4), "module.bias": torch.zeros(3)}}
    torch.save(wrapped, tmp_path / "wrapped.pt")
    assert torch.equal(linear(state_dict=str(tmp_path / "wrapped.pt")).weight, torch.ones(3, 4))


def test_old_files_without_batch_norms_counter_fit(tmp_path: Path) -> None:
    torch.save({name: torch.ones(2) for name in ("weight", "bias", "running_mean", "running_var")}, tmp_path / "old.pt")
    settings = ModelSettings(factory="torch.nn:BatchNorm2d", kwargs={"num_features": 2}, state_dict=str(tmp_path / "old.pt"))
    assert torch.equal(build_model(settings).running_mean, torch.ones(2))


def test_a_misfit_names_file_keys_and_shapes(tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    torch.save({"weight": torch.zeros(5, 4), **{f"extra{index}": torch.zeros(1) for index in range(5)}}, path)
    message = refusal(ModelError, factory="torch.nn:Linear", kwargs=SIZES, state_dict=str(path))
    assert str(path) in message
    assert "missing bias" in message
    assert "unexpected extra0, extra1, extra2 (and 2 more)" in message
    assert "weight is (5, 4), expected (3, 4)" in message


class Anything:
    """What an untrusted pickle could hold."""


@pytest.mark.parametrize("content", [Anything(), [1, 2], {"weight": 1}])
def test_a_file_with_more_than_tensors_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "odd.pt")
    assert "odd.pt" in refusal(ModelError, factory="torch.nn:Linear", kwargs=SIZES, state_dict=str(tmp_path / "odd.pt"))


class Intruder:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_file_runs_no_code(tmp_path: Path) -> None:
    weights, trace = tmp_path / "weights.pt", tmp_path / "trace"
    torch.save({"weight": Intruder(trace)}, weights)
    torch.load(weights, weights_only=False)
    assert trace.exists(), "the file is as dangerous as it is meant to be"
    trace.unlink()
    assert "weights.pt" in refusal(ModelError, factory="torch.nn:Linear", kwargs=SIZES, state_dict=str(weights))
    assert not trace.exists()


def test_weights_that_torchvision_has_kept_run_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It checks neither their hash nor what is in them."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    kept = tmp_path / "hub/checkpoints" / Path(SqueezeNet1_1_Weights.DEFAULT.url).name
    kept.parent.mkdir(parents=True)
    torch.save({"weight": Intruder(tmp_path / "trace")}, kept)
    message = refusal(ModelError, torchvision="squeezenet1_1", weights="DEFAULT")
    assert f"'DEFAULT' of 'squeezenet1_1' in {kept.parent} holds more than tensors" in message
    assert not (tmp_path / "trace").exists()
    torch.save(squeezenet1_1().state_dict(), kept)
    assert build_model(ModelSettings(torchvision="squeezenet1_1", weights="DEFAULT")).training is False
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


@pytest.mark.parametrize("name", ["broken.pt", "broken.safetensors", "absent.pt"])
def test_an_unreadable_file_is_named(tmp_path: Path, name: str) -> None:
    if name.startswith("broken"):
        (tmp_path / name).write_bytes(b"no weights at all")
    assert name in refusal(ModelError, factory="torch.nn:Linear", kwargs=SIZES, state_dict=str(tmp_path / name))


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        (ConfigError, {}, ["neither", "model.torchvision", "model.factory"]),
        (ConfigError, {"torchvision": "resnet18", "factory": "torch.nn:ReLU"}, ["both"]),
        (ConfigError, {"factory": "torch.nn:ReLU", "weights": "DEFAULT"}, ["model.weights", "model.state_dict"]),
        (ModelError, {"torchvision": "resnet81"}, ["resnet81", "resnet18"]),
        (ModelError, {"torchvision": "resnet18", "weights": "BEST"}, ["BEST", "IMAGENET1K_V1"]),
        (ModelError, {"torchvision": "resnet18", "kwargs": {"depth": 3}}, ["model.kwargs", "depth"]),
        (ModelError, {"factory": "builtins:list"}, ["builtins:list", "list", "Module"]),
        (ConfigError, {"factory": "torch.nn.Linear"}, ["torch.nn.Linear", "module:function"]),
        (ConfigError, {"factory": "no_such_module:net"}, ["no_such_module", "No module named"]),
        (ConfigError, {"factory": "torch.nn:Linaer"}, ["Linaer", "did you mean 'Linear'"]),
        (ConfigError, {"factory": "torch.nn:Linear", "kwargs": {"width": 3}}, ["torch.nn:Linear", "width", "in_features"]),
    ],
)
def test_wrong_settings_are_explained(kind: type[AutocompressError], settings: dict[str, Any], words: list[str]) -> None:
    message = refusal(kind, **settings)
    assert all(word in message for word in words), message


ODD = {
    "sparse": {"weight": torch.ones(3, 4).to_sparse()},
    "on meta": {"weight": torch.ones(3, 4, device="meta")},
    "complex": {"weight": torch.ones(3, 4, dtype=torch.complex64)},
    "a number for a name": {3: torch.ones(3)},
    "a list": {"weight": [1.0]},
}


@pytest.mark.parametrize("content", ODD.values(), ids=ODD)
def test_what_is_no_parameter_is_refused(tmp_path: Path, content: dict[Any, Any]) -> None:
    torch.save({"bias": torch.zeros(3), **content}, tmp_path / "odd.pt")
    said = refusal(ModelError, factory="torch.nn:Linear", kwargs=SIZES, state_dict=str(tmp_path / "odd.pt"))
    assert said.startswith("model.state_dict: ")


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "touched",)

    torch.save({"weight": Hostile()}, tmp_path / "hostile.pt")
    said = refusal(ModelError, factory="torch.nn:Linear", kwargs=SIZES, state_dict=str(tmp_path / "hostile.pt"))
    assert "is no file of plain tensors (UnpicklingError)" in said
    assert not (tmp_path / "touched").exists()
