"""Learned rounding against every possible rounding of a small layer, and on the tiny network."""

from __future__ import annotations

import io
import itertools
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from autocompress_plugins.adaround import AdaRound
from autocompress_plugins.adaround.rounding import SoftRounding
from autocompress_plugins.adaround.units import find_units
from torch import Tensor, nn

from autocompress import CompressedLayer, LayerPolicy, Policy, QuantizedTensor, Recoverable, Recovery, Task
from autocompress.display.progress import Progress
from autocompress.errors import ConfigError
from autocompress.network.exporting import export
from autocompress.policy import ChannelPolicy
from autocompress.tensors.calibration import Calibration
from autocompress.tensors.compress import LayerDatabase
from autocompress.testing import RecoveryContract
from autocompress.trials.trial import Bench

if TYPE_CHECKING:
    from tests.conftest import Tiny

LAYERS = ("stem.0", "inner.0", "outer.0", "depthwise.0", "pointwise", "head")
INT4, INT8 = LayerPolicy("int4", 4), LayerPolicy("int8", 8)
QUICK = AdaRound(iterations=40)


class TestAdaRound(RecoveryContract):
    @pytest.fixture
    def recovery(self) -> Recovery:
        return AdaRound()


@pytest.fixture
def make(bench: Bench, tmp_path: Path) -> Callable[[Policy], Recoverable]:
    return lambda policy: bench.recoverable(policy, tmp_path, 0, Progress(io.StringIO()))


def coded(compressed: CompressedLayer) -> QuantizedTensor:
    assert isinstance(compressed.weight, QuantizedTensor)
    return compressed.weight


def steps(candidate: Recoverable, recovered: Recoverable, name: str) -> Tensor:
    before, after = (coded(one.compressed.layers[name]) for one in (candidate, recovered))
    assert torch.equal(before.scale, after.scale)
    assert torch.equal(before.zero_point, after.zero_point)
    assert after.codes.dtype == torch.int8
    return after.codes.int() - before.codes.int()


def held_out_error(candidate: Recoverable) -> float:
    """On images that nothing was learned from, as a share of the outputs' variance."""
    inputs = torch.from_numpy(candidate.task.sets["search"].inputs)
    with torch.no_grad():
        expected, found = candidate.task.model(inputs), candidate.twin()(inputs)
    return float((found - expected).square().mean() / expected.var())


def test_it_stops_within_what_is_left_of_the_searchs_time(make: Callable[[Policy], Recoverable]) -> None:
    candidate = replace(make(Policy(dict.fromkeys(LAYERS, INT4))), seconds=0.2)
    start = time.monotonic()
    AdaRound(seconds=600.0, iterations=100_000).recover(candidate)
    assert time.monotonic() - start < 60.0  # a hundred thousand steps for each block take longer


@pytest.mark.parametrize("block_layers", [1, 6])
def test_outputs_come_nearer_to_fp32_and_codes_move_by_one_step(
    make: Callable[[Policy], Recoverable], block_layers: int
) -> None:
    candidate = make(Policy(dict.fromkeys(LAYERS, INT4)))
    recovery = AdaRound(iterations=150, block_layers=block_layers)
    recovered = replace(candidate, compressed=recovery.recover(candidate))
    assert held_out_error(recovered) < 0.7 * held_out_error(candidate)
    moved = torch.cat([steps(candidate, recovered, name).flatten() for name in LAYERS])
    assert set(moved.unique().tolist()) == {-1, 0, 1}
    for name in LAYERS:
        assert coded(recovered.compressed.layers[name]).codes.abs().max() <= 8


def test_removed_weights_stay_removed(make: Callable[[Policy], Recoverable]) -> None:
    candidate = make(Policy(dict.fromkeys(LAYERS, LayerPolicy("int4", 4, "sparse", 0.5))))
    recovered = replace(candidate, compressed=QUICK.recover(candidate))
    assert any(steps(candidate, recovered, name).any() for name in LAYERS)
    for name in LAYERS:
        mask = candidate.compressed.layers[name].mask
        assert mask is not None
        assert not recovered.compressed.layers[name].dense()[~mask].any()


def test_a_candidate_with_fewer_channels(make: Callable[[Policy], Recoverable]) -> None:
    candidate = make(Policy(dict.fromkeys(LAYERS, INT4), {"inner.0": ChannelPolicy("sparse", 0.5)}))
    recovered = replace(candidate, compressed=QUICK.recover(candidate))
    assert coded(recovered.compressed.layers["inner.0"]).codes.shape == (16, 16, 3, 3)
    assert any(steps(candidate, recovered, name).any() for name in LAYERS)


