from __future__ import annotations

import numpy as np
import pytest
import torch
from autocompress_plugins.stability import MODES, Stability
from scipy.stats import spearmanr
from torch import Tensor

from autocompress import Pruner
from autocompress.errors import ConfigError
from autocompress.testing import PrunerContract, make_layer, make_stats


@pytest.mark.parametrize("settings", [*({"mode": mode} for mode in MODES), {"mode": "std", "spread": "tensor"}], ids=str)
class TestStability(PrunerContract):
    @pytest.fixture
    def pruner(self, settings: dict[str, str]) -> Pruner:
        return Stability(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"mode": "stable"}, r"^pruner\.stability\.mode='stable': expected one of snr, selection, std, ucb, drift$"),
        ({"spread": "layer"}, r"^pruner\.stability\.spread='layer': expected one of channel, tensor$"),
        ({"keep": 1.0}, r"^pruner\.stability\.keep=1\.0: expected a share between 0 and 1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, str], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        Stability(**settings)  # type: ignore[arg-type]


def score(weight: Tensor, gradients: Tensor, pruner: Stability | None = None) -> Tensor:
    stats = make_stats(weight, make_layer(tuple(weight.shape), "linear"), gradients)
    return (pruner or Stability()).score(weight, stats)


@pytest.fixture
def weight() -> Tensor:
    return torch.randn(6, 20, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def gradients() -> Tensor:
    return torch.randn(8, 6, 20, generator=torch.Generator().manual_seed(2))


# --- snr ---


def test_snr_follows_the_formula(weight: Tensor, gradients: Tensor) -> None:
    importance = (gradients.double().numpy() * weight.double().numpy()) ** 2
    mean = importance.mean(axis=0)
    np.testing.assert_allclose(score(weight, gradients), mean / (importance.std(axis=0) + 1e-3 * mean.mean()), rtol=1e-4)


STEADY, ERRATIC, USELESS = [1.0, -1.0, 1.0, 1.0], [2.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]
"""Gradients in four resamples; the first two have the same mean square."""


@pytest.mark.parametrize(("mode", "order"), [("snr", [0, 1, 2]), ("selection", [0, 1, 2]), ("ucb", [1, 0, 2])])
def test_what_becomes_of_unstable_weights(mode: str, order: list[int]) -> None:
    """Snr and selection cut them before stable ones, ucb keeps them longest; useless ones go first in any case."""
    gradients = torch.tensor([STEADY, ERRATIC, USELESS]).t().reshape(4, 1, 3)
    found = score(torch.ones(1, 3), gradients, Stability(mode))[0]
    assert found.argsort(descending=True).tolist() == order
    assert found[2] == 0


@pytest.mark.parametrize("mode", ["snr", "selection"])
def test_unit_of_the_loss_does_not_matter(weight: Tensor, gradients: Tensor, mode: str) -> None:
    small = score(weight, gradients * 1e-6, Stability(mode))
    np.testing.assert_allclose(score(weight, gradients, Stability(mode)), small, rtol=1e-3)


def test_strong_damping_ranks_like_importance(weight: Tensor, gradients: Tensor) -> None:
    importance = (gradients * weight).square().mean(dim=0)
    assert spearmanr(score(weight, gradients, Stability(eps=1e6)).flatten(), importance.flatten()).statistic > 0.999
    assert spearmanr(score(weight, gradients).flatten(), importance.flatten()).statistic < 0.9


def test_single_sample_ranks_by_its_importance(weight: Tensor, gradients: Tensor) -> None:
    importance = (gradients[:1] * weight).square()[0]
    assert torch.equal(score(weight, gradients[:1]).flatten().argsort(), importance.flatten().argsort())


# --- selection ---


@pytest.mark.parametrize("keep", [0.25, 0.5])
def test_selection_counts_the_resamples_that_would_keep_a_weight(weight: Tensor, gradients: Tensor, keep: float) -> None:
    importance = (gradients.numpy() * weight.numpy()) ** 2
    flat = importance.reshape(8, -1)
    ranks = flat.argsort(axis=1).argsort(axis=1)
    share = (ranks >= round((1 - keep) * 120)).mean(axis=0).reshape(6, 20)
    found = score(weight, gradients, Stability("selection", keep=keep)).numpy()
    np.testing.assert_array_equal(np.floor(found * 8 + 1e-4) / 8, share)
    mean = importance.mean(axis=0)
    for level in np.unique(share):  # ties by the mean
        order = np.argsort(mean[share == level])
        assert (np.diff(found[share == level][order]) >= 0).all()
    assert len(np.unique(found)) > 100


def test_selection_threshold_is_a_probability(weight: Tensor, gradients: Tensor) -> None:
    """0.75 keeps what six, seven or eight of eight resamples would keep."""
    importance = (gradients * weight).square().flatten(1)
    selected = importance >= importance.median(dim=1, keepdim=True).values
    selected &= importance != importance.median(dim=1, keepdim=True).values  # of 120 values the lower median is the 60th
    expected = selected.sum(dim=0).reshape(6, 20) >= 6
    assert torch.equal(score(weight, gradients, Stability("selection")) > 0.75, expected)


# --- ucb ---


def test_ucb_follows_the_formula(weight: Tensor, gradients: Tensor) -> None:
    importance = (gradients.double().numpy() * weight.double().numpy()) ** 2
    for kappa in (0.0, 2.0):
        expected = importance.mean(axis=0) + kappa * importance.std(axis=0)
        np.testing.assert_allclose(score(weight, gradients, Stability("ucb", kappa=kappa)), expected, rtol=1e-4)


@pytest.mark.parametrize("mode", ["snr", "selection", "ucb"])
def test_channels_are_judged_by_their_joint_importance(weight: Tensor, gradients: Tensor, mode: str) -> None:
    """As if each channel were one weight whose importance is that of all of it."""
    stats = make_stats(weight, make_layer((6, 20), "linear"), gradients)
    for axis in (0, 1):
        joint = (gradients * weight).sum(dim=2 - axis)  # (R, channels)
        one = score(torch.ones(1, joint.shape[1]), joint[:, None], Stability(mode))[0]
        torch.testing.assert_close(Stability(mode).channel_score(weight, stats, axis), one)


# --- std ---


def test_std_of_a_channel_is_the_spread_of_its_weights(weight: Tensor) -> None:
    stats = make_stats(weight, make_layer((6, 20), "linear"))
    for axis in (0, 1):
        expected = weight.double().numpy().std(axis=1 - axis)
        np.testing.assert_allclose(Stability("std").channel_score(weight, stats, axis), expected, rtol=1e-4)


def test_std_cuts_a_constant_channel_first_however_large_it_is() -> None:
    weight = torch.tensor([[5.0, 5.0, 5.0], [0.1, -0.1, 0.2], [1.0, 2.0, 3.0]])
    found = Stability("std").channel_score(weight, make_stats(weight, make_layer((3, 3), "linear")), 0)
    assert found.argsort().tolist() == [0, 1, 2]
    assert found[0] == 0


@pytest.mark.parametrize("kind", ["linear", "linear_last"])
def test_std_of_a_weight_is_its_part_in_the_spread(weight: Tensor, kind: str) -> None:
    axis = 0 if kind == "linear" else 1
    stats = make_stats(weight, make_layer((6, 20), "linear", axis))
    values = weight.numpy()
    found = Stability("std").score(weight, stats).numpy()
    np.testing.assert_allclose(found, np.abs(values - values.mean(axis=1 - axis, keepdims=True)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(np.sqrt((found**2).mean(axis=1 - axis)), values.std(axis=1 - axis), rtol=1e-4)
    tensor = Stability("std", spread="tensor").score(weight, stats)
    np.testing.assert_allclose(tensor, np.abs(values - values.mean()), rtol=1e-4, atol=1e-6)


# --- drift ---


def test_drift_is_the_variance_that_a_weight_passes_on(weight: Tensor) -> None:
    scale = torch.linspace(0, 2, 20)
    inputs = torch.randn(1, 100, 20, generator=torch.Generator().manual_seed(3)) * scale + 10
    stats = make_stats(weight, make_layer((6, 20), "linear"), inputs=inputs)
    seen = inputs[0].double().numpy()
    expected = seen.var(axis=0) * weight.double().numpy() ** 2
    np.testing.assert_allclose(Stability("drift").score(weight, stats), expected, rtol=5e-2, atol=1e-3)
    np.testing.assert_allclose(Stability("drift").channel_score(weight, stats, 1), expected.mean(axis=0), rtol=5e-2, atol=1e-3)
    outputs = seen @ weight.double().numpy().T
    np.testing.assert_allclose(Stability("drift").channel_score(weight, stats, 0), outputs.var(axis=0), rtol=1e-2)


def test_drift_cuts_what_never_changes() -> None:
    """A large constant is worth nothing: a bias replaces it."""
    inputs = torch.stack([torch.full((50,), 100.0), torch.randn(50, generator=torch.Generator().manual_seed(4))], dim=1)[None]
    weight = torch.tensor([[3.0, 0.5]])
    found = score_of_inputs(weight, inputs)
    assert found[0, 0] < 1e-2 < found[0, 1]


def score_of_inputs(weight: Tensor, inputs: Tensor) -> Tensor:
    stats = make_stats(weight, make_layer(tuple(weight.shape), "linear"), inputs=inputs)
    return Stability("drift").score(weight, stats)
