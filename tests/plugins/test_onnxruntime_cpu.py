from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import pytest
from autocompress_plugins.onnxruntime_cpu import OnnxRuntime, session

from autocompress import Target
from autocompress.config import compose_settings
from autocompress.errors import ConfigError
from autocompress.registry import Registry, load_registry
from autocompress.testing import TargetContract

if TYPE_CHECKING:
    from tests.conftest import Tiny

CPU, AZURE, CUDA = "CPUExecutionProvider", "AzureExecutionProvider", "CUDAExecutionProvider"
"""Every installation has the first, the usual Linux wheel the second (which computes none of our operators), not the third."""


class TestOnnxRuntime(TargetContract):
    @pytest.fixture
    def target(self) -> Target:
        return OnnxRuntime()


@pytest.fixture
def azure() -> None:
    if AZURE not in onnxruntime.get_available_providers():
        pytest.skip(f"this build of onnxruntime has no {AZURE}")


def run(tiny: Tiny, providers: list[str], options: dict[str, Any] | None = None) -> Any:
    inputs = tiny.task.sets["calibration"].inputs[:3]
    return session.load(str(tiny.graph.path), 1, True, providers, options)([inputs])[0]


def test_the_runtime_itself_takes_the_cpu_for_an_unknown_provider(tiny: Tiny) -> None:
    """The reason for every check below."""
    with pytest.warns(UserWarning, match="not in available provider names"):
        plain = onnxruntime.InferenceSession(tiny.graph.path, providers=[CUDA])
    assert plain.get_providers() == [CPU]


@pytest.mark.parametrize(
    ("given", "meant"),
    [("cuda", CUDA), ("CUDAExecutionProvidr", CUDA), ("TensorRT", "TensorrtExecutionProvider"), ("qnn", "QNN")],
)
def test_an_unknown_provider_is_refused_with_what_there_is_and_what_was_meant(given: str, meant: str) -> None:
    with pytest.raises(ConfigError) as error:
        OnnxRuntime(providers=[given, CPU])
    there = ", ".join(onnxruntime.get_available_providers())
    start = f"target.onnxruntime.providers: '{given}' is not available; onnxruntime {onnxruntime.__version__} has {there} here"
    assert str(error.value).startswith(f"{start}; did you mean {meant}")


@pytest.mark.skipif(CUDA in onnxruntime.get_available_providers(), reason="this build has CUDA")
def test_a_provider_that_this_build_lacks_is_refused_on_the_device_too(tiny: Tiny) -> None:
    with pytest.raises(ValueError, match=f"^providers: '{CUDA}' is not available; .* here$"):
        run(tiny, [CUDA, CPU])


def test_no_provider_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^target\.onnxruntime\.providers: none is named; "):
        OnnxRuntime(providers=[])


def test_a_provider_that_does_not_start_is_an_error(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a build for CUDA on a machine without it: the runtime goes on with the CPU."""
    monkeypatch.setattr(session.onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    with (
        pytest.warns(UserWarning, match="not in available provider names"),
        pytest.raises(RuntimeError, match=f"^providers: {CUDA} did not start; the session has {CPU}$"),
    ):
        run(tiny, [CUDA, CPU])


def test_a_provider_that_computes_nothing_is_an_error(tiny: Tiny, azure: None) -> None:
    with pytest.raises(RuntimeError, match=f"^providers: {AZURE} computes no node of the file; all are left to {CPU}$"):
        run(tiny, [AZURE, CPU])


def test_the_cpu_takes_nothing_where_it_is_not_listed(tiny: Tiny, azure: None) -> None:
    with pytest.raises(Exception, match="fallback to CPU EP has been explicitly disabled"):
        run(tiny, [AZURE])


def test_the_cpu_is_asked_first_where_it_is_listed_first(tiny: Tiny, azure: None) -> None:
    np.testing.assert_array_equal(run(tiny, [CPU, AZURE]), run(tiny, [CPU]))


def test_options_of_a_provider_reach_the_runtime(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    class Session(onnxruntime.InferenceSession):  # type: ignore[misc]
        def __init__(self, path: str, options: Any, providers: Any, provider_options: Any, **rest: Any) -> None:
            given.append((providers, provider_options))
            super().__init__(path, options, providers, provider_options, **rest)

    monkeypatch.setattr(session.onnxruntime, "InferenceSession", Session)
    target = OnnxRuntime(provider_options={CPU: {"use_arena": 0}})
    session.load(str(tiny.graph.path), 1, True, **target.options())
    assert given == [([CPU], [{"use_arena": 0}])]


def test_options_of_a_provider_that_is_not_used_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=rf"^target\.onnxruntime\.provider_options: '{CUDA}' is not among the providers: {CPU}$"
    ):
        OnnxRuntime(provider_options={CUDA: {"device_id": 0}})


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load_registry()


def test_options_of_a_provider_can_be_configured(registry: Registry) -> None:
    asked = [f"+target.onnxruntime.provider_options={{{CPU}:{{use_arena:0}}}}"]
    target = compose_settings(asked, registry).components.target
    assert target.options() == {"providers": [CPU], "provider_options": {CPU: {"use_arena": 0}}}


def test_an_unknown_provider_is_refused_when_it_is_configured(registry: Registry) -> None:
    with pytest.raises(ConfigError, match="did you mean CUDAExecutionProvider"):
        compose_settings(["target.onnxruntime.providers=[cuda]"], registry)