def test_wide_codes_and_other_layers_stay(make: Callable[[Policy], Recoverable]) -> None:
    candidate = make(Policy({"inner.0": INT4, "outer.0": INT8}))
    recovered = AdaRound(iterations=200).recover(candidate)
    assert list(recovered.layers) == ["inner.0", "outer.0"]
    assert recovered.layers["outer.0"] is candidate.compressed.layers["outer.0"]
    assert recovered.layers["inner.0"] is not candidate.compressed.layers["inner.0"]


def test_nothing_to_learn_is_said(make: Callable[[Policy], Recoverable]) -> None:
    stream = io.StringIO()
    candidate = replace(make(Policy({"inner.0": INT8})), progress=Progress(stream))
    assert AdaRound().recover(candidate) is candidate.compressed
    assert "adaround: nothing to learn; expected weights of at most 4 bits" in stream.getvalue()


def test_what_gets_worse_is_not_taken(make: Callable[[Policy], Recoverable]) -> None:
    """A huge step on the biases ruins the outputs."""
    candidate = make(Policy(dict.fromkeys(LAYERS, INT4)))
    recovery = AdaRound(iterations=3, bias_learning_rate=100.0)
    assert recovery.recover(candidate) is candidate.compressed


def test_the_seed_decides(make: Callable[[Policy], Recoverable]) -> None:
    candidate = make(Policy(dict.fromkeys(LAYERS, INT4)))
    other = replace(candidate, seed=1)
    first, second, third = (QUICK.recover(one) for one in (candidate, candidate, other))
    same = [torch.equal(first.layers[name].dense(), second.layers[name].dense()) for name in LAYERS]
    different = [torch.equal(first.layers[name].dense(), third.layers[name].dense()) for name in LAYERS]
    assert all(same)
    assert not all(different)


def test_time_is_kept_and_progress_is_shown(make: Callable[[Policy], Recoverable]) -> None:
    """With far more steps than the time allows each block still ends with whole codes."""
    stream = io.StringIO()
    candidate = replace(make(Policy(dict.fromkeys(LAYERS, INT4))), progress=Progress(stream))
    recovered = replace(candidate, compressed=AdaRound(iterations=10_000_000, seconds=1.0).recover(candidate))
    assert "adaround [1/" in stream.getvalue()
    assert all(steps(candidate, recovered, name).abs().max() <= 1 for name in LAYERS)


