from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from autocompress_plugins.importance import CRITERIA, Importance
from scipy.stats import spearmanr
from torch import Tensor

from autocompress import LayerPolicy, Pruner
from autocompress.errors import ConfigError
from autocompress.tensors.sparsity import weight_mask
from autocompress.testing import GRADIENT_EXAMPLES, PrunerContract, make_layer, make_stats


@pytest.mark.parametrize("criterion", CRITERIA)
class TestImportance(PrunerContract):
    @pytest.fixture
    def pruner(self, criterion: str) -> Pruner:
        return Importance(criterion)


class TestWithoutCompensation(PrunerContract):
    @pytest.fixture
    def pruner(self) -> Pruner:
        return Importance(compensate=False)


def test_unknown_criterion_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^pruner\.importance\.criterion='hessian': expected one of taylor, activation, "):
        Importance("hessian")


# --- taylor and fisher: against removing weights from a real loss ---


def loss(weight: Tensor, example: Tensor) -> Tensor:
    """Linear in the weight, so that its first-order expansion is exact."""
    return (weight @ example).sum()


def gradient(weight: Tensor, example: Tensor) -> Tensor:
    leaf = weight.clone().requires_grad_()
    return torch.autograd.grad(loss(leaf, example), leaf)[0]


@pytest.fixture
def weight() -> Tensor:
    return torch.randn(3, 5, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def examples() -> Tensor:
    return torch.randn(8, 5, generator=torch.Generator().manual_seed(1))


def stats_of(weight: Tensor, examples: Tensor) -> Any:
    gradients = torch.stack([gradient(weight, example) for example in examples])
    return make_stats(weight, make_layer((3, 5), "linear"), gradients)


def squared_changes(weight: Tensor, without: Tensor, examples: Tensor) -> list[float]:
    return [float(loss(weight, example) - loss(without, example)) ** 2 for example in examples]


def test_taylor_is_the_squared_change_of_the_loss(weight: Tensor, examples: Tensor) -> None:
    score = Importance().score(weight, stats_of(weight, examples))
    for index in np.ndindex(3, 5):
        without = weight.clone()
        without[index] = 0
        assert score[index].item() == pytest.approx(np.mean(squared_changes(weight, without, examples)), rel=1e-4)


@pytest.mark.parametrize("axis", [0, 1])
def test_taylor_of_a_channel_is_the_squared_change_when_all_of_it_goes(weight: Tensor, examples: Tensor, axis: int) -> None:
    score = Importance().channel_score(weight, stats_of(weight, examples), axis)
    for channel in range(weight.shape[axis]):
        without = weight.index_fill(axis, torch.tensor([channel]), 0.0)
        assert score[channel].item() == pytest.approx(np.mean(squared_changes(weight, without, examples)), rel=1e-4)


def test_opposite_gradients_do_not_cancel() -> None:
    weight = torch.ones(1, 2)
    stats = make_stats(weight, make_layer((1, 2), "linear"), torch.tensor([[[3.0, 1.0]], [[-3.0, 1.0]]]))
    assert Importance().score(weight, stats).tolist() == [[9.0, 1.0]]


def test_fisher_is_half_the_mean_square_gradient_of_single_examples(weight: Tensor) -> None:
    """Recovered from means over batches, of which there are many here, so that the estimate is close."""
    single = torch.randn(40_000, 3, 5, generator=torch.Generator().manual_seed(2)) * 2 + 0.7
    batches = single.reshape(-1, GRADIENT_EXAMPLES, 3, 5).mean(dim=1)
    stats = make_stats(weight, make_layer((3, 5), "linear"), batches)
    expected = (single.numpy() ** 2).mean(axis=0) * weight.numpy() ** 2 / 2
    np.testing.assert_allclose(Importance("fisher").score(weight, stats), expected, rtol=0.15)
    assert spearmanr(Importance("fisher").score(weight, stats).flatten(), expected.flatten()).statistic > 0.98


def test_fisher_of_a_single_batch_has_no_spread_to_measure(weight: Tensor) -> None:
    stats = make_stats(weight, make_layer((3, 5), "linear"), torch.full((1, 3, 5), 2.0))
    torch.testing.assert_close(Importance("fisher").score(weight, stats), 2 * weight.square())


# --- wanda and activation: against the inputs themselves ---


@pytest.fixture
def inputs() -> Tensor:
    """(1, n, d): inputs of different size, with a mean."""
    scale = torch.tensor([0.1, 5.0, 1.0, 2.0, 0.5, 3.0, 1.0, 0.2])
    return torch.randn(1, 200, 8, generator=torch.Generator().manual_seed(3)) * scale + scale


@pytest.fixture
def matrix() -> Tensor:
    """Rows of very different size."""
    rows = torch.tensor([100.0, 1.0, 0.01, 1.0, 10.0, 0.1])
    return torch.randn(6, 8, generator=torch.Generator().manual_seed(4)) * rows[:, None]


def test_wanda_is_the_magnitude_times_the_norm_of_the_input(matrix: Tensor, inputs: Tensor) -> None:
    found = Importance("wanda").score(matrix, make_stats(matrix, make_layer((6, 8), "linear"), inputs=inputs)).numpy()
    plain = np.abs(matrix.numpy()) * np.linalg.norm(inputs[0].numpy(), axis=0)
    np.testing.assert_allclose(found, plain / plain.mean(axis=1, keepdims=True), rtol=1e-4)


def test_wanda_cuts_about_the_same_share_of_each_output(matrix: Tensor, inputs: Tensor) -> None:
    """As the paper's mask does exactly; the plain product would empty the small outputs."""
    layer = make_layer((60, 8), "linear")
    weight = matrix.repeat(10, 1) * torch.randn(60, 8, generator=torch.Generator().manual_seed(5))
    stats = make_stats(weight, layer, inputs=inputs)
    score = Importance("wanda").score(weight, stats)
    mask = weight_mask(score, layer, LayerPolicy(pruner="importance", sparsity=0.5))
    plain = (weight.abs() * stats.input_square.sqrt()).numpy()
    each = plain > np.median(plain, axis=1, keepdims=True)  # the paper's mask
    assert (mask.numpy() == each).mean() > 0.85
    assert (mask.sum(1) >= 2).all() and (mask.sum(1) <= 7).all()
    layerwise = plain > np.median(plain)
    assert (layerwise == each).mean() < 0.7
    assert layerwise.sum(axis=1).min() == 0


def test_wanda_judges_channels_by_the_layers_that_read_them(matrix: Tensor, inputs: Tensor) -> None:
    stats = make_stats(matrix, make_layer((6, 8), "linear"), inputs=inputs)
    pruner = Importance("wanda")
    torch.testing.assert_close(pruner.channel_score(matrix, stats, 0), torch.ones(6))
    torch.testing.assert_close(pruner.channel_score(matrix, stats, 1), pruner.score(matrix, stats).mean(0))


def rms(values: Any, axis: int = 0) -> Any:
    return np.sqrt((np.asarray(values, np.float64) ** 2).mean(axis=axis))


def test_activation_is_what_passes_both_ends_of_a_weight(matrix: Tensor, inputs: Tensor) -> None:
    stats = make_stats(matrix, make_layer((6, 8), "linear"), inputs=inputs)
    outputs = inputs[0].numpy() @ matrix.numpy().T
    pruner = Importance("activation")
    np.testing.assert_allclose(pruner.score(matrix, stats), np.outer(rms(outputs), rms(inputs[0])), rtol=1e-4)
    np.testing.assert_allclose(pruner.channel_score(matrix, stats, 0), rms(outputs), rtol=1e-4)
    np.testing.assert_allclose(pruner.channel_score(matrix, stats, 1), rms(inputs[0]), rtol=1e-4)


def test_activation_of_an_input_channel_covers_its_window() -> None:
    inputs = torch.randn(1, 50, 3 * 4, generator=torch.Generator().manual_seed(6))
    weight = torch.ones(2, 3, 2, 2)
    stats = make_stats(weight, make_layer((2, 3, 2, 2)), inputs=inputs)
    expected = rms(inputs[0].reshape(50, 3, 4).transpose(0, 1).flatten(1), axis=1)
    np.testing.assert_allclose(Importance("activation").channel_score(weight, stats, 1), expected, rtol=1e-4)


def test_dead_inputs_and_rows_are_no_problem(matrix: Tensor) -> None:
    matrix[2] = 0
    stats = make_stats(matrix, make_layer((6, 8), "linear"), inputs=torch.zeros(1, 10, 8))
    for criterion in CRITERIA:
        assert Importance(criterion).score(matrix, stats).isfinite().all()
        assert Importance(criterion).channel_score(matrix, stats, 1).isfinite().all()
