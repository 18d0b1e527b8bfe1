"""Which operators one decision covers, and which options change anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

from autocompress.choices.options import build_space
from autocompress.choices.seeds import seed_policies
from autocompress.choices.space import SearchSpace
from autocompress.choices.space_settings import SpaceSettings
from autocompress.components import Capabilities
from autocompress.errors import PolicyError
from autocompress.network.exporting import export
from autocompress.network.graph import BaseGraph, Layer, Op
from autocompress.network.placement import place
from autocompress.network.regions import RegionPolicy, find_regions, merged, region_options
from autocompress.policy import LayerPolicy, Policy
from tests.choices.test_space import NO_SCORES

if TYPE_CHECKING:
    from tests.conftest import Tiny

INT8 = LayerPolicy("int8", 8)
CAPABILITIES = Capabilities(
    containers={"conv2d": (8,), "linear": (8,)},
    integer_ops=frozenset({"Add", "Mul", "Sigmoid", "GlobalAveragePool"}),
    passthrough_ops=frozenset({"MaxPool", "Reshape"}),
)


def layer(name: str, source: str, result: str, kind: str = "conv2d", macs: int = 1600) -> Layer:
    return Layer(name, kind, f"node_{name}", f"{name}.weight", None, (4, 4, 1, 1), 0, 1, macs, source, result)


def graph(layers: Sequence[Layer], ops: Sequence[Op]) -> BaseGraph:
    return BaseGraph(Path(), b"", None, {layer.name: layer for layer in layers}, tuple(ops), ("output",), {})


def regions(ops: Sequence[Op], layers: Sequence[Layer] = ()) -> list[list[str]]:
    return [[op.name for op in region] for region in find_regions(graph(layers, ops), CAPABILITIES)]


def options(found: BaseGraph) -> dict[str, tuple[RegionPolicy, ...]]:
    return region_options(found, CAPABILITIES, Policy(dict.fromkeys(found.layers, INT8)))


# --- what belongs together ---


def test_operators_that_hand_values_to_each_other_are_one_region() -> None:
    silu = [Op("s", "Sigmoid", ("a",), "b"), Op("m", "Mul", ("a", "b"), "c")]
    other = Op("add", "Add", ("x", "y"), "z")
    assert regions([*silu, other]) == [["s", "m"], ["add"]]
    assert regions([silu[0], other, Op("join", "Add", ("b", "z"), "c")]) == [["s", "add", "join"]]


def test_a_float_operator_separates_regions_and_one_with_a_constant_is_float() -> None:
    ends = [Op("a", "Add", ("x", "y"), "z"), Op("b", "Add", ("u", "x"), "v")]
    for middle in (Op("erf", "Erf", ("z",), "u"), Op("half", "Mul", ("z",), "u", constant=True)):
        assert regions([ends[0], middle, ends[1]]) == [["a"], ["b"]]
    assert regions([ends[0], Op("pool", "MaxPool", ("z",), "u"), ends[1]]) == [["a", "pool", "b"]]


def test_what_joins_tensors_is_joined_or_float() -> None:
    layers = [layer("a", "input", "x"), layer("b", "input", "y"), layer("c", "p", "output")]
    joining = replace(CAPABILITIES, joining_ops=frozenset({"Concat"}))
    ops = [Op("cat", "Concat", ("x", "y"), "z"), Op("pool", "MaxPool", ("z",), "p")]
    every = Policy(dict.fromkeys("abc", LayerPolicy("int8", 8)))
    found = region_options(graph(layers, ops), joining, every)
    assert found == {"Concat-MaxPool.cat": (RegionPolicy(), RegionPolicy("float", ("cat", "pool")))}
    assert region_options(graph(layers, ops), CAPABILITIES, every) == {}


def test_what_only_moves_values_is_no_region() -> None:
    assert regions([Op("pool", "MaxPool", ("x",), "y"), Op("shape", "Reshape", ("y",), "z")]) == []


# --- one decision for each kind ---


def blocks(*macs: int) -> BaseGraph:
    """A chain of convolutions with a sigmoid after each but the last."""
    names = [f"c{index}" for index in range(len(macs))]
    tensors = ["input", *(f"s{index}" for index in range(len(macs)))]
    layers = [layer(name, tensors[i], f"t{i}", macs=macs[i]) for i, name in enumerate(names)]
    return graph(layers, [Op(f"n{i}", "Sigmoid", (f"t{i}",), f"s{i}") for i in range(len(macs) - 1)])


def test_regions_of_a_kind_share_a_decision() -> None:
    follow, floats, integers = (
        RegionPolicy(),
        RegionPolicy("float", ("n0", "n1", "n2")),
        RegionPolicy("integer", ("n0", "n1", "n2")),
    )
    assert options(blocks(1600, 800, 400, 3200)) == {"Sigmoid.n0": (follow, floats, integers)}


def test_a_convolution_of_one_position_makes_another_kind() -> None:
    """Layers of 16 weights: 16 multiplications are one position, as between the layers of a squeeze-excite block."""
    found = options(blocks(1600, 1600, 16, 16, 1600))
    assert {name: choices[1].ops for name, choices in found.items()} == {
        "Sigmoid.n0": ("n0",),
        "Sigmoid.n1": ("n1",),
        "Sigmoid.n2": ("n2",),
        "Sigmoid.n3": ("n3",),
    }
    assert len(options(blocks(1600, 16, 16, 1600, 16, 16, 1600))) == 3  # into, within and out of the two blocks


def test_a_region_that_nothing_changes_is_left_out() -> None:
    """An operator between float operators is float under every policy of layers, but can be asked to be integer."""
    ops = [Op("e", "Erf", ("t0",), "u"), Op("s", "Sigmoid", ("u",), "v"), Op("f", "Erf", ("v",), "w")]
    apart = graph([layer("a", "input", "t0"), layer("b", "w", "output")], ops)
    assert options(apart) == {"Sigmoid.s": (RegionPolicy(), RegionPolicy("integer", ("s",)))}
    ending = graph([layer("a", "input", "t0")], [Op("s", "Sigmoid", ("t0",), "output")])
    assert all(choice.precision != "float" for choices in options(ending).values() for choice in choices)


# --- in a space: squeeze-excite ---


class Squeezed(nn.Module):
    """Two equal squeeze-excite blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(1, 8, 3, padding=1), nn.Linear(8, 10)
        self.squeeze = nn.ModuleList(nn.Conv2d(8, 8, 1) for _ in range(2))
        self.project = nn.ModuleList(nn.Conv2d(8, 8, 1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.silu(self.stem(x))
        for squeeze, project in zip(self.squeeze, self.project, strict=True):
            x = x * torch.sigmoid(squeeze(x.mean(dim=(2, 3), keepdim=True)))
            x = nn.functional.silu(project(x))
        outputs: Tensor = self.head(x.mean(dim=(2, 3)))
        return outputs


@pytest.fixture(scope="module")
def squeezed(tmp_path_factory: pytest.TempPathFactory) -> BaseGraph:
    torch.manual_seed(0)
    return export(Squeezed(), torch.randn(2, 1, 8, 8), tmp_path_factory.mktemp("squeezed") / "fp32.onnx")


def space(tiny: Tiny, found: BaseGraph, **settings: bool) -> SearchSpace:
    parts = replace(tiny.components, pruners={}, quantizers={"int8": tiny.components.quantizers["int8"]})
    return build_space(found, parts, {}, SpaceSettings(sparsities=[], **settings), NO_SCORES)  # type: ignore[arg-type]


def test_equal_blocks_are_one_parameter(tiny: Tiny, squeezed: BaseGraph) -> None:
    found = space(tiny, squeezed)
    assert [name.split(".")[0] for name in found.ops] == [
        "GlobalAveragePool-Mul-Sigmoid",
        "Flatten-GlobalAveragePool-Mul-Sigmoid",
    ]
    assert found.sizes == dict.fromkeys(squeezed.layers, 2) | {f"ops/{name}": 3 for name in found.ops}
    assert [len(choices[1].ops) for choices in found.ops.values()] == [10, 4]  # two blocks; the last activation and the pool


def test_operators_are_not_searched_when_switched_off(tiny: Tiny, squeezed: BaseGraph) -> None:
    plain, rich = space(tiny, squeezed, ops=False), space(tiny, squeezed)
    assert (plain.ops, set(plain.sizes)) == ({}, set(squeezed.layers))
    assert plain.digest != rich.digest
    (name,) = [op.name for op in squeezed.ops if op.op_type == "Flatten"]
    with pytest.raises(PolicyError, match=f"seed policy decides the operator '{name}'; it is not searched"):
        plain.indices(Policy(ops={name: "float"}))


def test_a_decision_names_its_operators_in_the_policy(tiny: Tiny, squeezed: BaseGraph) -> None:
    found = space(tiny, squeezed)
    for name, choices in found.ops.items():
        for index, option in enumerate(choices):
            policy = found.alone(f"ops/{name}", index)
            assert policy == found.policy({f"ops/{name}": index}) == Policy(ops=option.decisions)
            assert found.indices(policy) == dict.fromkeys(found.sizes, 0) | {f"ops/{name}": index}
    first = next(iter(found.ops.values()))[1].ops[0]
    with pytest.raises(PolicyError, match="this space offers follow: none named; float: "):
        found.indices(Policy(ops={first: "float"}))  # only a part of what is decided together


def test_float_keeps_every_operator_of_the_region_float(tiny: Tiny, squeezed: BaseGraph) -> None:
    found = space(tiny, squeezed)
    capabilities = tiny.components.target.capabilities()
    layers = dict.fromkeys(squeezed.layers, INT8)
    for choices in found.ops.values():
        wanted = {"follow": True, "float": False, "integer": True}
        for option in choices:
            integer = place(squeezed, Policy(layers, ops=option.decisions), capabilities).integer
            assert {name in integer for name in choices[2].ops} == {wanted[option.precision]}
            alone = place(squeezed, Policy(ops=option.decisions), capabilities).integer
            assert bool(alone) == (option.precision == "integer")


def test_seeds_try_what_is_between_in_both_ways_and_squeeze_layers_in_float(tiny: Tiny, squeezed: BaseGraph) -> None:
    found = space(tiny, squeezed)
    layers = dict.fromkeys(squeezed.layers, INT8)
    rest = {name: option for name, option in layers.items() if not name.startswith("squeeze.")}
    integers, floats = (merged(choices[index] for choices in found.ops.values()) for index in (2, 1))
    seeds = seed_policies(found, squeezed.layers)
    assert seeds[:6] == [
        Policy(layers),
        Policy(layers, ops=integers),
        Policy(layers, ops=floats),
        Policy(rest, ops=integers),
        Policy(rest, ops=floats),
        Policy(rest),
    ]
    assert all(found.policy(found.indices(seed)) == seed for seed in seeds)