def linear_candidate(tiny_task: Task, tiny: Tiny, folder: Path) -> Recoverable:
    """One linear layer on nine means of windows that overlap, so that errors of one weight can make up for those of others."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.AvgPool2d(6, 1), nn.Flatten(), nn.Linear(9, 10))
    task = replace_model(tiny_task, model)
    graph = export(model, task.example_input, folder / "linear.onnx")
    components = replace(tiny.components, recoveries=())
    calibration = Calibration(task, graph, components, folder)
    database = LayerDatabase(graph, calibration, components, {})
    policy = Policy({"2": LayerPolicy("int4", 4)})
    compressed = database.compress(policy)
    progress = Progress(io.StringIO())
    return Recoverable(task, graph, {}, components, calibration, database, policy, compressed, folder, 0, progress)


def replace_model(task: Task, model: nn.Module) -> Task:
    task.model = model.eval()
    return task


def test_the_best_of_all_roundings_is_found(tiny: Tiny, tiny_task: Task, tmp_path: Path) -> None:
    """For each of 10 outputs the 512 ways to round 9 weights are tried, each with the bias that suits it best."""
    candidate = linear_candidate(tiny_task, tiny, tmp_path)
    recovered = AdaRound(iterations=500, bias_learning_rate=1e-2).recover(candidate)
    weight, stored = torch.from_numpy(candidate.graph.initializers["2.weight"].copy()), coded(candidate.compressed.layers["2"])
    bias = torch.from_numpy(candidate.graph.initializers["2.bias"].copy())
    inputs = torch.from_numpy(candidate.task.sets["calibration"].inputs)
    pooled = nn.functional.avg_pool2d(inputs, 6, 1).flatten(1)
    (grid,) = candidate.compressed.ranges.values()
    rounded = torch.fake_quantize_per_tensor_affine(pooled, grid.scale, grid.zero_point, 0, 255)
    target = pooled @ weight.T + bias

    def errors(row: int, codes: Tensor) -> Tensor:
        """Of each choice of codes, (n, 9), for one output."""
        residual = target[:, row : row + 1] - rounded @ (codes * stored.scale[row]).T
        return residual.var(0, correction=0)

    ways = torch.tensor(list(itertools.product((0.0, 1.0), repeat=9)))
    below = (weight / stored.scale[:, None]).floor()
    best = sum(float(errors(row, (below[row] + ways).clamp(-8, 7)).min()) for row in range(10))
    codes = {"nearest": stored.codes, "learned": coded(recovered.layers["2"]).codes}
    found = {
        name: sum(float(errors(row, chosen[row : row + 1].float())) for row in range(10)) for name, chosen in codes.items()
    }
    assert best < 0.5 * found["nearest"]  # there is something to gain
    assert found["learned"] < best + 0.2 * (found["nearest"] - best)


STORED = CompressedLayer(
    QuantizedTensor(
        torch.tensor([[-8, -3, 0, 2], [7, 5, 1, 0]], dtype=torch.int8),
        torch.tensor([0.5, 2.0]),
        torch.zeros(2, dtype=torch.int8),
        axis=0,
        bits=4,
    ),
    bias=None,
    mask=torch.tensor([[True, True, True, True], [True, True, True, False]]),
)
WEIGHT = torch.tensor([[-4.2, -1.4, 0.2, 1.0], [14.5, 9.5, 9.0, 0.7]])


def rounding() -> SoftRounding:
    return SoftRounding(STORED, WEIGHT, lambda weight: weight)


def test_it_starts_at_fp32_within_half_a_step_of_the_code() -> None:
    """-4.2 and 14.5 lie beyond the grid, 9.0 four steps from its code; the last weight was removed."""
    expected = torch.tensor([[-4.0, -1.4, 0.2, 1.0], [14.0, 9.5, 3.0, 0.0]])
    torch.testing.assert_close(rounding()(WEIGHT).detach(), expected, atol=1e-3, rtol=0)
    assert torch.equal(rounding().decided().codes[0], coded(STORED).codes[0])


@pytest.mark.parametrize(("variable", "codes"), [(9.0, [[-8, -2, 1, 3], [7, 5, 2, 0]]), (-9.0, [[-8, -3, 0, 2], [7, 4, 1, 0]])])
def test_decided_codes_are_neighbours_within_the_range(variable: float, codes: list[list[int]]) -> None:
    """Up or down from where FP32 lies; a code at the end of its range and a removed weight cannot move."""
    soft = rounding()
    with torch.no_grad():
        soft.variable.fill_(variable)
    assert soft.decided().codes.tolist() == codes
    torch.testing.assert_close(soft.weight().detach(), soft.decided().dequantize())
    assert float(soft.undecided(1.0).detach()) == pytest.approx(0.0, abs=1e-6)


def test_the_undecided_are_counted_as_in_the_paper() -> None:
    """1 - |2 h - 1|^beta with beta from 20 to 2, over the five weights that can move."""
    soft = rounding()
    with torch.no_grad():
        soft.variable.fill_(1.0)
    h = 1.2 / (1 + math.exp(-1.0)) - 0.1
    for done, beta in ((0.0, 20.0), (0.5, 11.0), (1.0, 2.0)):
        assert float(soft.undecided(done).detach()) == pytest.approx(1 - (2 * h - 1) ** beta, rel=1e-5)


def test_units_are_the_largest_parts_that_fit(tiny: Tiny) -> None:
    example = torch.from_numpy(tiny.task.sets["calibration"].inputs[:2])
    assert find_units(tiny.task.model, LAYERS, 1, example) == ["stem", "inner", "outer", "depthwise", "pointwise", "head"]
    net = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), nn.Linear(4, 2))
    layers = ["0.0", "0.1", "1"]
    assert find_units(net, layers, 2, torch.zeros(2, 4)) == ["0", "1"]
    assert find_units(net, layers, 1, torch.zeros(2, 4)) == ["0.0", "0.1", "1"]


class Twice(nn.Module):
    """Calls one layer twice, and gives a pair from a part."""

    def __init__(self) -> None:
        super().__init__()
        self.again, self.pair, self.last = nn.Linear(4, 4), Pair(), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.pair(self.again(self.again(x)))
        outputs: Tensor = self.last(first + second)
        return outputs


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.inner(x), x


def test_parts_that_cannot_be_called_alone_are_no_units() -> None:
    assert find_units(Twice(), ["again", "pair.inner", "last"], 6, torch.zeros(2, 4)) == ["pair.inner", "last"]


@pytest.mark.parametrize("field", ["block_layers", "images", "iterations", "learning_rate", "rounding_weight", "seconds"])
def test_what_must_be_positive(field: str) -> None:
    with pytest.raises(ConfigError, match=rf"recover\.adaround\.{field}=0: expected a positive number"):
        AdaRound(**{field: 0})
